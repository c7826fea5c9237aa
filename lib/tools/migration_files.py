"""The files of `pyworker migrate`: which there are, their encodings, and those that only a hand can change.

Owns the search, reading and writing. What changes in a Python file is in migration.py.
"""

from __future__ import annotations

import difflib
import io
import os
import re
import shutil
import tempfile
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from lib.tools.migration import Note, migrate

# Files that install or start a worker.
_OTHER_FILES = (
    *("requirements*.txt", "constraints*.txt", "pyproject.toml", "setup.py", "setup.cfg", "Pipfile"),
    *("environment.yml", "environment.yaml", "Dockerfile*", "docker-compose*", "*.sh", "Procfile"),
)
# Folders with files of others.
_NOT_OURS = ("__pycache__", "node_modules", "site-packages")
_INSTALLS = re.compile(r"\bvastai(?:[-_]sdk)?\b|\bvast-sdk\b|\bPYWORKER_(?:REPO|REF)\b")
_STILL_IMPORTS = re.compile(r"^\s*(?:from|import)\s+vastai(?:_sdk)?\b", re.MULTILINE)


@dataclass(frozen=True)
class FileResult:
    """One Python file: its text before and after, and what needs a hand.

    `failure` says why it could not be read or parsed; then the texts are the same.
    """

    path: Path
    before: str
    after: str
    encoding: str
    notes: list[Note]
    failure: str = ""

    @property
    def changed(self) -> bool:
        """Whether there is something to write."""
        return self.before != self.after

    @property
    def still_imports(self) -> bool:
        """Whether it imports the other package after all."""
        return _STILL_IMPORTS.search(self.after) is not None

    def diff(self, name: str) -> str:
        """A unified diff, as `patch -p1` and `git apply` take it."""
        lines = difflib.unified_diff(
            _lines(self.before), _lines(self.after), fromfile=f"a/{name}", tofile=f"b/{name}"
        )
        whole = (line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)
        return "".join(whole)

    def write(self) -> None:
        """Write the file in its encoding. Raises `OSError`; then the file is as it was."""
        path = self.path.resolve()
        path.open("ab").close()  # a file that can't be written must not be replaced
        descriptor, name = tempfile.mkstemp(prefix=path.name, suffix=".tmp", dir=path.parent)
        try:
            with open(descriptor, "wb") as file:
                file.write(self.after.encode(self.encoding))
            shutil.copymode(path, name)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def migrate_file(path: Path) -> FileResult:
    """Read and rewrite one Python file, without writing it."""
    text, encoding = "", "utf-8"
    try:
        raw = path.read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        text = raw.decode(encoding)
        migrated = migrate(text)
    except OSError as e:
        return FileResult(path, text, text, encoding, [], f"can't be read: {e.strerror}")
    except SyntaxError as e:
        return FileResult(path, text, text, encoding, [], f"can't be parsed: {e.msg}, line {e.lineno or '?'}")
    except ValueError as e:  # bytes that are not of its encoding, or a null byte
        return FileResult(path, text, text, encoding, [], f"can't be parsed: {e}")
    return FileResult(path, text, migrated.text, encoding, migrated.notes)


def python_files(paths: Iterable[Path]) -> list[Path]:
    """The Python files among `paths` and in the folders among them, each once."""
    found: dict[Path, Path] = {}
    for path in paths:
        inside = _walk(path) if path.is_dir() else iter([path])
        for file in inside:
            is_other = _is_other(file) and file.suffix != ".py"
            if not is_other and (file is path or file.suffix == ".py"):
                found.setdefault(file.resolve(), file)
    return list(found.values())


def other_files(paths: Iterable[Path]) -> list[Path]:
    """The files that install or start a worker: in the folders among `paths`, and beside the files."""
    found: dict[Path, Path] = {}
    for path in paths:
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        for file in _walk(path) if path.is_dir() else sorted(beside):
            if _is_other(file) and file.is_file():
                found.setdefault(file.resolve(), file)
    return list(found.values())


def install_notes(path: Path) -> list[Note]:
    """A note for each line of `path` that installs or starts the other package's worker."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    named = ((number, line.strip()) for number, line in enumerate(lines, 1) if _INSTALLS.search(line))
    return [Note(number, line, breaks=False) for number, line in named if not line.startswith("#")]


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below `folder` but hidden ones, and those of environments and of packages."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(
            name
            for name in folders
            if name not in _NOT_OURS
            and not name.startswith(".")
            and not (here / name / "pyvenv.cfg").exists()
        )
        yield from (here / name for name in sorted(files) if not name.startswith("."))


def _is_other(path: Path) -> bool:
    return any(fnmatch(path.name, pattern) for pattern in _OTHER_FILES)


def _lines(text: str) -> list[str]:
    """The lines of `text`, each with its end, which may be CR LF."""
    return [line for line in re.split(r"(?<=\n)", text) if line]
