"""`pyworker load-test`: requests to an endpoint, and measurements of the answers."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from lib.tools.command import Command, add_cost_argument, json_object, print_error, route

if TYPE_CHECKING:
    from lib.tools.load_test import LoadTest

# The default request, which the hello_world worker accepts.
ROUTE = "/generate"
PAYLOAD: Mapping[str, Any] = {"prompt": "The White Rabbit", "max_response_tokens": 50}
COST = 50.0


class JsonPayload:
    """The payload and the workload from the command line."""

    def __init__(self, message: Mapping[str, Any], workload: float) -> None:
        self._message = message
        self._workload = workload

    def generate_payload_json(self) -> Mapping[str, Any]:
        return self._message

    def count_workload(self) -> float:
        return self._workload


def configure(parser: argparse.ArgumentParser) -> None:
    from lib.client import add_target_arguments
    from lib.tools.load_command import add_load_arguments
    from lib.tools.request_style import add_style_arguments

    parser.formatter_class = argparse.HelpFormatter
    add_target_arguments(parser)
    add_load_arguments(parser)
    parser.add_argument(
        "--route", type=route, default=ROUTE, metavar="PATH", help=f"the worker's route (default {ROUTE})"
    )
    parser.add_argument(
        "--payload",
        type=json_object,
        metavar="JSON",
        help="the payload of every request, or @PATH for a file with it, or - for standard input "
        "(default: 50 tokens from the hello_world worker; with --file: {})",
    )
    add_style_arguments(parser)
    add_cost_argument(parser, COST)


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from lib.tools.load_command import run_load_test
    from lib.tools.request_style import style_from_args

    style = style_from_args(parser, args)
    payload: Mapping[str, Any] = args.payload if args.payload is not None else {} if style.files else PAYLOAD
    is_default = payload is PAYLOAD
    return run_load_test(
        parser, args, args.route, JsonPayload(payload, args.cost), style, partial(_print_hint, is_default)
    )


def _print_hint(is_default: bool, test: LoadTest) -> None:
    """Print what to change after 404s and, with `is_default`, after 422s of the default payload."""
    from lib.tools.refusal_hints import routes_hint

    kinds = {kind for kind, _ in test.tally.failures}
    if "HTTP 404" in kinds or (is_default and "HTTP 422" in kinds):
        how = "name the worker's route with --route, and give a payload of it with --payload"
        print_error("load-test", asyncio.run(routes_hint(test.plan.target, how)))


COMMAND = Command(
    "send requests to an endpoint and measure them",
    "Sends requests at a fixed rate (-rps) or at a fixed concurrency (-c), and prints how many succeeded "
    "and how long they took. Ctrl-C stops it and prints the summary so far. The exit status is 0 if every "
    "request succeeded. Each ready-made worker has a load test with payloads of its own: python -m "
    "workers.NAME.test_load.",
    configure,
    run,
)
