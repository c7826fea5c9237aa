"""`pyworker request`."""

from __future__ import annotations

import argparse
import asyncio
import sys

from lib.tools.command import EXIT_FAILED, Command, cost, json_object

COST = 100.0


def configure(parser: argparse.ArgumentParser) -> None:
    from lib.client import add_target_arguments

    parser.formatter_class = argparse.HelpFormatter
    parser.add_argument("route", metavar="ROUTE", help="the worker's route, as /generate")
    parser.add_argument(
        "payload", metavar="JSON", nargs="?", type=json_object, default={}, help="what to send"
    )
    add_target_arguments(parser)
    parser.add_argument(
        "--cost",
        type=cost,
        default=COST,
        metavar="NUMBER",
        help=f"the request's workload, in the worker's unit (default {COST:g})",
    )


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    import aiohttp

    from lib.client import EngineError, NoWorker, target_from_args
    from lib.tools.one_request import Refused, send

    route = args.route if args.route.startswith("/") else f"/{args.route}"
    target = target_from_args(parser, args)
    try:
        asyncio.run(send(target, route, args.payload, args.cost))
    except aiohttp.ClientConnectorError as e:
        what = f"nothing listens at http://{e.host}:{e.port}"
        hint = "" if args.api_key else ": start the worker with pyworker run WORKER --local"
        print(f"pyworker request: {what}{hint}", file=sys.stderr)
    except (Refused, NoWorker, EngineError, aiohttp.ClientError) as e:
        print(f"pyworker request: {e or type(e).__name__}", file=sys.stderr)
    else:
        return 0
    return EXIT_FAILED


COMMAND = Command(
    "send a worker one request, and print the answer as it comes",
    "Asks the engine for a worker, sends it the payload, and prints the answer's body as it comes. The exit "
    "status is 0 for an answer below 400.",
    configure,
    run,
)
