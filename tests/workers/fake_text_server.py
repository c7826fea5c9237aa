"""The base of the fake text model servers: their calls for tests, and how they run as processes.

Tests read the received requests (`GET /received`) and wait until a client has disconnected (`GET /left`).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

log = logging.getLogger("fake-server")


@dataclass(kw_only=True)
class FakeTextServer:
    """The server. `eos_after`: the maximum tokens of an answer. `requests` are the received ones."""

    eos_after: int | None = None
    requests: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    disconnected: asyncio.Event = field(default_factory=asyncio.Event)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**30)
        app.router.add_get("/health", self.health)
        app.router.add_get("/received", self.received)
        app.router.add_get("/left", self.left)
        return app

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def received(self, _: web.Request) -> web.Response:
        return web.json_response(self.requests)

    async def left(self, _: web.Request) -> web.Response:
        await self.disconnected.wait()
        return web.Response()


def arguments() -> argparse.ArgumentParser:
    """The arguments that all fake servers have."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--line", action="append", default=[], help="a line for the log, once it listens")
    parser.add_argument("--eos-after", type=int)
    return parser


def run(
    parser: argparse.ArgumentParser, make: Callable[[argparse.Namespace], FakeTextServer], log_format: str
) -> None:
    """Serve the server that `make` makes from the arguments, until SIGTERM."""
    options = parser.parse_args()
    handler = logging.FileHandler(options.log, encoding="utf-8")
    logging.basicConfig(level="INFO", format=log_format, handlers=[handler])
    asyncio.run(_serve(make(options), options))


async def _serve(server: FakeTextServer, options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    runner = web.AppRunner(server.app(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", options.port).start()
    for line in options.line:
        log.info("%s", line)
    sys.stdout.write(f"listening on http://127.0.0.1:{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await stop.wait()
    await runner.cleanup()
