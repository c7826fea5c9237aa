"""`pyworker run`: run a worker, on an instance or on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lib.runtime.exit_status import EXIT_FAILED, EXIT_SETTINGS
from lib.tools.command import EXIT_USAGE, Command, environment, print_error

if TYPE_CHECKING:
    from lib.tools.worker_file import WorkerFile


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.HelpFormatter
    parser.add_argument(
        "worker",
        nargs="?",
        help="a file, a folder with a worker.py, or the name of a folder in workers/ (default: ./worker.py, "
        "or else the worker that the variable BACKEND names)",
    )
    parser.add_argument(
        "--local",
        action="store_true",
        help="run on this machine, with a local engine and with the variables that an instance would have",
    )
    parser.add_argument(
        "--reload",
        action="store_true",
        help="with --local: restart the worker when a Python file in its project's folder changes",
    )


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from lib.errors import SettingsError
    from lib.tools.run_local import run_with_local_engine
    from lib.tools.worker_file import NoSuchWorker, find

    if args.reload and not args.local:
        parser.error("argument --reload: only with --local")
    environ = environment()
    try:
        file = find(args.worker, Path.cwd(), environ.get("BACKEND", ""))
    except NoSuchWorker as e:
        print_error("run", e)
        return EXIT_USAGE
    if not args.local:
        return _run_here(file, environ)
    try:
        return run_with_local_engine(
            file.target, str(file), environ, watched=file.sources if args.reload else None
        )
    except SettingsError as e:
        print_error("run", "; ".join(e.problems))
        return EXIT_USAGE


def _run_here(file: WorkerFile, environ: Mapping[str, str]) -> int:
    """Run the worker in this process; return its exit status, or 1 if the file ends without serving it."""
    from lib.server import BEGUN
    from lib.tools.file_inspection import NOT_SERVED
    from lib.tools.worker_file import WorkerFailed, run_file, settings_error_in

    try:
        run_file(file)
    except WorkerFailed as e:
        print_error("run", e)
        return EXIT_FAILED
    except SystemExit as e:
        if e.code == EXIT_SETTINGS and settings_error_in(e) is None and _lacks_container_id(environ):
            name = file.name or file
            print_error("run", f"to run it on this machine, not on an instance: pyworker run {name} --local")
        if e.code not in (None, 0):
            raise
    if not BEGUN.is_set():
        print_error("run", f"{file} ended without serving: {NOT_SERVED}")
        return EXIT_FAILED
    return 0


def _lacks_container_id(environ: Mapping[str, str]) -> bool:
    """Whether the worker needs CONTAINER_ID, which an instance sets, and `environ` lacks it."""
    from lib.errors import SettingsError
    from lib.runtime.settings import Settings

    try:
        Settings.from_env(environ)
    except SettingsError as e:
        return any(problem.startswith("CONTAINER_ID: missing") for problem in e.problems)
    return False


COMMAND = Command(
    "run a worker, on an instance or, with --local, on this machine",
    "Runs a worker as `python` would, until SIGTERM or Ctrl-C; the exit status is the worker's, and 1 if the "
    "file ends without serving one. A name "
    "stands for workers/NAME/worker.py, or else workers/NAME/server.py, in this folder or among the workers "
    "that come with PyWorker; it runs in this folder. A file runs in its project's folder: the nearest one "
    "above it with a requirements.txt, pyproject.toml, .git or workers/, or else the file's own.",
    configure,
    run,
)
