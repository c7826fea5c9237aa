"""`pyworker demo`."""

from __future__ import annotations

import argparse
import os
import sys

from lib.tools.command import EXIT_FAILED, EXIT_SIGNAL, Command


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--once", action="store_true", default=argparse.SUPPRESS, help="stop once everything was shown"
    )


def run(_: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from lib.local.demo import demo
    from lib.local.processes import ChildFailed, Interrupted

    environ = os.environ  # noqa: TID251 - not read here, but handed on to the processes started
    try:
        demo(environ, once="once" in args)
    except ChildFailed as e:
        print(f"\npyworker demo: {e}", file=sys.stderr)
        return EXIT_FAILED
    except Interrupted as e:
        return EXIT_SIGNAL + e.signum
    return 0


COMMAND = Command(
    "the whole system on this machine, no account and no GPU: try this first",
    "Starts the local engine, a model server that generates text, and the hello_world worker, each on "
    "ports that are free; sends a signed request whose answer comes whole and one whose answer is "
    "streamed; shows what the engine was told; then runs until Ctrl-C.",
    configure,
    run,
)
