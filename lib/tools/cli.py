"""`pyworker`, the command line (launch.md).

Owns the commands, their arguments and exit statuses: 0 when all went well, 1 when it did not, 2 for what
can't work as it was asked (a port in use is one), 130 after Ctrl-C. What a command does is elsewhere, and
imported only once it is asked for: help comes at once.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

EXIT_FAILED = 1
EXIT_USAGE = 2
# What a shell makes of a process that a signal ended: this, and the signal's number.
EXIT_SIGNAL = 128
EXIT_INTERRUPTED = EXIT_SIGNAL + 2

# What the load test sends unless told otherwise: a request for the hello_world worker.
LOAD_ROUTE = "/generate"
LOAD_PAYLOAD: Mapping[str, Any] = {"prompt": "The White Rabbit", "max_response_tokens": 50}
LOAD_COST = 50.0


@dataclass(frozen=True)
class Command:
    """One subcommand. `configure` adds its arguments, `run` gives the exit status."""

    help: str
    description: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.ArgumentParser, argparse.Namespace], int]


class JsonPayload:
    """A payload as it was typed, of a workload as it was typed."""

    def __init__(self, message: Mapping[str, Any], cost: float) -> None:
        self._message = message
        self._cost = cost

    def generate_payload_json(self) -> Mapping[str, Any]:
        return self._message

    def count_workload(self) -> float:
        return self._cost


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


def _configure_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--once", action="store_true", default=argparse.SUPPRESS, help="stop once everything was shown"
    )


def _run_demo(_: argparse.ArgumentParser, args: argparse.Namespace) -> int:
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


def _configure_engine(parser: argparse.ArgumentParser) -> None:
    from lib.local.engine import DEFAULT_ENDPOINT, DEFAULT_PORT

    parser.add_argument("--port", type=_port, default=DEFAULT_PORT, help="where to listen; 0: any free port")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument(
        "--scheme", choices=("full", "url"), default="full", help="the form of the signatures it gives"
    )
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        type=_not_empty,
        default=argparse.SUPPRESS,
        help="the only API key to let in; without it, any is",
    )
    parser.add_argument(
        "--endpoint",
        metavar="NAME",
        type=_endpoint_name,
        default=DEFAULT_ENDPOINT,
        help="the endpoint that workers join",
    )


def _run_engine(_: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from lib.local.engine import CannotListen, run_engine
    from lib.logs import configure_logging

    configure_logging("INFO", "text")
    api_key: str | None = getattr(args, "api_key", None)
    try:
        asyncio.run(
            run_engine(args.host, args.port, scheme=args.scheme, api_key=api_key, endpoint=args.endpoint)
        )
    except CannotListen as e:
        print(f"pyworker engine: {e}", file=sys.stderr)
        return e.exit_status
    return 0


def _configure_load_test(parser: argparse.ArgumentParser) -> None:
    from lib.tools.load_test import add_load_arguments
    from lib.tools.route_client import add_target_arguments

    parser.formatter_class = argparse.HelpFormatter
    add_target_arguments(parser)
    add_load_arguments(parser)
    parser.add_argument(
        "--route", default=LOAD_ROUTE, metavar="PATH", help=f"the worker's route (default {LOAD_ROUTE})"
    )
    parser.add_argument(
        "--payload",
        type=_json_object,
        default=LOAD_PAYLOAD,
        metavar="JSON",
        help="what every request sends (default: a request for 50 tokens, for the hello_world worker)",
    )
    parser.add_argument(
        "--cost",
        type=_cost,
        default=LOAD_COST,
        metavar="NUMBER",
        help=f"a request's workload, in the worker's unit (default {LOAD_COST:g})",
    )


def _run_load_test(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from lib.tools.load_test import Plan, run_and_print
    from lib.tools.route_client import target_of

    route = args.route if args.route.startswith("/") else f"/{args.route}"
    plan = Plan(target_of(parser, args), route, args.n, args.rps)
    return run_and_print(plan, JsonPayload(args.payload, args.cost))


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError("must be 0 to 65535")
    return int(text)


def _not_empty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _endpoint_name(text: str) -> str:
    from lib.local.messages import wrong_endpoint_name

    if what := wrong_endpoint_name(text):
        raise argparse.ArgumentTypeError(what)
    return text


def _json_object(text: str) -> Mapping[str, Any]:
    try:
        value: object = json.loads(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('must be a JSON object: {"name": value}')
    return cast("dict[str, Any]", value)


def _cost(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError("must be a finite number, 0 or more")
    return number


COMMANDS: Mapping[str, Command] = {
    "demo": Command(
        "the whole system on this machine, no account and no GPU: try this first",
        "Starts the local engine, a model server that generates text, and the hello_world worker, each on "
        "ports that are free; sends a signed request whose answer comes whole and one whose answer is "
        "streamed; shows what the engine was told; then runs until Ctrl-C.",
        _configure_demo,
        _run_demo,
    ),
    "engine": Command(
        "a stand-in for the serverless engine, for development",
        "Runs the local engine until Ctrl-C: it signs requests, takes workers' reports and picks the worker "
        "for a request. A worker joins it when it is started with the engine's address as REPORT_ADDR; "
        "http://HOST:PORT/e/NAME joins the endpoint NAME. It is not a scheduler for production.",
        _configure_engine,
        _run_engine,
    ),
    "load-test": Command(
        "send requests to an endpoint and measure them",
        "Sends requests on time, whatever becomes of those before them, and prints what became of them and "
        "how long it took. The exit status is 0 if any succeeded. Workers have a test of their own besides, "
        "which sends what they take: python -m workers.NAME.test_load.",
        _configure_load_test,
        _run_load_test,
    ),
}


if __name__ == "__main__":
    sys.exit(main())
