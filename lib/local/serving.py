"""Serves the local engine: listens, and prints the address.

Owns the socket and the line that `pyworker engine` prints. Does not own the engine's state (engine.py) or its
HTTP API (api.py), which is built on it here.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager

import anyio
from aiohttp import web

from lib.local.api import EngineApi
from lib.local.engine import DEFAULT_ENDPOINT, LocalEngine, first_reqnum_now
from lib.local.signer import Scheme
from lib.local.worker_watch import watched_workers
from lib.runtime.hosts import HostGuard

DEFAULT_PORT = 8081
# Connections waiting to be accepted; the system refuses more, so this allows for many clients at once.
BACKLOG = 4096
# Seconds that requests in progress have when the engine stops.
SHUTDOWN_LIMIT_S = 1.0


class CannotListen(Exception):
    """The address is in use or invalid; the text is one line that names the option to change.

    `exit_status` is for commands that end because of it.
    """

    exit_status = 2


@asynccontextmanager
async def serve_engine(
    engine: LocalEngine, host: str = "127.0.0.1", port: int = 0, allowed_hosts: Collection[str] = ()
) -> AsyncGenerator[str, None]:
    """Serve `engine` over HTTP and yield its base URL; port 0 takes a free one.

    `allowed_hosts` are names by which it may be asked for besides its address. Raises `CannotListen`.
    """
    runner = web.AppRunner(
        EngineApi(engine, HostGuard(host, allowed_hosts)).app(),
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=SHUTDOWN_LIMIT_S,
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
        except (OSError, OverflowError) as e:
            raise CannotListen(_listen_error(host, port, e)) from e
        yield _base_url(runner)
    finally:
        await runner.cleanup()


def _listen_error(host: str, port: int, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: choose another with --port"
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot listen on {host}, port {port} ({why}): choose another with --port or --host"


def _base_url(runner: web.AppRunner) -> str:
    """The URL of the first listening address; "all interfaces" becomes the loopback address."""
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
    allowed_hosts: Collection[str] = (),
    write_line: Callable[[str], object] | None = None,
    while_serving: Callable[[LocalEngine, str], Awaitable[None]] | None = None,
) -> None:
    """Print one line with the address, and serve a local engine until cancelled.

    The line goes to `write_line`, by default to standard output. `while_serving` is awaited with the engine
    and its URL; the engine stops when it returns. `allowed_hosts` are those of `serve_engine`. Raises
    `CannotListen`, whose text is to be printed and whose `exit_status` is the exit status.
    """
    engine = LocalEngine(scheme, api_key, endpoint, first_reqnum=first_reqnum_now())
    async with serve_engine(engine, host, port, allowed_hosts) as url, watched_workers(engine):
        (write_line or print_line)(
            f"local engine on {url} (endpoint {endpoint}, scheme {scheme}): "
            "a stand-in for development, not a production scheduler"
        )
        await (while_serving(engine, url) if while_serving else anyio.sleep_forever())


def print_line(line: str) -> None:
    """Print a line to standard output and flush it."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
