"""What a running worker consists of, its parts introduced to each other.

Owns the assembly: which part is told of which event. What the parts do is theirs; the way of a request
through them is backend.py's, and server.py runs their tasks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import anyio

from lib.access.body import BodyReader
from lib.access.gate import Gate
from lib.access.signatures import Signatures
from lib.engine.key import EngineKey
from lib.engine.reports import Capacity, Identity, Reporter
from lib.life.backend_config import BackendConfig, Lifecycle
from lib.metrics import Ledger
from lib.model.benchmark_keeper import BenchmarkKeeper
from lib.model.connection import ModelServer
from lib.model.readiness import Readiness, ReadySignal
from lib.model.watch import HealthWatch, LogRule, LogWatch
from lib.request.sessions import Sessions
from lib.request.workload import WorkloadCounter
from lib.runtime.clock import Clock
from lib.runtime.settings import Settings

log = logging.getLogger(__name__)

LongTask = tuple[str, Callable[[], Awaitable[None]]]


@dataclass(kw_only=True)
class RunningWorker:
    """A running worker's parts."""

    settings: Settings
    server: ModelServer
    gate: Gate
    key: EngineKey | None
    readiness: Readiness
    reporter: Reporter
    sessions: Sessions
    log_watch: LogWatch | None
    health_watch: HealthWatch | None
    rating: BenchmarkKeeper | None
    lifecycle: Lifecycle | None

    def tasks(self) -> list[LongTask]:
        """What has to run for as long as the worker does, by name."""
        tasks: list[LongTask] = [
            ("status reports", self.reporter.report_status),
            ("completions", self.reporter.report_completions),
        ]
        if self.key is not None:
            tasks.append(("public key", self._keep_key))
        if self.log_watch is not None:
            tasks += [("model log", self.log_watch.follow), ("loaded line", self.log_watch.confirm_loaded)]
        if self.health_watch is not None:
            tasks.append(("health check", self.health_watch.follow))
        if self.rating is not None:
            tasks.append(("benchmark", self.rating.keep))
        if self.lifecycle is not None:
            tasks.append(("lifecycle", self._live))
        return tasks

    async def _keep_key(self) -> None:
        assert self.key is not None
        await self.key.fetch()
        self.readiness.key_found()
        await self.key.look_when_asked()

    async def _live(self) -> None:
        """Inside the author's lifecycle until the worker stops; leaving it is never cut short.

        A task of its own, which anyio's scopes don't reach: they would cancel the author's clean-up too.
        """
        stopping = asyncio.Event()
        life = asyncio.create_task(self._lifetime(stopping), name="lifecycle of the author's")
        try:
            await asyncio.shield(life)
        finally:
            stopping.set()
            if not self.readiness.loaded:  # it may wait in there for ever
                life.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({life})
            if not life.cancelled():
                life.result()

    async def _lifetime(self, stopping: asyncio.Event) -> None:
        assert self.lifecycle is not None
        given = self.lifecycle  # one made by @asynccontextmanager is callable too, as a decorator
        async with given if isinstance(given, AbstractAsyncContextManager) else given():
            self.readiness.seen(ReadySignal.LIFECYCLE, "lifecycle entered")
            await stopping.wait()


@asynccontextmanager
async def open_worker(
    model: BackendConfig,
    settings: Settings,
    ledger: Ledger,
    clock: Clock,
    directory: Path,
    process_age_s: float = 0.0,
) -> AsyncGenerator[RunningWorker, None]:
    """The parts of a worker, with their connections open for as long as the block lasts.

    `directory` holds the saved benchmark. Nothing runs yet: the caller starts `RunningWorker.tasks`.
    """
    async with (
        ModelServer(model.url, settings.model_timeout_s) as server,
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http,
    ):
        readiness = Readiness(model.ready_signals, not settings.unsecured, clock, process_age_s)
        signatures, key = _key(settings, http, clock)
        reporter = Reporter(
            http,
            settings.report_addrs,
            settings.key_addrs,
            Identity(settings.container_id, settings.master_token, settings.public_url),
            ledger,
            lambda: Capacity(readiness.loadtime_s, readiness.max_perf),
            clock,
        )
        ledger.on_event = reporter.request_changed
        readiness.on_change = reporter.state_changed
        if settings.unsecured:
            log.warning("UNSECURED is on: requests are accepted without a signature, from anyone")
        if model.benchmark_handler is None:
            readiness.measured_as(model.max_perf, f"no benchmark: {model.max_perf:g} workload/s as given")
        sessions = Sessions(model.max_sessions, clock)
        yield RunningWorker(
            settings=settings,
            server=server,
            gate=Gate(
                BodyReader(settings.max_json_bytes, settings.request_body_timeout_s),
                BodyReader(
                    settings.max_request_bytes, settings.request_body_timeout_s, setting="MAX_REQUEST_BYTES"
                ),
                signatures,
                sessions,
                key.refetch if key else _no_key,
            ),
            key=key,
            readiness=readiness,
            reporter=reporter,
            sessions=sessions,
            log_watch=_log_watch(model, server, readiness, clock),
            health_watch=_health_watch(model, server, readiness, clock),
            rating=_rating(model, server, readiness, settings, clock, directory),
            lifecycle=model.lifecycle,
        )


def _key(
    settings: Settings, http: aiohttp.ClientSession, clock: Clock
) -> tuple[Signatures | None, EngineKey | None]:
    if settings.unsecured:
        return None, None
    signatures = Signatures(settings.auth_scheme, settings.public_url if settings.auth_check_url else None)
    return signatures, EngineKey(http, settings.key_addrs, signatures.use_key, clock)


async def _no_key() -> None:
    return None


def _log_watch(
    model: BackendConfig, server: ModelServer, readiness: Readiness, clock: Clock
) -> LogWatch | None:
    if model.log_file is None:
        return None
    rules = [LogRule(action, text) for action, text in model.log_actions]
    return LogWatch(model.log_file, rules, server, readiness, clock)


def _health_watch(
    model: BackendConfig, server: ModelServer, readiness: Readiness, clock: Clock
) -> HealthWatch | None:
    if not model.healthcheck or not model.url:
        return None
    return HealthWatch(server, model.healthcheck, readiness, clock, clears_all=not model.has_load_rule)


def _rating(
    model: BackendConfig,
    server: ModelServer,
    readiness: Readiness,
    settings: Settings,
    clock: Clock,
    directory: Path,
) -> BenchmarkKeeper | None:
    handler = model.benchmark_handler
    if handler is None:
        return None
    return BenchmarkKeeper(
        handler,
        server,
        readiness,
        WorkloadCounter(type(handler).__name__).count,
        model.benchmark_cap,
        settings.model_name,
        directory,
        settings.benchmark_time_limit_s,
        clock,
    )
