"""`pyworker request`: send one request and print the answer."""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING

from lib.runtime.exit_status import EXIT_FAILED
from lib.tools.command import Command, add_cost_argument, json_object, positive, print_error, route

if TYPE_CHECKING:
    from lib.client import Target
    from lib.tools.one_request import ErrorAnswer
    from lib.tools.request_style import RequestStyle

COST = 100.0


def configure(parser: argparse.ArgumentParser) -> None:
    from lib.client import add_target_arguments
    from lib.tools.request_style import add_style_arguments

    parser.formatter_class = argparse.HelpFormatter
    parser.add_argument(
        "route", metavar="ROUTE", type=route, help="the worker's route, for instance /generate"
    )
    parser.add_argument(
        "payload",
        metavar="JSON",
        nargs="?",
        type=json_object,
        default={},
        help="the payload, or @PATH for a file with it, or - for standard input (default: {})",
    )
    add_target_arguments(parser)
    add_style_arguments(parser)
    add_cost_argument(parser, COST)
    parser.add_argument(
        "--timeout",
        type=positive,
        metavar="SECONDS",
        help="give up without a complete answer after this time, and wait until then for a worker to join "
        "the endpoint (default: 600 s for a ready worker, any time for the answer)",
    )


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    import aiohttp

    from lib.client import EngineError, NoWorker, target_from_args
    from lib.tools.joined import NobodyJoined
    from lib.tools.one_request import ErrorAnswer, NoAnswer, send
    from lib.tools.request_style import style_from_args

    target, style = target_from_args(parser, args), style_from_args(parser, args)
    try:
        asyncio.run(send(target, args.route, args.payload, args.cost, style, args.timeout))
    except (aiohttp.ClientSSLError, aiohttp.ClientConnectorDNSError) as e:
        print_error("request", e)
    except aiohttp.ClientConnectorError as e:
        hint = "" if args.api_key else ": start the worker with pyworker run WORKER --local"
        print_error("request", f"nothing listens at {e.host}:{e.port}{hint}")
    except (NobodyJoined, NoWorker, EngineError) as e:
        print_error("request", e)
    except ErrorAnswer as e:
        print_error("request", e)
        if (hint := asyncio.run(_hint(target, style, e))) is not None:
            print_error("request", hint)
    except (NoAnswer, aiohttp.ClientError, asyncio.TimeoutError, OSError) as e:
        print_error("request", str(e) or type(e).__name__)
    else:
        return 0
    return EXIT_FAILED


async def _hint(target: Target, style: RequestStyle, error: ErrorAnswer) -> str | None:
    """The hint what to change in the command after `error`, if that is known."""
    from lib.tools.refusal_hints import file_hint, routes_hint

    if error.status == 404:
        return await routes_hint(target, "name one of the worker's routes")
    return file_hint(error.head) if error.status == 422 and not style.files else None


COMMAND = Command(
    "send one request to a worker and print the answer",
    "Asks the engine for a worker, sends it the payload, and prints the answer's body as it arrives. The "
    "exit status is 1 if the answer's status is 400 or above, or its body an error after a heartbeat's "
    "newlines, else 0.",
    configure,
    run,
)
