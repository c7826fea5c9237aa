"""Names of handlers and functions that don't depend on how the worker was started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system import ROOT

WORKER = """
from lib.data_types import EndpointHandler
from lib.declare.functions import RemoteFunction

class Handler(EndpointHandler[dict]):
    endpoint = "/generate"

    @classmethod
    def payload_cls(cls):
        return dict

def render(prompt):
    return prompt

print(Handler().benchmark_name, RemoteFunction(render).name)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pair").mkdir()
    for name in ("one", "two"):
        (tmp_path / "pair" / f"{name}.py").write_text(WORKER)
    return tmp_path


def names(folder: Path, *words: str) -> list[str]:
    """The names of the handler and the function in a worker that `words` start."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, check=True)
    return started.stdout.decode().split()


def test_two_workers_in_one_folder_have_names_of_their_own(folder: Path) -> None:
    assert names(folder, "-m", "pair.one") == ["pair.one.Handler", "pair.one.render"]
    assert names(folder, "-m", "pair.two") == ["pair.two.Handler", "pair.two.render"]


def test_a_module_has_the_same_name_where_it_is_imported(folder: Path) -> None:
    assert names(folder, "-c", "import pair.one") == names(folder, "-m", "pair.one")


def test_files_of_one_name_differ_by_their_paths(folder: Path) -> None:
    path = folder / "pair" / "one.py"
    for given in (str(path), os.path.join("pair", "one.py")):
        assert names(folder, given) == [f"{path}.Handler", f"{path}.render"]


def test_code_without_a_file_keeps_the_module_name(folder: Path) -> None:
    assert names(folder, "-c", WORKER) == ["__main__.Handler", "__main__.render"]
