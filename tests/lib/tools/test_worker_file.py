from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lib.tools.worker_file import NoSuchWorker, find

ROOT = Path(__file__).parents[3]


def folder_with(tmp_path: Path, *files: str) -> Path:
    """Make empty files in `tmp_path`; return it."""
    for file in files:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return tmp_path


def test_a_name_is_looked_up_as_on_an_instance(tmp_path: Path) -> None:
    here = folder_with(tmp_path, "workers/a/worker.py", "workers/a/server.py", "workers/b/server.py")
    assert [(f.module, f.root) for f in (find("a", here), find("b", here))] == [
        ("workers.a.worker", here),
        ("workers.b.server", here),
    ]
    own = find("hello_world", here)
    assert (own.path, own.root) == (ROOT / "workers" / "hello_world" / "server.py", here)
    assert (own.target, str(find("a", here))) == ("hello_world", "workers/a/worker.py")


def test_a_worker_of_this_folder_precedes_one_of_pyworkers(tmp_path: Path) -> None:
    here = folder_with(tmp_path, "workers/hello_world/server.py")
    assert find("hello_world", here).path.is_relative_to(here)


@pytest.mark.parametrize("name", ["mine", "mine/", "mine/worker.py", "./mine/worker.py"])
def test_a_file_and_its_folder_name_the_same_worker(name: str, tmp_path: Path) -> None:
    found = find(name, folder_with(tmp_path, "mine/worker.py"))
    assert (found.module, found.path, found.root) == (None, tmp_path / "mine/worker.py", tmp_path / "mine")


@pytest.mark.parametrize(
    ("files", "path", "root"),
    [
        (["p/requirements.txt", "p/mine/worker.py"], "p/mine/worker.py", "p"),
        (["p/pyproject.toml", "p/a/b/worker.py"], "p/a/b/worker.py", "p"),
        (["p/requirements.txt", "p/mine/requirements.txt", "p/mine/worker.py"], "p/mine/worker.py", "p/mine"),
        (["p/workers/mine/server.py"], "p/workers/mine/server.py", "p"),
        (["p/other/worker.py"], "p/other/worker.py", "p/other"),
    ],
)
def test_a_file_runs_in_its_projects_folder(files: list[str], path: str, root: str, tmp_path: Path) -> None:
    assert find(path, folder_with(tmp_path, *files)).root == tmp_path / root


@pytest.mark.parametrize(
    ("path", "text", "root", "module"),
    [
        ("workers/a/server.py", "from .data import x", ".", "workers.a.server"),
        ("workers/a/server.py", "from ..b import x", ".", "workers.a.server"),
        ("workers/a/server.py", "from workers.a.data import x", ".", None),
        ("workers/a/server.py", "def f():\n    from . import data", ".", "workers.a.server"),
        ("p/mine/worker.py", "from .data import x", "p", "mine.worker"),
        ("p/mine/worker.py", "from ..data import x", ".", "p.mine.worker"),
        ("mine/worker.py", "from .", "mine", None),
    ],
)
@pytest.mark.parametrize("named", ["file", "folder"])
def test_a_file_with_relative_imports_is_a_module(
    path: str, text: str, root: str, module: str | None, named: str, tmp_path: Path
) -> None:
    here = folder_with(tmp_path, path)
    (here / path).write_text(text)
    found = find(path if named == "file" else str(Path(path).parent), here)
    assert (found.root, found.module) == ((here / root).resolve(), module)
    assert find(found.target, found.root) == replace(found, here=found.root)


def test_without_a_name_the_folders_own_worker_or_backends_is_found(tmp_path: Path) -> None:
    assert find(None, tmp_path, "hello_world").module == "workers.hello_world.server"
    assert find(None, folder_with(tmp_path, "worker.py"), "hello_world").path == tmp_path / "worker.py"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "no worker is named, and there is no worker.py in"),
        ("helo_world", "there is no worker 'helo_world'.\nDid you mean 'hello_world'?"),
        ("min", "Did you mean 'mine'?"),
        ("xyzzy", ", or give a path, or make a new worker: pyworker new NAME"),
        ("xyzzy", "Choose from "),
        ("mine/wroker.py", "there is no file 'mine/wroker.py'"),
        ("empty/", "the folder empty/ has neither worker.py nor server.py"),
    ],
)
def test_a_missing_worker_is_reported_with_those_that_exist(
    name: str | None, message: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoSuchWorker) as raised:
        find(name, folder_with(tmp_path, "mine/worker.py"))
    assert message in str(raised.value)
