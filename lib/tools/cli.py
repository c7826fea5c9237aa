"""`pyworker`, the command line (launch.md).

Owns how a command is found among the words typed. What a command takes and does is in commands/, and what
it needs is imported only once it is asked for: help comes at once.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import cast

from lib import __version__
from lib.tools.command import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, Command
from lib.tools.commands import check, demo, engine, load_test, new, request, run, status

COMMANDS: Mapping[str, Command] = {
    "demo": demo.COMMAND,
    "new": new.COMMAND,
    "run": run.COMMAND,
    "request": request.COMMAND,
    "status": status.COMMAND,
    "check": check.COMMAND,
    "engine": engine.COMMAND,
    "load-test": load_test.COMMAND,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names, by default the process's own arguments; gives the exit status.

    Raises `SystemExit` for wrong arguments and for help, as argparse does.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough (`| head`); nothing is left to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _dispatch(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="pyworker",
        description="The worker in front of a model server on a rented GPU, and what helps to write one.",
        epilog="`pyworker COMMAND --help` tells a command's arguments. Start with `pyworker demo`.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
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
            sub.set_defaults(command=command, parser=sub)
    if wanted is not None and wanted not in COMMANDS:
        parser.error(_no_such(wanted))
    args = parser.parse_args(words)
    if wanted is None:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    return cast(Command, args.command).run(args.parser, args)


def _no_such(word: str) -> str:
    alike = difflib.get_close_matches(word, COMMANDS, n=1)
    hint = f"did you mean {alike[0]!r}?" if alike else f"there are {', '.join(COMMANDS)}"
    return f"there is no command {word!r}: {hint}"


if __name__ == "__main__":
    sys.exit(main())
