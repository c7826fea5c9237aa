"""start_server: a worker's process, from its first line to its exit status.

Owns signals, every long-lived task and the order in which a worker stops. The sockets are in
lib/life/sockets.py, the assembly of a worker is in lib/life/running_worker.py, and the life of a request is
in lib/backend.py. The process's exit status is 0 after SIGTERM or SIGINT, 1 after an unexpected error or a
second signal, 2 when the settings can't work, and 3 when another process uses the port.
"""

from __future__ import annotations

import asyncio
import codecs
import gc
import importlib.util
import logging
import signal
import threading
import time
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import psutil
from aiohttp import web
from aiohttp.typedefs import Middleware
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync as in_thread

from lib.access.spool import sweep
from lib.backend import Backend
from lib.errors import SettingsError, async_result_or_error, print_refusal
from lib.front.front import CLOSE_LIMIT_S
from lib.life.journaling import journaled
from lib.life.loop_watch import loop_watched
from lib.life.running_worker import RunningWorker
from lib.life.sockets import PortTaken, Sockets, listening
from lib.life.stop import Stop
from lib.model.readiness import Cause
from lib.model.readiness_log import ReadinessLog
from lib.request.wildcard import wildcard
from lib.routes.management import (
    loading_reasons,
    loopback_routes,
    public_routes,
    readiness_line,
    without,
)
from lib.routes.sessions import end_route, session_routes
from lib.runtime.exit_status import EXIT_FAILED, EXIT_PORT_TAKEN, EXIT_SETTINGS
from lib.runtime.file_limit import raise_file_limit
from lib.runtime.large_blocks import map_large_blocks
from lib.runtime.logs import configure_logging
from lib.runtime.settings import Settings, from_environment
from lib.runtime.tls import Certificate

__all__ = [
    "EXIT_FAILED",
    "EXIT_PORT_TAKEN",
    "EXIT_SETTINGS",
    "run_server",
    "run_worker",
    "start_server",
    "start_server_async",
    "wildcard",
]

log = logging.getLogger(__name__)

# Seconds that the last reports may take when the worker stops.
FLUSH_LIMIT_S = 10.0

# Called with a worker instead of serving it; returns the exit status.
Inspector = Callable[[Backend, Sequence[web.AbstractRouteDef]], Awaitable[int]]
_inspector: ContextVar[Inspector | None] = ContextVar("inspector", default=None)
# Set once this process has begun to serve a worker, in whatever thread.
BEGUN = threading.Event()


def start_server(
    backend: Backend,
    routes: Sequence[web.AbstractRouteDef],
    *,
    middlewares: Sequence[Middleware] = (),
    **site_kwargs: Any,
) -> None:
    """Serve `routes` until SIGTERM or SIGINT.

    `middlewares` run around every request to a handler of `Backend.create_handler`, the first one outermost,
    after the request is authenticated and its payload is valid. `site_kwargs` go to `aiohttp.web.TCPSite`
    (host, backlog, …). Raises `SystemExit` for an exit status other than 0.
    """
    # It is installed on Linux only (pyproject.toml).
    uses_uvloop = importlib.util.find_spec("uvloop") is not None
    status = anyio.run(
        partial(run_server, backend, routes, middlewares=middlewares, **site_kwargs),
        backend_options={"use_uvloop": uses_uvloop},
    )
    if status:
        raise SystemExit(status)


async def start_server_async(
    backend: Backend,
    routes: Sequence[web.AbstractRouteDef],
    *,
    middlewares: Sequence[Middleware] = (),
    **site_kwargs: Any,
) -> None:
    """Serve like `start_server`, on the running event loop. Raises `SystemExit` for any exit status but 0."""
    status = await run_server(backend, routes, middlewares=middlewares, **site_kwargs)
    if status:
        raise SystemExit(status)


def run_worker(
    build: Callable[[Mapping[str, str]], tuple[Backend, Sequence[web.AbstractRouteDef]]],
    environ: Mapping[str, str],
    **site_kwargs: Any,
) -> None:
    """Serve the backend and the routes that `build` returns for the environment, like `start_server`.

    If `build` raises `SettingsError`, its message is printed and the exit status is 2.
    """
    try:
        backend, routes = build(environ)
    except SettingsError as e:
        print_refusal(e)
        raise SystemExit(EXIT_SETTINGS) from e
    start_server(backend, routes, **site_kwargs)


async def run_server(
    backend: Backend,
    routes: Sequence[web.AbstractRouteDef],
    *,
    middlewares: Sequence[Middleware] = (),
    **site_kwargs: Any,
) -> int:
    """Serve like `start_server`, on the running event loop; return the exit status."""
    backend.middlewares.extend(m for m in middlewares if m not in backend.middlewares)
    inspect = _inspector.get()
    if inspect is not None:
        return await inspect(backend, routes)
    BEGUN.set()
    try:
        settings = from_environment()
        configure_logging(settings.log_level, settings.log_format, settings.model_api_key)
        warnings.filterwarnings("ignore", message=".*RequestKey")  # `client_request["outcome"]` is our API
        raise_file_limit()
        if settings.use_ssl:
            map_large_blocks()
        await in_thread(sweep)
        gc.freeze()  # what is imported stays: the garbage collector need not look at it again and again
        # Those of envelopes and of host names. Their first use opens files, and later none may be left.
        for codec in ("utf-8-sig", "idna"):
            codecs.lookup(codec)
        return await _serve_until_signal(backend, routes, settings, site_kwargs)
    except SettingsError as e:
        print_refusal(e)
        return EXIT_SETTINGS
    except PortTaken as e:
        log.error("%s", e)
        return EXIT_PORT_TAKEN
    except Exception:
        # Not left to the interpreter, which would wait for whoever reads standard error.
        log.critical("the worker has failed", exc_info=True)
        return EXIT_FAILED


@contextmanager
def inspected_by(inspector: Inspector) -> Generator[None, None, None]:
    """Inside the block, call `inspector` with a worker instead of serving it, on the worker's event loop.

    `pyworker check` uses this to examine the worker that a file makes.
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
    """Serve until `stop` asks to drain; return the exit status.

    `directory` holds the saved benchmark; `started` is called once the sockets listen. Raises
    `SettingsError` and `PortTaken`.
    """
    tls = Certificate(settings.ssl_cert, settings.ssl_key, backend.clock) if settings.use_ssl else None
    site_kwargs["ssl_context"] = tls and tls.context
    # `spawn` is also called by timers, outside any task, where a task group's `start_soon` fails.
    spawned: _Calls = asyncio.Queue()
    async with (
        backend.run_with(settings, directory, spawned.put_nowait, _process_age_s()) as running,
        listening(
            *_routes(backend, routes),
            backend.direct_routes(routes) if settings.carrier == "direct" else {},
            settings,
            running.engine.public_url,
            running.strangers,
            backend.timings.answers,
            site_kwargs,
        ) as sockets,
        journaled(running, backend.metrics, backend.clock),
        anyio.create_task_group() as life,
    ):
        stop.on_immediate = running.abandon
        async with _calls(spawned, sockets):
            for name, task in running.tasks().items():
                life.start_soon(_run, task, name, running, stop, name=name)
            readiness_log = ReadinessLog(running.readiness, partial(readiness_line, backend))
            life.start_soon(_run, readiness_log.follow, "readiness log", running, stop, name="readiness log")
            load_watch = running.load_watch(partial(loading_reasons, backend))
            life.start_soon(_run, load_watch.follow, "load watch", running, stop, name="load watch")
            if tls is not None:
                life.start_soon(_run, tls.follow, "certificate", running, stop, name="certificate")
            if started is not None:
                started(running)
            await stop.asked.wait()
            await _drain(backend, running, settings, stop)
            if backend.metrics.unfinished:
                log.warning(
                    "%d requests did not finish in time: they are aborted", backend.metrics.unfinished
                )
                running.cut()
                sockets.abort()
                backend.metrics.abandon_own_requests()
        with anyio.move_on_after(CLOSE_LIMIT_S):
            await backend.metrics.emptied()
        await stop.run_unless_immediate(running.leave_handlers)
        await stop.run_unless_immediate(partial(running.engine.finish, FLUSH_LIMIT_S))
        life.cancel_scope.cancel()
    return EXIT_FAILED if stop.failed or stop.immediate.is_set() else 0


async def _serve_until_signal(
    backend: Backend, routes: Sequence[web.AbstractRouteDef], settings: Settings, site_kwargs: dict[str, Any]
) -> int:
    stop, loop = Stop(), asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    for number in numbers:
        loop.add_signal_handler(number, stop.ask)
    try:
        directory = Path.cwd() / settings.benchmark_dir
        with loop_watched():
            return await serve(backend, routes, settings, stop, directory=directory, **site_kwargs)
    finally:
        for number in numbers:  # the event loop may be the author's, and outlive the worker
            loop.remove_signal_handler(number)


async def _run(task: Callable[[], Awaitable[None]], name: str, running: RunningWorker, stop: Stop) -> None:
    """Run a long-lived task; an error that it doesn't handle stops the worker."""
    failure = await async_result_or_error(task())
    if failure is not None:
        log.error("%s failed: the worker stops", name, exc_info=failure)
        running.readiness.set_error(Cause.WORKER, f"{name} failed: {failure!r}")
        stop.fail()


async def _drain(backend: Backend, running: RunningWorker, settings: Settings, stop: Stop) -> None:
    """Let requests in flight finish, for at most `DRAIN_TIMEOUT_S` and until a second signal."""
    running.drain()
    log.info("stopping; requests in flight: %d", backend.metrics.unfinished)
    with anyio.move_on_after(settings.drain_timeout_s):
        await stop.run_unless_immediate(backend.metrics.emptied)


def _routes(
    backend: Backend, routes: Sequence[web.AbstractRouteDef]
) -> tuple[list[web.AbstractRouteDef], list[web.AbstractRouteDef]]:
    """The routes of the public and of the loopback port: the author's `routes`, and the worker's own."""
    own = [*public_routes(backend), *session_routes(backend)]
    return [*routes, *without(own, routes)], [*loopback_routes(backend, routes), end_route(backend)]


_Calls = asyncio.Queue[Callable[[], Coroutine[Any, Any, None]]]


@asynccontextmanager
async def _calls(spawned: _Calls, sockets: Sockets) -> AsyncGenerator[None, None]:
    """Run the calls in `spawned` inside the block; at its end, close the sockets and cancel the calls."""
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


def _process_age_s() -> float:
    """Seconds since this process started."""
    return max(0.0, time.time() - psutil.Process().create_time())
