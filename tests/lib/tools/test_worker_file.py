from __future__ import annotations

from pathlib import Path

import pytest

from lib.tools.worker_file import NoSuchWorker, find

ROOT = Path(__file__).parents[3]


def made(tmp_path: Path, *files: str) -> Path:
    for file in files:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return tmp_path


def test_a_name_is_looked_for_as_on_an_instance(tmp_path: Path) -> None:
    here = made(tmp_path, "workers/a/worker.py", "workers/a/server.py", "workers/b/server.py")
    assert [(f.module, f.root) for f in (find("a", here), find("b", here))] == [
        ("workers.a.worker", here),
        ("workers.b.server", here),
    ]
    own = find("hello_world", here)
    assert (own.path, own.root) == (ROOT / "workers" / "hello_world" / "server.py", here)
    assert (own.target, str(find("a", here))) == ("hello_world", "workers/a/worker.py")


def test_a_worker_of_this_folder_goes_before_one_of_pyworkers(tmp_path: Path) -> None:
    here = made(tmp_path, "workers/hello_world/server.py")
    assert find("hello_world", here).path.is_relative_to(here)


@pytest.mark.parametrize("name", ["mine", "mine/", "mine/worker.py", "./mine/worker.py"])
def test_a_file_and_its_folder_are_the_same(name: str, tmp_path: Path) -> None:
    found = find(name, made(tmp_path, "mine/worker.py"))
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
    assert find(path, made(tmp_path, *files)).root == tmp_path / root


def test_without_a_name_it_is_the_folders_own_or_the_one_that_backend_names(tmp_path: Path) -> None:
    assert find(None, tmp_path, "hello_world").module == "workers.hello_world.server"
    assert find(None, made(tmp_path, "worker.py"), "hello_world").path == tmp_path / "worker.py"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (None, "which worker? There is no worker.py in"),
        ("helo_world", "there is no worker 'helo_world'.\nDid you mean 'hello_world'?"),
        ("min", "Did you mean 'mine'?"),
        ("xyzzy", "; or give a path, or make one: pyworker new NAME"),
        ("xyzzy", "There are: "),
        ("mine/wroker.py", "there is no file 'mine/wroker.py'"),
        ("empty/", "neither worker.py nor server.py in the folder empty/"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(name: str | None, said: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoSuchWorker) as raised:
        find(name, made(tmp_path, "mine/worker.py"))
    assert said in str(raised.value)
