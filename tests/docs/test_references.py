"""Every file, heading and module that the project's text names exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, Document
from tests.docs.references import dangling_references, text_of_comments

# Files that authors make, in a folder or a repository of their own.
MADE_BY_AUTHORS = {
    "worker.py": "the worker at the root of an author's repository",
    "setup.py": "the installer of an author's repository",
    "test_load.py": "the load test in a worker's folder",
    "my_model/worker.py": "made by `pyworker new my_model`",
    "my_model/model_server.py": "made by `pyworker new my_model`",
}
# Beginnings of paths that are not searched, with the reason.
EXCEPTED = {
    "CHANGELOG.md": "it names files as they were",
    "docs/api.md": "it repeats docstrings, which are searched where they are",
    "lib/tools/template/": "its files are copied elsewhere, and name each other there",
    "tests/docs/test_references.py": "its samples",
}
SEARCHED = (
    "lib",
    "workers",
    "tests",
    "benchmarks",
    "docs",
    "ops",
    ".ci",
    "README.md",
    "pyproject.toml",
    "*.sh",
)
SUFFIXES = {".md", ".py", ".sh", ".toml", ""}


def project_files() -> list[Path]:
    """The files to be searched, relative to the root."""
    found = [path for pattern in SEARCHED for path in ROOT.glob(pattern)]
    paths = [path for top in found for path in ([top] if top.is_file() else sorted(top.rglob("*")))]
    relative = [path.relative_to(ROOT) for path in paths if path.is_file() and path.suffix in SUFFIXES]
    return [
        path
        for path in relative
        if not str(path).startswith(tuple(EXCEPTED)) and "node_modules" not in path.parts
    ]


def searched_text(path: Path) -> str:
    """The file's text; of tests only comments and docstrings, as their strings name files that they write."""
    text = (ROOT / path).read_text()
    return text_of_comments(text) if path.suffix == ".py" and path.parts[0] == "tests" else text


def made_files(path: Path) -> frozenset[str]:
    """Names of files that need not exist: files that authors make, and files in the blocks of a guide."""
    blocks = Document(path.stem, (ROOT / path).read_text()).blocks if path.suffix == ".md" else []
    return frozenset(MADE_BY_AUTHORS) | {block.name for block in blocks if block.kind == "file"}


@pytest.mark.one_python
def test_every_reference_exists() -> None:
    dangling = [
        str(reference)
        for path in project_files()
        for reference in dangling_references(path, searched_text(path), made_files(path))
    ]
    assert not dangling, "\n" + "\n".join(dangling)


@pytest.mark.parametrize(
    "text",
    [
        "docs/protocol.md",
        'docs/operating.md, "Sizing"',
        '# See docs/operating.md,\n# "Sizing" and "Logs".',
        "[states](docs/operating.md#states)",
        "lib/backend.py, backend.py, tests/docs/blocks.py",
        "lib.backend, lib.backend.Backend, lib.runtime.settings",
        "workers/NAME/server.py, workers.NAME.server, workers/<name>/server.py, $folder/nothing.py, https://example.org/nothing.py",
        "worker.py",
    ],
)
def test_existing_targets_are_found(text: str) -> None:
    assert not list(dangling_references(Path("lib/some.py"), text, frozenset(MADE_BY_AUTHORS)))


@pytest.mark.parametrize(
    ("text", "line", "reference"),
    [
        ("\nnothing.md", 2, "nothing.md"),
        ("protocol.md", 1, "protocol.md"),
        ('docs/operating.md, "Sizing"\nand docs/operating.md,\n"Nothing"', 2, 'docs/operating.md, "Nothing"'),
        ("docs/protocol.md §2", 1, "docs/protocol.md §… (cite a heading)"),
        ("[x](docs/operating.md#nothing)", 1, "docs/operating.md#nothing"),
        ("(nothing.py's)", 1, "nothing.py"),
        ("lib/nothing/backend.py", 1, "lib/nothing/backend.py"),
        ("lib.nothing", 1, "lib.nothing"),
        ("lib.backend.Nothing", 1, "lib.backend.Nothing"),
    ],
)
def test_missing_targets_are_named(text: str, line: int, reference: str) -> None:
    (found,) = dangling_references(Path("lib/some.py"), text)
    assert (found.line, found.reference) == (line, reference)


def test_comments_and_docstrings_stay_on_their_lines() -> None:
    source = 'NAME = "a.py"\n\n\ndef f():\n    """See b.py,\n    c.py."""\n    return 1  # d.py\n'
    assert text_of_comments(source).splitlines() == [
        "", "", "", "", '    """See b.py,', '    c.py."""', "# d.py"
    ]  # fmt: skip
