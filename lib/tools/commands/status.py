"""`pyworker status`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys

from lib.tools.command import EXIT_FAILED, EXIT_USAGE, Command, port


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.HelpFormatter
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--port", type=port, help="the worker's loopback port (default: WORKER_HTTP_PORT, or WORKER_PORT + 1)"
    )
    where.add_argument("--url", help="where /status is, for a tunnel to another machine")
    parser.add_argument("--json", action="store_true", help="print what the worker says as it is")


def run(_: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from lib.errors import SettingsError
    from lib.local.screen import Screen
    from lib.runtime.settings import ports_in
    from lib.tools.status_page import NoStatus, fetch, show

    try:
        own_port = args.port or ports_in(os.environ)[1]  # noqa: TID251 - read by settings.py
        url: str = args.url or f"http://127.0.0.1:{own_port}"
        status = asyncio.run(fetch(url.removesuffix("/status").rstrip("/")))
    except SettingsError as e:
        print(f"pyworker status: {'; '.join(e.problems)}", file=sys.stderr)
        return EXIT_USAGE
    except NoStatus as e:
        print(f"pyworker status: {e}", file=sys.stderr)
        return EXIT_FAILED
    if args.json:
        print(json.dumps(status, indent=2))
    else:
        show(status, Screen())
    return 0


COMMAND = Command(
    "what the running worker is doing, and why it isn't ready",
    "Shows a running worker's own account: its state and how it came there, what its log rules have matched, "
    "its queue, its slowest requests, and its last reports with the engine's answers. Run it on the machine "
    "where the worker runs. The exit status is 1 if there is no worker.",
    configure,
    run,
)
