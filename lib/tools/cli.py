"""The command line `pyworker`.

Owns the choice of a command by its name. The arguments and actions of the commands are in
lib/tools/commands/. They import what they need only when they are run, so that `--help` is fast.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Mapping, Sequence

from lib import __version__
from lib.runtime.exit_status import EXIT_FAILED
from lib.tools.command import EXIT_INTERRUPTED, EXIT_USAGE, Command
from lib.tools.commands import (
    benchmark,
    check,
    demo,
    deployment,
    engine,
    load_test,
    migrate,
    new,
    request,
    run,
    status,
)

COMMANDS: Mapping[str, Command] = {
    "demo": demo.COMMAND,
    "new": new.COMMAND,
    "run": run.COMMAND,
    "deployment": deployment.COMMAND,
    "request": request.COMMAND,
    "status": status.COMMAND,
    "check": check.COMMAND,
    "migrate": migrate.COMMAND,
    "benchmark": benchmark.COMMAND,
    "engine": engine.COMMAND,
    "load-test": load_test.COMMAND,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names, by default the process's own arguments; return the exit status.

    Raises `SystemExit` for wrong arguments (status 2), `--help` and `--version` (status 0), as argparse does.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone (`| head`). Python would fail to flush standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _dispatch(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="pyworker",
        description="Run, test and develop workers, which stand in front of a model server on a rented GPU.",
        epilog="`pyworker COMMAND --help` lists the arguments of a command. Start with `pyworker demo`.",
    )
    parser.add_argument(
        "--version", action="version", help="print the version and exit", version=f"%(prog)s {__version__}"
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    parsers: dict[str, argparse.ArgumentParser] = {}
    wanted = next((word for word in words if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        sub = subparsers.add_parser(
            name,
            help=command.help,
            description=command.description,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        if name == wanted:
            command.configure(sub)
            parsers[name] = sub
    if wanted is None:
        parser.parse_args(words)
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    if wanted not in COMMANDS:
        parser.error(_unknown_command(wanted))
    begin = words.index(wanted)
    parser.parse_args(words[:begin])
    # By itself, so that a positional argument may follow options, and an error shows this command's usage.
    return COMMANDS[wanted].run(parsers[wanted], parsers[wanted].parse_intermixed_args(words[begin + 1 :]))


def _unknown_command(word: str) -> str:
    similar = difflib.get_close_matches(word, COMMANDS, n=1)
    hint = f"did you mean {similar[0]!r}?" if similar else f"choose from {', '.join(COMMANDS)}"
    return f"unknown command {word!r}: {hint}"


if __name__ == "__main__":
    sys.exit(main())
