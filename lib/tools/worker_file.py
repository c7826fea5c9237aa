"""Which file a worker is, and running it in this process, as `python` would.

A name is looked for as on an instance (launch.md): `workers/NAME/worker.py`, else `workers/NAME/server.py`,
below the current folder and then among those that come with PyWorker. A path is that file, or a folder's
`worker.py`, else its `server.py`. What is done with a worker is commands/run.py's and inspection.py's.
"""

from __future__ import annotations

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
# A project's folder has one of these; a script runs there, since authors open files by relative paths.
ROOT_SIGNS = ("requirements.txt", "pyproject.toml", ".git")
_OWN_ROOT = Path(__file__).parents[2]
# Where a missing variable's `KeyError` comes from.
_OS_FILES = (os.__file__, "<frozen os>")


class NoSuchWorker(Exception):
    """There is none; the text says what there is."""


class WorkerFailed(Exception):
    """The file could not be run to its end: `brief` says where and why in a line, the text says all."""

    def __init__(self, where: str, why: str, more: str) -> None:
        super().__init__("\n".join(part for part in (where, f"  {why}", more) if part))
        self.brief = f"{where}: {why}"


@dataclass(frozen=True)
class WorkerFile:
    """A worker's file. It runs in the folder `root`, as the module `module` or else as a script.

    `here` is the folder of whoever asked for it.
    """

    path: Path
    root: Path
    here: Path
    module: str | None = None

    def __str__(self) -> str:
        return self.shown(self.path)

    @property
    def target(self) -> str:
        """What `find` finds it by from `root`."""
        return str(self.path) if self.module is None else self.path.parent.name

    def shown(self, path: str | Path) -> str:
        """`path` as one would type it `here`."""
        shown = os.path.relpath(path, self.here)
        return str(path) if shown.startswith("..") else shown


def find(name: str | None, here: Path, backend: str = "") -> WorkerFile:
    """The worker called `name`, for one who is in the folder `here`.

    None: its `worker.py`, else the one called `backend`. Raises `NoSuchWorker`.
    """
    if name is None:
        if (here / FILES[0]).is_file():
            return _script(here / FILES[0], here)
        if not backend:
            raise NoSuchWorker(f"which worker? There is no {FILES[0]} in {here}.\n{_what_there_is(here)}")
        name = backend
    path = here / name
    if path.is_file():
        return _script(path, here)
    if "/" not in name and not name.endswith(".py"):
        for root in (here, _OWN_ROOT):
            for path_of in (root / "workers" / name / file for file in FILES):
                if path_of.is_file():
                    return WorkerFile(path_of.resolve(), here, here, f"workers.{name}.{path_of.stem}")
    for file in FILES:
        if (path / file).is_file():
            return _script(path / file, here)
    if path.is_dir():
        raise NoSuchWorker(f"there is neither {FILES[0]} nor {FILES[1]} in the folder {name}")
    alike = difflib.get_close_matches(name, _names(here), n=1)
    hint = f"Did you mean {alike[0]!r}?" if alike else _what_there_is(here)
    what = "file" if "/" in name or name.endswith(".py") else "worker"
    raise NoSuchWorker(f"there is no {what} {name!r}.\n{hint}")


def run_file(file: WorkerFile) -> None:
    """Run `file` as the main program: its folder, its arguments, its imports.

    Raises `WorkerFailed` where an exception got out of it, and `SystemExit` and `KeyboardInterrupt` as they
    come.
    """
    os.chdir(file.root)
    sys.argv[:] = [str(file.path)]
    for place in (file.root,) if file.module else (file.root, file.path.parent):
        if str(place) not in sys.path[:1]:
            sys.path.insert(0, str(place))
    failure = result_or_error(partial(_run, file))
    if isinstance(failure, SystemExit):  # a refused declaration is both
        raise failure
    if isinstance(failure, Exception):
        raise _account(failure, file) from failure


def refused_by(error: BaseException | None) -> SettingsError | None:
    """The refusal of settings or of a declaration that `error` is or came from, if it did."""
    while error is not None and not isinstance(error, SettingsError):
        error = error.__cause__ or error.__context__
    return error


def _run(file: WorkerFile) -> None:
    if file.module:
        runpy.run_module(file.module, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(file.path), run_name="__main__")


def _script(path: Path, here: Path) -> WorkerFile:
    """The nearest project's folder above the file is where it runs, or else its own."""
    path = path.resolve()
    roots = (f for f in path.parents if f / "workers" in path.parents or _is_project(f))
    return WorkerFile(path, next(roots, path.parent), here)


def _is_project(folder: Path) -> bool:
    return any((folder / sign).exists() for sign in ROOT_SIGNS)


def _names(here: Path) -> list[str]:
    """The workers that can be run by name or by folder."""
    patterns = [(here, "*/"), (here, "workers/*/"), (_OWN_ROOT, "workers/*/")]
    return sorted({p.parent.name for root, at in patterns for file in FILES for p in root.glob(at + file)})


def _what_there_is(here: Path) -> str:
    return f"There are: {', '.join(_names(here))}; or give a path, or make one: pyworker new NAME"


def _account(error: Exception, file: WorkerFile) -> WorkerFailed:
    """What happened and where in the worker's own files; with a traceback, unless a line says it all."""
    where = _place(error, file)
    last = traceback.format_exception_only(type(error), error)[-1].strip()
    if isinstance(error, SyntaxError):
        return WorkerFailed(where, last, "")
    if isinstance(error, ImportError):
        return WorkerFailed(where, last, _how_to_import(error))
    if isinstance(error, KeyError) and traceback.extract_tb(error.__traceback__)[-1].filename in _OS_FILES:
        return WorkerFailed(where, f"the variable {error.args[0]} is missing from the environment", "")
    trace = traceback.format_exception(type(error), error, _from_worker(error, file))
    return WorkerFailed(where, last, "".join(trace).rstrip())


def _how_to_import(error: ImportError) -> str:
    if isinstance(error, ModuleNotFoundError):
        return (
            f"  Is it spelt so? Otherwise install the package that has it: {sys.executable} -m pip install …"
        )
    return "  Is it spelt so in the package that is installed?"


def _place(error: Exception, file: WorkerFile) -> str:
    """The last line of the worker's own files that had to do with it."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{file.shown(error.filename)}, line {error.lineno}: {(error.text or '').strip()}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_own(f.filename, file)]
    if not frames:
        return f"{file} can't be run"
    name, number = frames[-1].filename, frames[-1].lineno or 0
    return f"{file.shown(name)}, line {number}: {linecache.getline(name, number).strip()}"


def _from_worker(error: Exception, file: WorkerFile) -> TracebackType | None:
    """The traceback from the worker's first own line on: what ran it is of no interest."""
    trace = error.__traceback__
    while trace is not None and not _is_own(trace.tb_frame.f_code.co_filename, file):
        trace = trace.tb_next
    return trace or error.__traceback__


def _is_own(filename: str, file: WorkerFile) -> bool:
    """Whether it is the worker's or lies beside it, and was not installed there."""
    path = Path(filename)
    if "site-packages" in path.parts or path.is_relative_to(_OWN_ROOT / "lib"):
        return False
    return path == file.path or path.is_relative_to(file.root) or path.is_relative_to(file.path.parent)
