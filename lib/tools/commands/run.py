"""`pyworker run`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lib.tools.command import EXIT_FAILED, EXIT_USAGE, Command

if TYPE_CHECKING:
    from lib.tools.worker_file import WorkerFile

# The worker's own exit statuses (lib/server.py).
SETTINGS_CANNOT_WORK = 2
PORT_IS_TAKEN = 3


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.HelpFormatter
    parser.add_argument(
        "worker",
        nargs="?",
        help="a file, a folder with a worker.py, or the name of one below workers/ "
        "(default: ./worker.py, or else the one that BACKEND names)",
    )
    parser.add_argument(
        "--local",
        action="store_true",
        help="on this machine: with the local engine beside it, and the variables of an instance filled in",
    )


def run(_: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from lib.errors import SettingsError
    from lib.local.run_local import run_with_local_engine
    from lib.tools.worker_file import NoSuchWorker, find

    environ = os.environ  # noqa: TID251 - not read here, but handed on
    try:
        file = find(args.worker, Path.cwd(), environ.get("BACKEND", ""))
    except NoSuchWorker as e:
        _say(str(e))
        return EXIT_USAGE
    if not args.local:
        return _run_here(file, environ)
    try:
        return run_with_local_engine(file.target, str(file), environ)
    except SettingsError as e:
        _say("; ".join(e.problems))
        return EXIT_USAGE


def _run_here(file: WorkerFile, environ: Mapping[str, str]) -> int:
    """Run the worker in this process, which is its own from here on; gives its exit status."""
    from lib.tools.worker_file import WorkerFailed, refused_by, run_file

    try:
        run_file(file)
    except WorkerFailed as e:
        _say(str(e))
        return EXIT_FAILED
    except SystemExit as e:
        no_instance = e.code == SETTINGS_CANNOT_WORK and "CONTAINER_ID" not in environ
        if no_instance and refused_by(e) is None:
            _say(f"this is no instance? Try it on this machine: pyworker run {file} --local")
        if e.code == PORT_IS_TAKEN:
            _say("end what holds the port, or choose another by WORKER_PORT; --local takes a free one")
        raise
    return 0


def _say(what: str) -> None:
    print(f"pyworker run: {what}", file=sys.stderr)


COMMAND = Command(
    "run a worker, on an instance or, with --local, on this machine",
    "Runs a worker as `python` would, until SIGTERM or Ctrl-C; its exit status is the worker's. A name is "
    "workers/NAME/worker.py, or else workers/NAME/server.py, in this folder or of those that come with "
    "PyWorker, and runs in this folder; a file runs in its project's folder, the nearest above it with a "
    "requirements.txt, pyproject.toml, .git or workers/, or else in its own.",
    configure,
    run,
)
