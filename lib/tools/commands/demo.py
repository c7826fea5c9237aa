"""`pyworker demo`: engine, model server and worker on this machine."""

from __future__ import annotations

import argparse
import sys

from lib.runtime.exit_status import EXIT_FAILED
from lib.tools.command import EXIT_SIGNAL, Command, environment, print_error


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--once", action="store_true", default=argparse.SUPPRESS, help="stop after the demonstration"
    )


def run(_: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from lib.local.demo import demo
    from lib.local.processes import ChildFailed, Interrupted

    try:
        demo(environment(), once="once" in args)
    except ChildFailed as e:
        print(file=sys.stderr)  # separates it from the output of the demonstration
        print_error("demo", e)
        return EXIT_FAILED
    except Interrupted as e:
        return EXIT_SIGNAL + e.signum
    return 0


COMMAND = Command(
    "see the whole system on this machine, without an account or a GPU: try this first",
    "Starts the local engine, a model server that generates text, and the hello_world worker, on free "
    "ports. Sends one signed request with a complete answer and one with a streamed answer, shows the "
    "worker's reports to the engine, and runs until Ctrl-C.",
    configure,
    run,
)
