"""start_server: sockets, TLS, routes, signals, drain; owner of every long-lived task.

Owns the worker's process from its first line to its exit status. What a request goes through is in
backend.py. Exit status: 0 after SIGTERM or SIGINT, 1 after an unexpected error, 2 when the settings can't
work, 3 when another process holds the port.
"""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import psutil
from aiohttp import web
from aiohttp.typedefs import Middleware
from anyio.abc import TaskGroup

from lib.backend import Backend
from lib.errors import SettingsError, async_result_or_error, refusals_as_json
from lib.life.running_worker import RunningWorker
from lib.model.readiness import Cause
from lib.request.exchange import note_head
from lib.routes.management import loopback_routes, public_routes, without
from lib.routes.sessions import end_route, session_routes
from lib.runtime.file_limit import raise_file_limit
from lib.runtime.logs import configure_logging
from lib.runtime.settings import LOOPBACK_HOSTS, Settings, from_environment
from lib.runtime.tls import Certificate

__all__ = ["EXIT_FAILED", "EXIT_PORT_TAKEN", "EXIT_SETTINGS", "run_server", "run_worker", "start_server"]

log = logging.getLogger(__name__)

EXIT_FAILED = 1
EXIT_SETTINGS = 2
EXIT_PORT_TAKEN = 3
# How long the last reports may take on shutdown.
FLUSH_LIMIT_S = 10.0
# How long connections may take to take their last bytes once no request is in flight.
CLOSE_LIMIT_S = 2.0
BACKLOG = 4096
# Proxies and address translators forget connections that are silent for a minute (lesson 32).
TCP_KEEP_ALIVE_S = 30


# Is given a worker in place of the sockets that would serve it; gives the exit status.
Inspector = Callable[[Backend, Sequence[web.AbstractRouteDef]], Awaitable[int]]
_inspector: ContextVar[Inspector | None] = ContextVar("inspector", default=None)


class PortTaken(Exception):
    """Another process listens on a port of the worker's."""


class Stop:
    """When the worker is to stop: `ask` once to drain, again to stop at once."""

    def __init__(self) -> None:
        self.asked = anyio.Event()
        self.at_once = anyio.Event()
        self.failed = False

    def ask(self) -> None:
        (self.at_once if self.asked.is_set() else self.asked).set()

    def fail(self) -> None:
        """Stop after an error that nothing foresaw: the exit status tells."""
        self.failed = True
        self.asked.set()


def start_server(
    backend: Backend,
    routes: Sequence[web.AbstractRouteDef],
    *,
    middlewares: Sequence[Middleware] = (),
    **site_kwargs: Any,
) -> None:
    """Serve `routes` until SIGTERM or SIGINT.

    `middlewares` run around every request of `Backend.create_handler`, the first one outermost, once it is
    authenticated and its payload is valid. `site_kwargs` go to `aiohttp.web.TCPSite` (host, backlog, …).
    Raises `SystemExit` with the exit statuses above, but for 0.
    """
    uses_uvloop = importlib.util.find_spec("uvloop") is not None
    status = anyio.run(
        partial(run_server, backend, routes, middlewares=middlewares, **site_kwargs),
        backend_options={"use_uvloop": uses_uvloop},
    )
    if status:
        raise SystemExit(status)


def run_worker(
    build: Callable[[Mapping[str, str]], tuple[Backend, Sequence[web.AbstractRouteDef]]],
    environ: Mapping[str, str],
    **site_kwargs: Any,
) -> None:
    """`start_server` with what `build` makes of the environment.

    The `SettingsError` of an environment that can't work is told, and is exit status 2.
    """
    try:
        backend, routes = build(environ)
    except SettingsError as e:
        print(e, file=sys.stderr)  # noqa: T201 - there may be no logging yet
        raise SystemExit(EXIT_SETTINGS) from e
    start_server(backend, routes, **site_kwargs)


async def run_server(
    backend: Backend,
    routes: Sequence[web.AbstractRouteDef],
    *,
    middlewares: Sequence[Middleware] = (),
    **site_kwargs: Any,
) -> int:
    """Like `start_server`, on the running event loop; return the process's exit status."""
    backend.middlewares.extend(middlewares)
    inspect = _inspector.get()
    if inspect is not None:
        return await inspect(backend, routes)
    try:
        settings = from_environment()
        configure_logging(settings.log_level, settings.log_format)
        warnings.filterwarnings("ignore", message=".*RequestKey")  # `client_request["outcome"]` is our API
        raise_file_limit()
        return await _serve_until_signal(backend, routes, settings, site_kwargs)
    except SettingsError as e:
        print(e, file=sys.stderr)  # noqa: T201 - there may be no logging yet
        return EXIT_SETTINGS
    except PortTaken as e:
        log.error("%s", e)
        return EXIT_PORT_TAKEN


@contextmanager
def inspected_by(inspector: Inspector) -> Generator[None, None, None]:
    """A worker that would be served inside the block is handed to `inspector` instead, on its event loop.

    It is how `pyworker check` sees what a worker's own file makes, without serving it.
    """
    token = _inspector.set(inspector)
    try:
        yield
    finally:
        _inspector.reset(token)


async def serve(
    backend: Backend,
    routes: Sequence[web.AbstractRouteDef],
    settings: Settings,
    stop: Stop,
    *,
    directory: Path,
    started: Callable[[RunningWorker], None] | None = None,
    **site_kwargs: Any,
) -> int:
    """Serve until `stop` is asked; the process's exit status.

    `directory` keeps the saved benchmark; `started` is called once the sockets listen. Raises
    `SettingsError` and `PortTaken`.
    """
    tls = Certificate(settings.ssl_cert, settings.ssl_key, backend.clock) if settings.use_ssl else None
    site_kwargs["ssl_context"] = tls and tls.context
    # Not a task group's `start_soon`: a timer's callback, on an author's loop, is nowhere that anyio knows.
    spawned: _Calls = asyncio.Queue()
    async with (
        backend.run_with(settings, directory, spawned.put_nowait, _process_age_s()) as running,
        _listening(backend, routes, settings, site_kwargs) as sockets,
        anyio.create_task_group() as life,
    ):
        async with _calls(spawned, sockets):
            for name, task in running.tasks().items():
                life.start_soon(_run, task, name, running, stop, name=name)
            if tls is not None:
                life.start_soon(_run, tls.follow, "certificate", running, stop, name="certificate")
            if started is not None:
                started(running)
            await stop.asked.wait()
            await _drain(backend, running, settings, stop)
            if backend.metrics.unfinished:
                log.warning("%d requests are cut: they did not finish in time", backend.metrics.unfinished)
                running.cut()
                sockets.abort()
            await _unless_at_once(stop, running.leave_handlers)
        with anyio.move_on_after(CLOSE_LIMIT_S):
            await backend.metrics.emptied()
        await _unless_at_once(stop, partial(running.engine.finish, FLUSH_LIMIT_S))
        life.cancel_scope.cancel()
    return EXIT_FAILED if stop.failed or stop.at_once.is_set() else 0


async def _serve_until_signal(
    backend: Backend, routes: Sequence[web.AbstractRouteDef], settings: Settings, site_kwargs: dict[str, Any]
) -> int:
    stop, loop = Stop(), asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    for number in numbers:
        loop.add_signal_handler(number, stop.ask)
    try:
        directory = Path.cwd() / settings.benchmark_dir
        return await serve(backend, routes, settings, stop, directory=directory, **site_kwargs)
    finally:
        for number in numbers:  # the loop may be an author's, and go on
            loop.remove_signal_handler(number)


async def _run(task: Callable[[], Awaitable[None]], name: str, running: RunningWorker, stop: Stop) -> None:
    """A long-lived task; an error that it can't name ends the worker."""
    failure = await async_result_or_error(task())
    if failure is not None:
        log.error("%s failed: the worker stops", name, exc_info=failure)
        running.readiness.fail(Cause.WORKER, f"{name} failed: {failure!r}")
        stop.fail()


async def _drain(backend: Backend, running: RunningWorker, settings: Settings, stop: Stop) -> None:
    """Let what is in flight finish, for `DRAIN_TIMEOUT_S` at most; a second signal ends that at once."""
    running.drain()
    log.info("stopping: %d requests in flight", backend.metrics.unfinished)
    with anyio.move_on_after(settings.drain_timeout_s):
        await _unless_at_once(stop, backend.metrics.emptied)


async def _unless_at_once(stop: Stop, work: Callable[[], Awaitable[object]]) -> None:
    """Do `work`, to its end or until a second signal asks to stop at once."""
    async with anyio.create_task_group() as group:

        async def hurry() -> None:
            await stop.at_once.wait()
            group.cancel_scope.cancel()

        group.start_soon(hurry)
        await work()
        group.cancel_scope.cancel()


class _Sockets:
    """The servers behind the public and the loopback port."""

    def __init__(self, *runners: web.AppRunner) -> None:
        self._runners = runners

    def abort(self) -> None:
        """Cut every connection: what is on them ends at once."""
        for runner in self._runners:
            for connection in runner.server.connections if runner.server else ():
                if connection.transport is not None:
                    connection.transport.abort()

    async def close(self) -> None:
        """Listen no more; connections have a moment to take their last bytes."""
        with anyio.CancelScope(shield=True):
            for runner in self._runners:
                await runner.cleanup()


@asynccontextmanager
async def _listening(
    backend: Backend,
    routes: Sequence[web.AbstractRouteDef],
    settings: Settings,
    site_kwargs: dict[str, Any],
) -> AsyncGenerator[_Sockets, None]:
    """Both sockets listen inside the block. Raises `PortTaken`, bare: in no group."""
    own = [*public_routes(backend), *session_routes(backend)]
    public = _runner([*routes, *without(own, routes)], settings)
    loopback = _runner([*loopback_routes(backend, routes), end_route(backend)], settings)
    options: dict[str, Any] = {"port": settings.worker_port, "backlog": BACKLOG, **site_kwargs}
    if settings.worker_host is not None:
        options["host"] = settings.worker_host
    _warn_of_addresses(settings)
    sockets = _Sockets(public, loopback)
    try:
        await _listen(public, options)
        await _listen(loopback, {"host": settings.worker_http_host, "port": settings.worker_http_port})
        log.info("listening on port %d, public URL %s", settings.worker_port, settings.public_url)
        yield sockets
    finally:
        await sockets.close()


_Calls = asyncio.Queue[Callable[[], Coroutine[Any, Any, None]]]


@asynccontextmanager
async def _calls(spawned: _Calls, sockets: _Sockets) -> AsyncGenerator[None, None]:
    """Run the calls in `spawned` inside the block; leaving it ends them, and the requests with them."""
    async with anyio.create_task_group() as calls:
        calls.start_soon(_start_each, calls, spawned)
        try:
            yield
        finally:
            await sockets.close()
            calls.cancel_scope.cancel()


async def _start_each(calls: TaskGroup, spawned: _Calls) -> None:
    while True:
        calls.start_soon(await spawned.get())


def _runner(routes: Sequence[web.AbstractRouteDef], settings: Settings) -> web.AppRunner:
    app = web.Application(client_max_size=settings.max_json_bytes, middlewares=[refusals_as_json])
    app.on_response_prepare.append(note_head)
    app.add_routes(routes)
    return web.AppRunner(
        app, access_log=None, handler_cancellation=True, auto_decompress=False, shutdown_timeout=CLOSE_LIMIT_S
    )


def _warn_of_addresses(settings: Settings) -> None:
    """Warn of ports that others may reach though nothing is checked there."""
    if settings.engine == "none" and settings.worker_host not in LOOPBACK_HOSTS:
        log.warning(
            "ENGINE=none and WORKER_HOST=%s: whoever reaches port %d there may use the worker",
            *(settings.worker_host, settings.worker_port),
        )
    if settings.worker_http_host not in LOOPBACK_HOSTS:
        log.warning(
            "WORKER_HTTP_HOST=%s: whoever reaches port %d there may read /status and /metrics",
            *(settings.worker_http_host, settings.worker_http_port),
        )


class _Site(web.TCPSite):
    """A site whose connections show the network that they are in use, and soon find out when they are not."""

    async def start(self) -> None:
        await super().start()
        for listening in cast(asyncio.Server, self._server).sockets:
            # A duplicate, since uvloop's own objects take no options; what is accepted inherits them.
            with socket.socket(fileno=os.dup(listening.fileno())) as same:
                same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                same.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, TCP_KEEP_ALIVE_S)
                same.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, TCP_KEEP_ALIVE_S)


async def _listen(runner: web.AppRunner, options: dict[str, Any]) -> None:
    await runner.setup()
    try:
        await _Site(runner, **options).start()
    except OSError as e:
        if e.errno != errno.EADDRINUSE:
            raise
        raise PortTaken(f"port {options['port']} is taken by {_holder(options['port'])}") from e


def _holder(port: int) -> str:
    """Which process listens on `port`, as far as this one may see."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                if connection.pid is None:
                    break
                process = psutil.Process(connection.pid)
                return f"process {connection.pid} ({' '.join(process.cmdline()) or process.name()})"
    except psutil.Error:  # it may not be looked at, or is gone by now
        pass
    return "another process"


def _process_age_s() -> float:
    return max(0.0, time.time() - psutil.Process().create_time())
