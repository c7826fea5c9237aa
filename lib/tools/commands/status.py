"""`pyworker status`: show what a running worker is doing."""

from __future__ import annotations

import argparse
import asyncio
import json

from lib.runtime.exit_status import EXIT_FAILED
from lib.tools.command import EXIT_USAGE, Command, environment, http_url, port, positive, print_error

WATCH_S = 2.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.HelpFormatter
    address = parser.add_mutually_exclusive_group()
    address.add_argument(
        "--port", type=port, help="the worker's loopback port (default: WORKER_HTTP_PORT, or WORKER_PORT + 1)"
    )
    address.add_argument(
        "--url", type=http_url, help="the URL of the loopback port, for a tunnel to another machine"
    )
    parser.add_argument("--json", action="store_true", help="print the worker's /status as JSON")
    parser.add_argument(
        "--watch",
        type=positive,
        nargs="?",
        const=WATCH_S,
        metavar="SECONDS",
        help=f"show it again at this interval, by default every {WATCH_S:g} s, until Ctrl-C",
    )


def run(_: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from lib.errors import SettingsError
    from lib.local.screen import Screen
    from lib.runtime.settings import ports_in
    from lib.tools.status_page import NoStatus, fetch, show
    from lib.tools.status_watch import watch

    try:
        loopback_port = args.port or ports_in(environment())[1]
        given: str = args.url or f"http://127.0.0.1:{loopback_port}"
        url = given.removesuffix("/status").rstrip("/")
        if args.watch is not None:
            asyncio.run(watch(url, args.watch, as_json=args.json))
            return 0
        status = asyncio.run(fetch(url))
    except SettingsError as e:
        print_error("status", "; ".join(e.problems))
        return EXIT_USAGE
    except NoStatus as e:
        print_error("status", e)
        return EXIT_FAILED
    if args.json:
        print(json.dumps(status, indent=2))
    else:
        show(status, Screen())
    return 0


COMMAND = Command(
    "show what the running worker is doing, and why it isn't ready",
    "Shows the /status of a running worker: its state and state changes, the matches of its log rules, its "
    "queue, its slowest requests, and its last reports with the engine's answers. Run it on the machine "
    "where the worker runs. The exit status is 1 if no worker answers; with --watch, it is 0 after Ctrl-C.",
    configure,
    run,
)
