"""Finding a worker's file, and running it in this process as `python` would.

A name is looked up as on an instance: `workers/NAME/worker.py`, else `workers/NAME/server.py`, below the
current folder and then among those that come with PyWorker. A path is that file, or a folder's `worker.py`,
else its `server.py`. The commands that use it are in lib/tools/commands/run.py and lib/tools/inspection.py.
"""

from __future__ import annotations

import ast
import difflib
import linecache
import os
import runpy
import sys
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

from lib.errors import SettingsError, result_or_error

FILES = ("worker.py", "server.py")
# Each marks a project's folder. A script runs there, since authors open files by relative paths.
ROOT_SIGNS = ("requirements.txt", "pyproject.toml", ".git")
_OWN_ROOT = Path(__file__).parents[2]
# The files that raise the `KeyError` of a missing variable.
_OS_FILES = (os.__file__, "<frozen os>")


class NoSuchWorker(Exception):
    """There is no such worker; the text lists those that exist."""


class WorkerFailed(Exception):
    """The worker's file raised an exception: `brief` says where and why on one line, the text says more."""

    def __init__(self, where: str, why: str, more: str) -> None:
        super().__init__("\n".join(part for part in (where, f"  {why}", more) if part))
        self.brief = f"{where}: {why}"


@dataclass(frozen=True)
class WorkerFile:
    """A worker's file. It runs in the folder `root`, as the module `module`, or as a script if that is None.

    `here` is the folder from which it was looked up, by its `name` or, if that is None, by a path.
    """

    path: Path
    root: Path
    here: Path
    module: str | None = None
    name: str | None = None

    def __str__(self) -> str:
        return self.shown(self.path)

    @property
    def target(self) -> str:
        """The name or path by which `find` finds it from `root`."""
        return str(self.path) if self.name is None else self.name

    @property
    def sources(self) -> Path:
        """The folder of the author's files: the project's, or of a worker with a name its own."""
        return self.root if self.name is None else self.path.parent

    def shown(self, path: str | Path) -> str:
        """`path` relative to `here`, or absolute if it is not below `here`."""
        shown = os.path.relpath(path, self.here)
        return str(path) if shown.startswith("..") else shown


def find(name: str | None, here: Path, backend: str = "") -> WorkerFile:
    """Find the worker with this name or path, looked up from the folder `here`.

    If `name` is None, it is the folder's `worker.py`, else the worker named `backend`. Raises `NoSuchWorker`.
    """
    if name is None:
        if (here / FILES[0]).is_file():
            return _script(here / FILES[0], here)
        if not backend:
            raise NoSuchWorker(
                f"no worker is named, and there is no {FILES[0]} in {here}.\n{_available(here)}"
            )
        name = backend
    path = here / name
    if path.is_file():
        return _script(path, here)
    if "/" not in name and not name.endswith(".py"):
        for root in (here, _OWN_ROOT):
            for path_of in (root / "workers" / name / file for file in FILES):
                if path_of.is_file():
                    return WorkerFile(path_of.resolve(), here, here, f"workers.{name}.{path_of.stem}", name)
    for file in FILES:
        if (path / file).is_file():
            return _script(path / file, here)
    if path.is_dir():
        raise NoSuchWorker(f"the folder {name} has neither {FILES[0]} nor {FILES[1]}: name a worker's file")
    similar = difflib.get_close_matches(name, _names(here), n=1)
    hint = f"Did you mean {similar[0]!r}?" if similar else _available(here)
    kind = "file" if "/" in name or name.endswith(".py") else "worker"
    raise NoSuchWorker(f"there is no {kind} {name!r}.\n{hint}")


def run_file(file: WorkerFile) -> None:
    """Run `file` as the main program, with its own working directory, arguments and import path.

    Raises `WorkerFailed` if the file raises an exception; `SystemExit` and `KeyboardInterrupt` are passed on.
    """
    os.chdir(file.root)
    sys.argv[:] = [str(file.path)]
    for place in (file.root,) if file.module else (file.root, file.path.parent):
        if str(place) not in sys.path[:1]:
            sys.path.insert(0, str(place))
    failure = result_or_error(partial(_run, file))
    if isinstance(failure, SystemExit):  # an invalid declaration raises an error that is a SystemExit too
        raise failure
    if isinstance(failure, Exception):
        raise describe_failure(failure, file) from failure


def settings_error_in(error: BaseException | None) -> SettingsError | None:
    """The `SettingsError` that `error` is or was caused by, or None."""
    while error is not None and not isinstance(error, SettingsError):
        error = error.__cause__ or error.__context__
    return error


def _run(file: WorkerFile) -> None:
    if file.module:
        runpy.run_module(file.module, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(file.path), run_name="__main__")


def _script(path: Path, here: Path) -> WorkerFile:
    """A file that runs in the nearest project folder above it, or else in its own folder.

    It runs as a script or, with relative imports, which a script can't have, as a module.
    """
    path = path.resolve()
    roots = (f for f in path.parents if f / "workers" in path.parents or _is_project(f))
    root = next(roots, path.parent)
    depth = _relative_depth(path)
    packages = len(path.relative_to(root).parts) - 1
    if not depth:
        return WorkerFile(path, root, here)
    if (
        packages < depth <= len(path.parents) - 1
    ):  # the project's folder is a package itself, or there is none
        root = path.parents[depth]
    return WorkerFile(path, root, here, ".".join(path.relative_to(root).with_suffix("").parts))


def _relative_depth(path: Path) -> int:
    """The most dots that a relative import in the file begins with; 0 without any."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # running it says what is wrong
        return 0
    return max((node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)), default=0)


def _is_project(folder: Path) -> bool:
    return any((folder / sign).exists() for sign in ROOT_SIGNS)


def _names(here: Path) -> list[str]:
    """The names of all workers that can be run by name or by folder."""
    patterns = [(here, "*/"), (here, "workers/*/"), (_OWN_ROOT, "workers/*/")]
    return sorted({p.parent.name for root, at in patterns for file in FILES for p in root.glob(at + file)})


def _available(here: Path) -> str:
    return f"Choose from {', '.join(_names(here))}, or give a path, or make a new worker: pyworker new NAME"


def describe_failure(error: Exception, file: WorkerFile) -> WorkerFailed:
    """Describe the error and its place in the worker's files, with a traceback if it is needed."""
    where = _place(error, file)
    last = traceback.format_exception_only(type(error), error)[-1].strip()
    if isinstance(error, SyntaxError):
        return WorkerFailed(where, last, "")
    if isinstance(error, ImportError):
        return WorkerFailed(where, last, _import_hint(error))
    if isinstance(error, KeyError) and traceback.extract_tb(error.__traceback__)[-1].filename in _OS_FILES:
        return WorkerFailed(where, f"the environment variable {error.args[0]} is not set", "")
    trace = traceback.format_exception(type(error), error, _from_worker(error, file))
    return WorkerFailed(where, last, "".join(trace).rstrip())


def _import_hint(error: ImportError) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"  Check its spelling, or install the package that has it: {sys.executable} -m pip install …"
    return "  Check its spelling, and the version of the package that is installed."


def _place(error: Exception, file: WorkerFile) -> str:
    """The last line of the worker's own files in the traceback."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{file.shown(error.filename)}, line {error.lineno}: {(error.text or '').strip()}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_own(f.filename, file)]
    if not frames:
        return f"{file} can't be run"
    name, number = frames[-1].filename, frames[-1].lineno or 0
    return f"{file.shown(name)}, line {number}: {linecache.getline(name, number).strip()}"


def _from_worker(error: Exception, file: WorkerFile) -> TracebackType | None:
    """The traceback from the first line of the worker's own files on."""
    trace = error.__traceback__
    while trace is not None and not _is_own(trace.tb_frame.f_code.co_filename, file):
        trace = trace.tb_next
    return trace or error.__traceback__


def _is_own(filename: str, file: WorkerFile) -> bool:
    """Whether `filename` is the worker's file or in its folders, and not an installed package."""
    path = Path(filename)
    if "site-packages" in path.parts or path.is_relative_to(_OWN_ROOT / "lib"):
        return False
    return path == file.path or path.is_relative_to(file.root) or path.is_relative_to(file.path.parent)
