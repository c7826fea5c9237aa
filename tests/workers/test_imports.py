"""Importing a ready-made worker does nothing else, and needs only what a start needs."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import files, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
WORKERS = sorted(path.parent.name for path in ROOT.glob("workers/*/server.py"))

# Records reads of the environment; fails on network access, writing files, and reading data files.
SPY = """
import importlib, os, sys

class Spy(dict):
    asked = set()
    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)
    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)
    def __contains__(self, key):
        self.asked.add(key)
        return super().__contains__(key)

def bar(event, args):
    assert event not in ("socket.bind", "socket.connect", "socket.getaddrinfo"), event
    assert event != "open" or not set(str(args[1])) & set("wax+"), args
    assert event != "open" or not str(args[0]).endswith((".txt", ".json")), args

sys.dont_write_bytecode = True
os.environ = Spy(os.environ)
sys.addaudithook(bar)
import logging
for module in sys.argv[1:]:
    importlib.import_module(module)
ours = ("MODEL", "MAX_", "CONTAINER", "WORKER", "REPORT", "LOG_", "COMFY", "BENCHMARK", "S3_", "HF_")
own = {name for name in Spy.asked if name.startswith(ours)}
assert not own, own
assert not logging.getLogger().handlers
"""

# A worker starts without these modules: what needs them is rare, or isn't part of a worker.
NOT_AT_START = (
    "boto3",  # uploads to S3
    "lib.routes.prometheus",  # `/metrics`
    "prometheus_client",
    "pynvml",
    "Crypto",  # the local engine
    "lib.local",
    "lib.tools",  # the command line
    "matplotlib",
    "rich",
    "lib.client",  # clients and tests
    "lib.test_utils",
    "lib.testing",
    "pytest",
    "trio",  # what anyio can use and we do not
    "multiprocessing",  # slow parts of the standard library
    "http.server",
    "unittest",
    "xml",
)
# Prints which of the modules in the arguments but the first are imported with the first.
IMPORTED_WITH = """
import importlib, sys
before = set(sys.modules)
importlib.import_module(sys.argv[1])
print(*(set(sys.modules) - before) & set(sys.argv[2:]))
"""


def core_distributions() -> set[str]:
    """The project's dependencies, and theirs."""
    pending, names = ["pyworker"], set[str]()
    while pending:
        name = canonicalize_name(pending.pop())
        if name not in names:
            names.add(name)
            needed = [Requirement(text) for text in requires(name) or []]
            pending += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return names - {"pyworker"}


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An import path that has the core dependencies and nothing else."""
    folder = tmp_path_factory.mktemp("core")
    for name in core_distributions():
        for file in files(name) or []:
            if (top := file.parts[0]) not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1] / top)
    return folder


@pytest.mark.parametrize("worker", WORKERS)
def test_importing_has_no_effects_and_needs_core_dependencies_only(worker: str, core: Path) -> None:
    parts = [f"workers.{worker}.{path.stem}" for path in ROOT.glob(f"workers/{worker}/*.py")]
    done = subprocess.run(
        [sys.executable, "-S", "-c", SPY, *parts, "lib.test_harness"],
        cwd=ROOT,
        env={"PYTHONPATH": f"{core}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("module", [*(f"workers.{worker}.server" for worker in WORKERS), "lib.worker"])
def test_a_worker_starts_without_what_it_rarely_needs(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED_WITH, module, *NOT_AT_START],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_installed_packages_named_lib_and_utils_are_not_imported(tmp_path: Path) -> None:
    """A package index has other packages of these names. Code in the repository uses its own."""
    for name in ("lib", "utils"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('a stranger')")
    done = subprocess.run(
        [sys.executable, "-m", "workers.hello_world.server"],
        cwd=ROOT,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("cannot start:\n  - CONTAINER_ID")
