"""`pyworker engine`."""

from __future__ import annotations

import argparse
import asyncio
import sys

from lib.tools.command import Command, not_empty, port


def configure(parser: argparse.ArgumentParser) -> None:
    from lib.local.engine import DEFAULT_ENDPOINT, DEFAULT_PORT

    parser.add_argument("--port", type=port, default=DEFAULT_PORT, help="where to listen; 0: any free port")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument(
        "--scheme", choices=("full", "url"), default="full", help="the form of the signatures it gives"
    )
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        type=not_empty,
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


def run(_: argparse.ArgumentParser, args: argparse.Namespace) -> int:
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


def _endpoint_name(text: str) -> str:
    from lib.local.messages import wrong_endpoint_name

    if what := wrong_endpoint_name(text):
        raise argparse.ArgumentTypeError(what)
    return text


COMMAND = Command(
    "a stand-in for the serverless engine, for development",
    "Runs the local engine until Ctrl-C: it signs requests, takes workers' reports and picks the worker "
    "for a request. A worker joins it when it is started with the engine's address as REPORT_ADDR; "
    "http://HOST:PORT/e/NAME joins the endpoint NAME. It is not a scheduler for production.",
    configure,
    run,
)
