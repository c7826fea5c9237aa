"""`pyworker check`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from lib.tools.command import EXIT_FAILED, EXIT_USAGE, Command


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.HelpFormatter
    parser.add_argument("worker", nargs="?", help="as for `pyworker run`")
    parser.add_argument(
        "--log", type=Path, metavar="FILE", help="a log of the model server (default: the worker's, if there)"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(_: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from lib.tools.inspection import check_worker
    from lib.tools.worker_file import NoSuchWorker, find

    environ = os.environ  # noqa: TID251 - not read here, but handed on
    try:
        file = find(args.worker, Path.cwd(), environ.get("BACKEND", ""))
    except NoSuchWorker as e:
        print(f"pyworker check: {e}", file=sys.stderr)
        return EXIT_USAGE
    found = check_worker(file, environ, args.log.absolute() if args.log else None)
    print(found.as_json() if args.json else "\n".join(found.lines()))
    return EXIT_FAILED if found.failed else 0


COMMAND = Command(
    "what is wrong with a worker, before a GPU is rented",
    "Runs a worker's file up to where it would serve, and looks at what it has made: settings, declaration, "
    "the benchmark's payload and its workload, the log rules by a log of the model server (which line fires "
    "which), and, if the model server is up, its health check and one request. A finding a line; the exit "
    "status is 1 if one of them is a problem.",
    configure,
    run,
)
