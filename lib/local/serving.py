"""The local engine's listening: where it is served, and what is said of that.

Owns the socket and the line that `pyworker engine` prints. What the engine does is in engine.py.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
from aiohttp import web

from lib.local.api import EngineApi
from lib.local.engine import DEFAULT_ENDPOINT, LocalEngine
from lib.local.signer import Scheme
from lib.runtime.clock import SystemClock

DEFAULT_PORT = 8081
# Clients that come at once wait here to be let in; past it the system cuts their connections.
BACKLOG = 4096
# A request that is still being read when the engine stops has this long, in seconds.
SHUTDOWN_LIMIT_S = 1.0


class CannotListen(Exception):
    """The address is taken or can't be had; one line that names the flag to change."""

    exit_status = 2


@asynccontextmanager
async def serve_engine(
    engine: LocalEngine, host: str = "127.0.0.1", port: int = 0
) -> AsyncGenerator[str, None]:
    """Serve `engine` and give its base URL; port 0 takes a free one. Raises `CannotListen`."""
    runner = web.AppRunner(
        EngineApi(engine).app(),
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=SHUTDOWN_LIMIT_S,
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
        except (OSError, OverflowError) as e:
            raise CannotListen(_why_not(host, port, e)) from e
        yield _base_url(runner)
    finally:
        await runner.cleanup()


def _why_not(host: str, port: int, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: choose another with --port"
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot listen on {host}, port {port} ({why}): choose another with --port or --host"


def _base_url(runner: web.AppRunner) -> str:
    """The first address listened on; one that means every interface is given as this machine's own."""
    address: tuple[str, int] = runner.addresses[0][:2]
    host, port = address
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def run_engine(
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    *,
    scheme: Scheme = "full",
    api_key: str | None = None,
    endpoint: str = DEFAULT_ENDPOINT,
    tell: Callable[[str], object] | None = None,
    beside: Callable[[LocalEngine, str], Awaitable[None]] | None = None,
) -> None:
    """Serve a local engine until cancelled, having told in one line where and what it is.

    The line goes to `tell`, by default to standard output. `beside` is run with the engine and its URL, and
    the engine ends when it does. Raises `CannotListen`, whose text is what to print and whose `exit_status`
    is what to exit with.
    """
    # A worker remembers the highest reqnum it took: an engine that is started anew must not begin below.
    engine = LocalEngine(scheme, api_key, endpoint, first_reqnum=int(SystemClock().wall() * 1000))
    async with serve_engine(engine, host, port) as url:
        (tell or print_line)(
            f"local engine on {url} (endpoint {endpoint}, scheme {scheme}): "
            "a stand-in for development, not a production scheduler"
        )
        await (beside(engine, url) if beside else anyio.sleep_forever())


def print_line(line: str) -> None:
    """To standard output, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
