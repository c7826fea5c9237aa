"""A running worker: its components, how they are connected, and the steps of its shutdown.

Owns the assembly: the engine, the authenticator and all other components are chosen here. It does not own the
path of a request (lib/backend.py), and does not run the tasks (lib/server.py).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from lib.access.arriving import Arrivals
from lib.access.authenticator import Authenticator
from lib.access.body import BodyReader
from lib.access.body_memory import DEFAULT_PART, BodyMemory
from lib.access.open import OpenAccess
from lib.access.payload import PayloadReader
from lib.access.refusals import Refusals
from lib.access.signatures import Signatures
from lib.access.signed import SignedRequests
from lib.access.spool import SpoolRoom
from lib.engine.engine import Capacity, Engine
from lib.engine.none import NoEngine
from lib.engine.vast import VastEngine
from lib.errors import Draining, SettingsError
from lib.gpu.health import GpuHealth
from lib.gpu.nvml import is_installed
from lib.gpu.watch import GpuWatch
from lib.http.shares import STRANGERS_BYTES, Shares
from lib.life.author_context import AuthorContext, Context
from lib.life.backend_config import DEFAULT_MAX_PERF, BackendConfig
from lib.metrics import Ledger, WorkloadCap, WorkloadCounter
from lib.model.benchmark import first_answer_limit_s
from lib.model.benchmark_keeper import BenchmarkKeeper
from lib.model.benchmark_request import BenchmarkRequest
from lib.model.caller import ModelCaller
from lib.model.connection import ModelServer
from lib.model.direct import DirectCalls
from lib.model.failure_probe import FailureProbe
from lib.model.health_override import HealthOverride
from lib.model.live_capacity import CapacityMover, LiveCapacity
from lib.model.load_watch import LoadWatch
from lib.model.reach_watch import ReachWatch
from lib.model.readiness import Cause, Readiness, ReadySignal
from lib.model.relay import drain
from lib.model.stall import StallWatch
from lib.model.watch import HealthWatch, LogRule, LogWatch
from lib.request.detached import Spawn
from lib.request.lanes import Lanes, name_of_handler
from lib.request.session_life import SessionLife
from lib.request.sessions import SessionEnd, Sessions
from lib.request.verdict import Phase
from lib.runtime.clock import Clock
from lib.runtime.memory_limit import memory_limit_bytes
from lib.runtime.settings import Settings

log = logging.getLogger(__name__)

_NO_BENCHMARK = (
    "no handler has a benchmark: the throughput counts as %g workload/s, which nobody has measured. Scaling, "
    "the sharing of requests among workers, and max_queue_time go by it. Give a benchmark "
    "(benchmark_handler, benchmark_config), or the throughput itself (max_perf)"
)

Tasks = dict[str, Callable[[], Awaitable[None]]]


@dataclass(kw_only=True)
class RunningWorker:
    """The components of a running worker. `spawn` starts a task that outlives its caller."""

    config: BackendConfig
    settings: Settings
    engine: Engine
    engine_tasks: Mapping[str, Callable[[], Awaitable[None]]]
    authenticator: Authenticator
    payloads: PayloadReader
    strangers: Shares
    verified_bodies: Shares
    refusals: Refusals
    server: ModelServer
    direct: DirectCalls
    readiness: Readiness
    lanes: Lanes
    sessions: Sessions
    session_life: SessionLife
    log_watch: LogWatch | None
    health_watch: HealthWatch | None
    benchmark_keeper: BenchmarkKeeper | None
    live_capacity: LiveCapacity
    lifecycle: AuthorContext | None
    handlers: AuthorContext | None
    spawn: Spawn
    phase: Phase = field(default_factory=Phase)

    def tasks(self) -> Tasks:
        """The tasks to run as long as the worker runs, by name."""
        tasks: Tasks = dict(self.engine_tasks)
        if self.log_watch is not None:
            tasks |= {"model log": self.log_watch.follow, "loaded line": self.log_watch.confirm_loaded}
        if self.health_watch is not None:
            tasks["health check"] = self.health_watch.follow
        if self.config.url:
            tasks["model connection"] = self.reach_watch.follow
        if self.health_override is not None:
            tasks["health override"] = self.health_override.follow
        if self.benchmark_keeper is not None:
            tasks["benchmark"] = self.benchmark_keeper.keep
        if self.failure_probe is not None:
            tasks["failure probe"] = self.failure_probe.follow
        if self.settings.live_capacity:
            tasks["live capacity"] = CapacityMover(self.live_capacity, self.readiness).keep
        if self.handlers is not None:
            tasks["handlers"] = self.handlers.keep
        if self.lifecycle is not None:
            tasks["lifecycle"] = self.lifecycle.keep
        if self.session_life.recalled:
            tasks["recalled sessions"] = self._end_recalled_sessions
        if self.gpu_health is not None:
            tasks["GPU health"] = GpuWatch(self.gpu_health, self.live_capacity.clock).follow
        return tasks

    @cached_property
    def health_override(self) -> HealthOverride | None:
        """The override of the log, if a "loaded" line is waited for and the health check may replace it."""
        log_watch, health_watch = self.log_watch, self.health_watch
        if log_watch is None or health_watch is None or ReadySignal.LOG not in self.config.ready_signals:
            return None
        if not self.settings.health_overrides_log:
            return None
        request = None if self.benchmark_keeper is None else self.benchmark_keeper.request
        limit_s = first_answer_limit_s(self.settings.model_timeout_s)
        return HealthOverride(log_watch, health_watch, self.readiness, request, limit_s, log_watch.clock)

    @cached_property
    def gpu_health(self) -> GpuHealth | None:
        """The health of the GPUs; None without the extra `gpu`."""
        if not is_installed():
            return None
        on_error = partial(self.readiness.set_error, Cause.GPU) if self.settings.gpu_health else _ignore
        return GpuHealth(self.live_capacity.clock, on_error)

    @cached_property
    def reach_watch(self) -> ReachWatch:
        """The watch of the model server's address."""
        return ReachWatch(self.server, self.readiness, self.health_watch, self.live_capacity.clock)

    @cached_property
    def failure_probe(self) -> FailureProbe | None:
        """The probe that decides when requests fail one after the other; None without a benchmark."""
        keeper, limit_s = self.benchmark_keeper, self.settings.benchmark_time_limit_s
        if keeper is None:
            return None
        clock = self.live_capacity.clock
        return FailureProbe(self.server.failures, self.readiness, keeper.request, limit_s, clock)

    def load_watch(self, describe: Callable[[], Awaitable[str]]) -> LoadWatch:
        """The watch of how long the model takes to load; `describe` returns what is waited for."""
        watch = self.health_watch if ReadySignal.LOG in self.config.ready_signals else None
        limit_s = self.settings.model_load_timeout_s
        return LoadWatch(self.readiness, watch, limit_s, describe, self.live_capacity.clock)

    async def _end_recalled_sessions(self) -> None:
        """Once the model is loaded, tell it of the sessions that were open when the worker was killed."""
        await self.readiness.until(lambda: self.readiness.loaded)
        self.session_life.end_recalled()

    def drain(self) -> None:
        """Accept no more requests; refuse those that wait or are still being received with 503."""
        self.phase = Phase(draining=True)
        self.readiness.drain()
        self.sessions.end_all(SessionEnd.DRAINED)
        self.lanes.refuse_all(Draining)
        self.payloads.stop()

    def cut(self) -> None:
        """Record requests still in flight as errored from now on: the worker is cutting them off."""
        self.phase = Phase(draining=True, cut=True)
        for handler in self.config.handlers:
            handler.on_cut()

    async def leave_handlers(self) -> None:
        """Leave the handlers' contexts (`EndpointHandler.running`), once no request needs them any more."""
        if self.handlers is not None:
            await self.handlers.leave()

    def abandon(self) -> None:
        """Stop waiting for the author's contexts to end: an immediate stop was asked for."""
        for context in (self.handlers, self.lifecycle):
            if context is not None:
                context.abandon()


@asynccontextmanager
async def open_worker(
    config: BackendConfig,
    lanes: Lanes,
    settings: Settings,
    ledger: Ledger,
    clock: Clock,
    directory: Path,
    spawn: Spawn,
    process_age_s: float = 0.0,
) -> AsyncGenerator[RunningWorker, None]:
    """Assemble a worker, with its connections open until the block ends; the caller starts its tasks.

    `directory` holds the saved benchmark. Raises `SettingsError` with all problems of `config`.
    """
    if problems := config.problems():
        raise SettingsError(problems)
    settings = settings if config.unsecured is None else replace(settings, unsecured=config.unsecured)
    stalls = StallWatch(clock, _stall_timeout_s(config, settings))
    async with (
        ModelServer(config.url, settings.model_timeout_s, stalls, settings.model_api_key) as server,
        DirectCalls(clock, settings.model_timeout_s, server.reach, stalls) as direct,
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http,
    ):
        sessions, access = Sessions(config.max_sessions, clock), _access(settings, clock)
        readiness = Readiness(config.ready_signals, False, clock, process_age_s)
        listeners = list(ledger.listeners)
        engine = config.engine or _engine(settings, http, ledger, readiness, clock)
        authenticator = config.authenticator or _authenticator(settings, access, sessions, engine)
        readiness.on_change = engine.state_changed
        keeper = _benchmark_keeper(config, server, readiness, ledger, settings, clock, directory, lanes.cap)
        try:
            running = RunningWorker(
                config=config,
                settings=settings,
                engine=engine,
                engine_tasks=_engine_tasks(engine, authenticator, readiness),
                authenticator=authenticator,
                payloads=access.payloads,
                strangers=access.strangers,
                verified_bodies=access.arrivals.bodies.verified.shares,
                refusals=access.refusals,
                server=server,
                direct=direct,
                readiness=readiness,
                lanes=lanes,
                sessions=sessions,
                session_life=SessionLife(
                    sessions, ledger, clock, partial(_post, server), spawn, lambda: running.phase
                ),
                log_watch=_log_watch(config, server, readiness, clock),
                health_watch=_health_watch(config, server, readiness, clock),
                benchmark_keeper=keeper,
                live_capacity=LiveCapacity(readiness, partial(_best, keeper), lanes.is_waiting, clock),
                lifecycle=_author_context(config.lifecycle, readiness, ReadySignal.LIFECYCLE),
                handlers=_author_context(config.context_of_handlers, readiness, ReadySignal.HANDLERS),
                spawn=spawn,
            )
            yield running
        finally:
            ledger.listeners[:] = listeners  # without those of this engine


class _Access(NamedTuple):
    """The parts that read requests' bodies, and the budgets of strangers."""

    arrivals: Arrivals
    payloads: PayloadReader
    strangers: Shares
    refusals: Refusals


def _access(settings: Settings, clock: Clock) -> _Access:
    strangers, room = Shares(STRANGERS_BYTES), SpoolRoom(settings.max_spool_bytes)
    stall_s = settings.request_body_timeout_s
    limit_bytes = settings.max_body_memory_bytes or memory_limit_bytes() // DEFAULT_PART
    verified = BodyMemory(limit_bytes, settings.max_json_bytes)
    bodies = BodyReader(settings.max_json_bytes, stall_s, strangers, verified=verified)
    uploads = BodyReader(settings.max_request_bytes, stall_s, setting="MAX_REQUEST_BYTES")
    payloads = PayloadReader(bodies, uploads, room)
    return _Access(Arrivals(bodies, room), payloads, strangers, Refusals(clock))


def _stall_timeout_s(config: BackendConfig, settings: Settings) -> float | None:
    """The limit of the environment, or else the author's; None for no limit."""
    given_s = settings.model_stall_timeout_s
    return (config.model_stall_timeout_s if given_s is None else given_s) or None


def _engine(
    settings: Settings, http: aiohttp.ClientSession, ledger: Ledger, readiness: Readiness, clock: Clock
) -> Engine:
    if settings.engine == "none":
        return NoEngine(settings.public_url)
    return VastEngine(
        settings, http, ledger, lambda: Capacity(readiness.loadtime_s, readiness.max_perf), clock
    )


def _engine_tasks(
    engine: Engine, authenticator: Authenticator, readiness: Readiness
) -> Mapping[str, Callable[[], Awaitable[None]]]:
    """The tasks of `engine`, one of which fetches the public key if `authenticator` needs one.

    Raises `SettingsError` if it needs one that `engine` doesn't have.
    """

    def use_key(pem: str) -> None:
        authenticator.use_key(pem)
        readiness.note_key()

    readiness.needs_key = authenticator.needs_key
    try:
        return engine.tasks(use_key if authenticator.needs_key else None)
    except ValueError as e:
        raise SettingsError([f"{type(authenticator).__name__} beside {type(engine).__name__}: {e}"]) from e


def _authenticator(settings: Settings, access: _Access, sessions: Sessions, engine: Engine) -> Authenticator:
    if settings.engine == "none":
        return OpenAccess(access.arrivals, sessions)
    signatures = None
    if settings.unsecured:
        log.warning("UNSECURED is on: requests are accepted without a signature, from anyone")
    else:
        signatures = Signatures(settings.auth_scheme, engine.public_url if settings.auth_check_url else None)
    return SignedRequests(access.arrivals, signatures, sessions, engine.refetch_key, access.refusals)


def _log_watch(
    config: BackendConfig, server: ModelServer, readiness: Readiness, clock: Clock
) -> LogWatch | None:
    if config.log_file is None:
        return None
    rules = [LogRule(action, text) for action, text in config.log_actions]
    return LogWatch(config.log_file, rules, server, readiness, clock)


def _health_watch(
    config: BackendConfig, server: ModelServer, readiness: Readiness, clock: Clock
) -> HealthWatch | None:
    if not config.health_checks or not config.url:
        return None
    return HealthWatch(server, config.health_checks, readiness, clock, clears_all=not config.has_load_rule)


def _benchmark_keeper(
    config: BackendConfig,
    server: ModelServer,
    readiness: Readiness,
    ledger: Ledger,
    settings: Settings,
    clock: Clock,
    directory: Path,
    cap: WorkloadCap,
) -> BenchmarkKeeper | None:
    readiness.on_max_perf = cap.note_max_perf
    handler = config.benchmark_handler
    if handler is None:
        if config.max_perf == DEFAULT_MAX_PERF:
            log.warning(_NO_BENCHMARK, config.max_perf)
        reason = f"no benchmark: max_perf is {config.max_perf:g} workload/s"
        readiness.set_max_perf(config.max_perf, reason)
        return None
    counter = WorkloadCounter(name_of_handler(handler))
    return BenchmarkKeeper(
        BenchmarkRequest(handler, server, partial(_count_sample, cap, counter.count)),
        readiness,
        ledger,
        config.benchmark_cap,
        settings.model_name,
        directory,
        settings.benchmark_target_s,
        settings.benchmark_time_limit_s,
        clock,
    )


def _count_sample(cap: WorkloadCap, count: Callable[[Any], float], payload: Any) -> float:
    """The workload of a payload of the benchmark, which no client has chosen."""
    workload = count(payload)
    cap.note_sample(workload)
    return workload


def _best(keeper: BenchmarkKeeper | None) -> int | None:
    """The number of requests at once that the benchmark found best."""
    return None if keeper is None or keeper.result is None else keeper.result.concurrency


def _author_context(given: Context | None, readiness: Readiness, signal: ReadySignal) -> AuthorContext | None:
    if given is None:
        return None
    note_entered = partial(readiness.note_signal, signal, f"{signal.value} entered")
    return AuthorContext(signal.value, given, note_entered)


def _ignore(error_msg: str) -> None:
    return None


async def _post(server: ModelServer, route: str, message: dict[str, Any]) -> None:
    async with ModelCaller(server, {}).post_json(route, message) as answer:
        await drain(answer)
