"""Backend: the life of a request, from top to bottom.

    read → authenticate → open the ledger entry → author's middlewares → wait for a slot
         → call the model → pass the answer on → close the entry

`Backend.create_handler` makes the aiohttp handler of one route; `_serve` is its story. Each step is a call
whose failure is an exception: its status is in lib/errors.py, its outcome in lib/request/verdict.py.
Owns the order of the steps and the methods for authors. lib/life/running_worker.py has the parts.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from lib.access.authenticator import Admission, Authenticator
from lib.access.payload import is_upload
from lib.data_types import EndpointHandler, LogAction
from lib.declare.bare_route import BareHandler, BareRouteHandler
from lib.engine.engine import Delivery, Engine
from lib.errors import NotReady, SessionGone, returnable
from lib.life.backend_config import DEFAULT_MAX_PERF, BackendConfig, Lifecycle
from lib.life.older_names import Metrics, OlderNames
from lib.life.running_worker import RunningWorker, open_worker
from lib.metrics import DEFAULT_WORKLOAD, Outcome
from lib.model.answer import ModelAnswer
from lib.model.caller import ModelCaller, ask
from lib.model.connection import ModelSession
from lib.model.direct_relay import relay
from lib.model.readiness import NOT_READY, Cause
from lib.model.relay import end_to_end_headers, pass_on
from lib.model.watch import HealthWatch
from lib.request.access_log import AccessLog
from lib.request.detached import Spawn, run_detached
from lib.request.exchange import Answer, Exchange, Steps
from lib.request.incoming import IncomingRequest, Serve
from lib.request.lanes import Lane, Lanes, direct_routes
from lib.request.middlewares import wrapped
from lib.request.observers import Observer, steps_of
from lib.request.timings import Timings
from lib.request.verdict import Phase
from lib.runtime.clock import Clock, SystemClock
from lib.runtime.settings import Settings
from lib.uploads import Upload

__all__ = [
    "Admission",
    "Authenticator",
    "Backend",
    "Delivery",
    "Engine",
    "Exchange",
    "LogAction",
    "ModelAnswer",
    "ModelCaller",
    "Observer",
    "end_to_end_headers",
    "pass_on",
]


class Backend(OlderNames):
    """Proxies validated requests to the model server through handlers (docs/writing-a-worker.md).

    The constructor only stores its arguments: no network, no file, no environment, no event loop.
    `max_perf`, used without a `benchmark_handler`, is in workload/s. `max_wait_time`, in seconds, is the
    default of `max_queue_time`, `model_stall_timeout_s` that of `MODEL_STALL_TIMEOUT_S`. `engine` and
    `authenticator` replace those that the environment chooses.
    """

    def __init__(
        self,
        model_server_url: str | None,
        model_log_file: str | Path | None = None,
        allow_parallel_requests: bool = False,
        benchmark_handler: EndpointHandler[Any] | None = None,
        log_actions: Sequence[tuple[LogAction, str]] = (),
        *,
        max_perf: float = DEFAULT_MAX_PERF,
        healthcheck_url: str | Sequence[str] | None = None,
        max_sessions: int | None = 10,
        lifecycle: Lifecycle | None = None,
        max_wait_time: float | None = None,
        model_stall_timeout_s: float | None = None,
        unsecured: bool | None = None,
        clock: Clock | None = None,
        engine: Engine | None = None,
        authenticator: Authenticator | None = None,
    ) -> None:
        self.model_server_url = model_server_url or ""
        self.model_log_file = Path(model_log_file) if model_log_file else None
        self.allow_parallel_requests = allow_parallel_requests
        self.benchmark_handler = benchmark_handler
        self.log_actions = tuple(log_actions)
        self.max_perf = max_perf
        self.healthcheck_url = healthcheck_url
        self.max_sessions = max_sessions
        self.model_stall_timeout_s = model_stall_timeout_s
        self.lifecycle, self.unsecured = lifecycle, unsecured
        self.clock: Clock = clock or SystemClock()
        self.engine, self.authenticator = engine, authenticator
        self.metrics = Metrics(self.clock, lambda: self._running)
        self.timings = Timings(self.clock)
        self.observers: list[Observer] = [AccessLog(), self.timings]
        self.middlewares: list[Middleware] = []
        self.lanes = Lanes(self.clock, self._retry_after_s, allow_parallel_requests, max_wait_time)
        self._handlers: list[EndpointHandler[Any]] = []
        self.served: dict[Handler, Lane] = {}
        self._steps = Steps()
        self._running: RunningWorker | None = None

    # For authors

    def create_handler(self, handler: EndpointHandler[Any]) -> Handler:
        """Make the aiohttp handler of a route, for `web.post(path, …)`."""
        self._handlers.append(handler)
        lane = self.lanes.add(handler)
        serve: Handler = partial(self._answer, lane)
        self.served[serve] = lane
        return serve

    def guard(
        self,
        function: BareHandler,
        *,
        workload: float | Callable[[Any], float] = DEFAULT_WORKLOAD,
        **fields: Any,
    ) -> Handler:
        """Put a bare aiohttp handler behind the checks, the queue and the ledger of all handlers.

        `function` finds JSON or an `Upload` in `request["payload"]`, and `request["auth_data"]`. `fields` are
        an `EndpointHandler`'s; `workload` is a number or a function of the payload.
        """
        return self.create_handler(BareRouteHandler(function=function, workload=workload, **fields))

    @property
    def session(self) -> ModelSession:
        """An HTTP client for the model server, while the worker runs. Relative paths go below its URL."""
        return ModelSession(self.running.server)

    def backend_errored(self, msg: str) -> None:
        """Put the worker into *errored* with `msg`, until the model server's next "loaded" line.

        Without a log rule for such lines, a health check that succeeds after failed ones clears the error.
        """
        self.running.readiness.set_error(Cause.AUTHOR, msg)

    async def watch_health(self, url: str) -> None:
        """Check the model server's health at `url` until cancelled, or until the server has no such route.

        `url` is a path on the model server or an absolute URL. Three failures in a row are an error; the next
        success also clears errors of log and author. For a `lifecycle` that learns the address at run time.
        """
        running = self.running
        await HealthWatch(running.server, (url,), running.readiness, self.clock, clears_all=True).follow()

    # The life of a request

    async def _serve(self, exchange: Exchange) -> Answer:
        """Answer one request, to the last byte, and record its outcome in the ledger.

        Raises `WorkerError` (answered with its status), `ClientGone`, `AnswerCut`, or what author code did.
        """
        request: Any = exchange.incoming  # an author's authenticator gets aiohttp's only: `direct_routes`
        admission = await self.running.authenticator.admit(request)
        self._open_entry(exchange, admission)
        if admission.payload is not None and exchange.session is None:
            return await self._handle(exchange, admission, admission.payload)
        with self._inside_session(exchange):
            async with self._received(exchange, admission) as received:
                return await self._handle(exchange, admission, received)

    async def _handle(
        self, exchange: Exchange, admission: Admission, received: dict[str, Any] | Upload
    ) -> Answer:
        """Answer a request whose payload was received, and decide its outcome."""
        lane = exchange.lane
        exchange.keep_text(admission, received)
        payload = lane.read_payload(received, admission.raw_auth, admission.session_id)
        exchange.receive(received, payload, lane.count_workload(payload))
        try:
            if self.middlewares:
                handler = wrapped(partial(self._accept, exchange), self.middlewares)
                response = await handler(exchange.request)
            else:
                response = await self._accept(exchange)
        except web.HTTPException as e:
            response = returnable(e)
        written = await exchange.write(response)
        exchange.conclude(None)  # before the upload is deleted: the client may leave meanwhile
        return written

    def _open_entry(self, exchange: Exchange, admission: Admission) -> None:
        """Open the request's entry. A request inside a session is not counted: the session itself counts.

        Raises `SessionGone` (410), after the entry is opened.
        """
        is_outside, session = admission.session_id is None, admission.session
        request_idx = admission.auth.request_idx if is_outside else None
        exchange.admit(admission.auth, self.metrics.open(request_idx, counted=session is None), session)
        if session is None and not is_outside:
            raise SessionGone()

    def _inside_session(self, exchange: Exchange) -> AbstractContextManager[None]:
        """Keep the request's session, if it is in one, from expiring inside the block."""
        return nullcontext() if exchange.session is None else self.running.sessions.used(exchange.session)

    def _received(
        self, exchange: Exchange, admission: Admission
    ) -> AbstractAsyncContextManager[dict[str, Any] | Upload]:
        """Receive the payload; refuse an upload before reading it if the worker isn't ready or too busy.

        Raises what `PayloadReader.receive` raises, and for an upload what `_check_ready` raises.
        """
        if admission.payload is not None:
            return nullcontext(admission.payload)
        if is_upload(exchange.incoming, admission):
            exchange.entry.set_workload(DEFAULT_WORKLOAD)  # until its workload can be counted
            self._check_ready(exchange)
        accepts_uploads = exchange.lane.handler.accepts_uploads
        return self.running.payloads.receive(exchange.incoming, admission, accepts_uploads)

    def _accept(self, exchange: Exchange, request: web.Request | None = None) -> Awaitable[Any]:
        """Await the model's answer; meanwhile send the handler's heartbeat, if it has one."""
        if request is not None:
            exchange.request = request  # a middleware may have replaced it
        running = self._check_ready(exchange)
        exchange.accept()
        answer = _in_turn(exchange, running)
        return answer if exchange.heartbeat is None else exchange.heartbeat.during(answer)

    def _check_ready(self, exchange: Exchange) -> RunningWorker:
        """Return `running`. Refuse a request if it isn't ready, or if the expected wait is too long.

        Raises `Unavailable` (503), `TooBusy` (429). A request does not wait for its own session's workload.
        """
        running, load = self.check_state(), self.metrics.cur_load
        if exchange.session is not None:
            load -= running.session_life.workload_of(exchange.session)
        exchange.lane.check_wait(load, running.readiness.max_perf)
        return running

    async def _answer(self, lane: Lane, request: IncomingRequest) -> Any:
        """Serve a request: in the server's task group if it has to finish even when its client leaves."""
        exchange = Exchange(request, lane, self.clock, self._steps, self._phase)
        if not exchange.finishes:
            return await self._concluded(exchange)
        serve = partial(self._concluded, exchange)
        return await run_detached(self.running.spawn, serve, lambda: exchange.started_s is not None)

    async def _concluded(self, exchange: Exchange) -> Answer:
        """Serve the request, reply to its errors, and close its entry with an outcome in any case."""
        exchange.begin()
        try:
            return await self._serve(exchange)
        except BaseException as e:  # noqa: BLE001 - every way to end is judged in one place
            return await exchange.reply(exchange.conclude(e), e)
        finally:
            exchange.end()
            if exchange.started_s is not None and exchange.outcome is Outcome.CANCELLED:
                self.running.spawn(exchange.notify_client_left)

    # For the server

    @property
    def running(self) -> RunningWorker:
        """The parts of the running worker. Raises `RuntimeError` while it doesn't run."""
        if self._running is None:
            raise RuntimeError("the worker is not running: start it with start_server(backend, routes)")
        return self._running

    @property
    def handlers(self) -> list[EndpointHandler[Any]]:
        """The handlers of the benchmark and of the routes, each once."""
        handlers = (self.benchmark_handler, *self._handlers)
        return list({id(handler): handler for handler in handlers if handler is not None}.values())

    def direct_routes(self, routes: Sequence[web.AbstractRouteDef]) -> dict[str, Serve]:
        """The functions that serve POST requests without aiohttp, by path: those of `routes` that can be."""
        if self.middlewares or self.authenticator is not None:  # an author's code takes aiohttp's requests
            return {}
        return direct_routes(self.served, routes)

    def check_state(self) -> RunningWorker:
        """Return `running`. Raises `NotReady` (503) while it is loading, benchmarking or draining."""
        if (state := (running := self.running).readiness.state) in NOT_READY:
            raise NotReady(state.value)
        return running

    def config(self) -> BackendConfig:
        """The arguments that concern the model server and the worker's life."""
        return BackendConfig(
            url=self.model_server_url,
            log_file=self.model_log_file,
            log_actions=self.log_actions,
            healthcheck_url=self.healthcheck_url,
            lifecycle=self.lifecycle,
            benchmark_handler=(benchmark := self.benchmark_handler),
            benchmark_cap=self.lanes.concurrency_of(benchmark) if benchmark else None,
            max_perf=self.max_perf,
            max_sessions=self.max_sessions,
            model_stall_timeout_s=self.model_stall_timeout_s,
            unsecured=self.unsecured,
            handlers=self.handlers,
            observers=self.observers,
            middlewares=self.middlewares,
            engine=self.engine,
            authenticator=self.authenticator,
        )

    @asynccontextmanager
    async def run_with(
        self, settings: Settings, directory: Path, spawn: Spawn, process_age_s: float = 0.0
    ) -> AsyncGenerator[RunningWorker, None]:
        """Open the running worker for the time of the block; `spawn` runs calls that outlive their clients.

        `directory` holds the saved benchmark. Raises `SettingsError` if the author's arguments can't work.
        """
        async with open_worker(
            self.config(), self.lanes, settings, self.metrics, self.clock, directory, spawn, process_age_s
        ) as running:
            self._running, self._steps = running, steps_of((running.live_capacity, *self.observers))
            try:
                yield running
            finally:
                self._running = None

    def _retry_after_s(self) -> float:
        return self.metrics.cur_load / max(self.running.readiness.max_perf, 1e-9)

    def _phase(self) -> Phase:
        return Phase(draining=True) if self._running is None else self._running.phase


async def _in_turn(exchange: Exchange, running: RunningWorker) -> Answer:
    queue = exchange.lane.queue
    if not queue.try_acquire():
        await queue.wait(exchange.lane.max_wait_s)
    try:
        exchange.start()
        server, direct = running.server, running.direct
        return await (relay(exchange, server, direct) if exchange.is_direct else ask(exchange, server))
    finally:
        queue.release()
