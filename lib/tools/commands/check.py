"""`pyworker check`: find what is wrong with a worker before it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from lib.runtime.exit_status import EXIT_FAILED
from lib.tools.command import EXIT_USAGE, Command, environment, print_error


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.HelpFormatter
    parser.add_argument(
        "worker",
        nargs="?",
        help="a file, a folder or a name, as for `pyworker run`, or MODULE:APP, as for `pyworker deployment`",
    )
    parser.add_argument(
        "--log",
        type=Path,
        metavar="FILE",
        help="a log of the model server to replay (default: the worker's own, if it exists)",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(_: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from lib.tools.deployment_target import find_target
    from lib.tools.inspection import check_worker
    from lib.tools.worker_file import NoSuchWorker

    environ = environment()
    try:
        file = find_target(args.worker, Path.cwd(), environ.get("BACKEND", ""))
    except (NoSuchWorker, ValueError) as e:
        print_error("check", e)
        return EXIT_USAGE
    found = check_worker(file, environ, args.log.absolute() if args.log else None)
    print(found.as_json() if args.json else "\n".join(found.lines()))
    return EXIT_FAILED if found.failed else 0


COMMAND = Command(
    "find what is wrong with a worker before a GPU is rented",
    "Runs a worker's file up to where it would serve, and checks its settings, its declaration, the "
    "benchmark's payload and workload, and its log rules (with a log of the model server it shows which "
    "lines match). If the model server is up, its health check, the lifecycle and one request are tried. "
    "Prints one "
    "finding per line. The exit status is 1 if one of them is a problem.",
    configure,
    run,
)
