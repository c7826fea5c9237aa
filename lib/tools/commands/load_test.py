"""`pyworker load-test`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from lib.tools.command import Command, cost, json_object

# What is sent unless told otherwise: a request for the hello_world worker.
ROUTE = "/generate"
PAYLOAD: Mapping[str, Any] = {"prompt": "The White Rabbit", "max_response_tokens": 50}
COST = 50.0


class JsonPayload:
    """A payload as it was typed, of a workload as it was typed."""

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

    parser.formatter_class = argparse.HelpFormatter
    add_target_arguments(parser)
    add_load_arguments(parser)
    parser.add_argument(
        "--route", default=ROUTE, metavar="PATH", help=f"the worker's route (default {ROUTE})"
    )
    parser.add_argument(
        "--payload",
        type=json_object,
        default=PAYLOAD,
        metavar="JSON",
        help="what every request sends (default: a request for 50 tokens, for the hello_world worker)",
    )
    parser.add_argument(
        "--cost",
        type=cost,
        default=COST,
        metavar="NUMBER",
        help=f"a request's workload, in the worker's unit (default {COST:g})",
    )


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from lib.tools.load_command import run_load_test

    route = args.route if args.route.startswith("/") else f"/{args.route}"
    return run_load_test(parser, args, route, JsonPayload(args.payload, args.cost))


COMMAND = Command(
    "send requests to an endpoint and measure them",
    "Sends requests on time, whatever becomes of those before them (-rps), or so many at once (-c), and "
    "prints what became of them and how long it took; Ctrl-C ends it, and prints what there is. The exit "
    "status is 0 if all succeeded. Workers have a test of their own besides, which sends what they take: "
    "python -m workers.NAME.test_load.",
    configure,
    run,
)
