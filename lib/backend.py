"""Backend: the life of a request, readable from top to bottom.

    read → authenticate → open the ledger entry → wait for a slot → call the model
         → pass the answer on → close the entry

`Backend.create_handler` makes the aiohttp handler of one route; `_serve` is the story. Each step is a call
whose failure is an exception: lib/errors.py says which status it has, lib/metrics.py what it counts as.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import anyio
from aiohttp import web

from lib.access.envelope import Envelope
from lib.access.gate import is_upload
from lib.data_types import EndpointHandler, JsonDataException, LogAction
from lib.declare.bare_route import BareHandler, BareRouteHandler
from lib.errors import (
    CLIENT_CLOSED_REQUEST,
    AnswerCut,
    ClientGone,
    Invalid,
    ModelTimedOut,
    ModelUnreachable,
    SessionGone,
    SettingsError,
    TooBusy,
    Unavailable,
    WorkerError,
    async_result_or_error,
    describe_error,
    error_response,
    internal_error_response,
    returnable,
)
from lib.life.backend_config import BackendConfig, Lifecycle
from lib.life.running_worker import RunningWorker, open_worker
from lib.metrics import Entry, Ledger, Outcome
from lib.model.caller import ModelCaller
from lib.model.connection import ModelSession
from lib.model.readiness import Cause, State
from lib.model.relay import aborted, drain, end_to_end_headers, pass_on
from lib.model.watch import HealthWatch
from lib.request.heartbeat import Heartbeat
from lib.request.sessions import Session, SessionEnd, SessionTerms
from lib.request.slots import SlotQueue
from lib.request.timings import FirstByte, Timing, Timings
from lib.request.workload import DEFAULT_WORKLOAD, WorkloadCounter
from lib.runtime.clock import Clock, SystemClock, time_limit
from lib.runtime.settings import Settings
from lib.uploads import Upload

__all__ = ["Backend", "LogAction", "ModelCaller", "end_to_end_headers", "pass_on"]

log = logging.getLogger(__name__)
access_log = logging.getLogger("lib.access")

AioHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]
# Hands a call that must outlive its caller to the server's task group.
Spawn = Callable[[Callable[[], Coroutine[Any, Any, None]]], object]

RETRY_NOT_READY_S = 10.0
ON_CLOSE_LIMIT_S = 10.0
SESSION_GONE = "the session is unknown, has ended or has expired"
_FORWARDED = ("Accept", "X-Request-Id", "Accept-Encoding")
_REQUEST_ID = re.compile(r"[\w.:+/=@-]{1,128}")
_NOT_READY = (State.LOADING, State.BENCHMARKING, State.DRAINING)


@dataclass(frozen=True)
class Route:
    """One handler with its place in the queue. `max_queue_time_s` None: no limit."""

    handler: EndpointHandler[Any]
    queue: SlotQueue
    max_queue_time_s: float | None
    workload: WorkloadCounter


@dataclass
class Call:
    """One request on its way, for the log: times are monotonic seconds."""

    id: str
    began: float
    started: float | None = None
    entry: Entry | None = None
    payload: Any = None
    first_byte: FirstByte | None = None


class Backend:
    """Proxies validated requests to the model server through handlers (authoring.md §1).

    Constructing one only remembers its arguments: no network, no file, no environment, no event loop.
    `max_perf` is in workload/s, `max_wait_time` in seconds.
    """

    def __init__(
        self,
        model_server_url: str | None,
        model_log_file: str | Path | None = None,
        allow_parallel_requests: bool = False,
        benchmark_handler: EndpointHandler[Any] | None = None,
        log_actions: Sequence[tuple[LogAction, str]] = (),
        *,
        max_perf: float = 100.0,
        healthcheck_url: str | None = None,
        max_sessions: int | None = 10,
        lifecycle: Lifecycle | None = None,
        max_wait_time: float | None = None,
        unsecured: bool | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.model_server_url = model_server_url or ""
        self.model_log_file = Path(model_log_file) if model_log_file else None
        self.allow_parallel_requests = allow_parallel_requests
        self.benchmark_handler = benchmark_handler
        self.log_actions = tuple(log_actions)
        self.max_perf = max_perf
        self.healthcheck_url = healthcheck_url
        self.max_sessions = max_sessions
        self.lifecycle = lifecycle
        self.max_wait_time = max_wait_time
        self.unsecured = unsecured
        self.clock: Clock = clock or SystemClock()
        self.metrics = Ledger(self.clock)
        self.timings = Timings()
        self._routes: list[Route] = []
        self._one_at_a_time = self._queue(1)
        self._parts: RunningWorker | None = None
        self.spawn: Spawn = _no_server
        self._cutting = False
        self._session_entries: dict[str, Entry] = {}
        self._arriving: set[anyio.CancelScope] = set()  # bodies on their way here, of admitted requests

    # What an author uses

    def create_handler(self, handler: EndpointHandler[Any]) -> AioHandler:
        """An aiohttp request handler for `handler`, for `web.post(path, …)`."""
        limit = handler.max_queue_time
        route = Route(
            handler,
            self._queue_of(handler),
            self.max_wait_time if limit is None else limit,
            WorkloadCounter(type(handler).__name__),
        )
        self._routes.append(route)
        return partial(self._answer, route)

    def guard(
        self,
        function: BareHandler,
        *,
        workload: float | Callable[[Any], float] = DEFAULT_WORKLOAD,
        **fields: Any,
    ) -> AioHandler:
        """A bare aiohttp handler behind the same checks, queue and ledger as all others.

        `function` finds `request["payload"]`, JSON or an `Upload`, and `request["auth_data"]`. `workload` is
        a number, or a function of the payload; `fields` are an `EndpointHandler`'s.
        """
        return self.create_handler(BareRouteHandler(function=function, workload=workload, **fields))

    @property
    def session(self) -> ModelSession:
        """An HTTP client for the model server, while the worker runs; relative paths go below its URL."""
        return ModelSession(self.parts.server)

    def backend_errored(self, msg: str) -> None:
        """Put the worker into *errored* with `msg`, until the model's next "loaded" line.

        Where no log rule is for such lines, a health check that succeeds after failed ones clears it.
        """
        self.parts.readiness.fail(Cause.AUTHOR, msg)

    async def watch_health(self, url: str) -> None:
        """Check the model server's health at `url` until cancelled, or until it answers that it has no check.

        `url` is a path on the model server or an absolute URL. After three failures in a row the worker is
        *errored*; the next success clears that, and every other error. For a `lifecycle` that finds the model
        server's address at run time.
        """
        parts = self.parts
        await HealthWatch(parts.server, url, parts.readiness, self.clock, clears_all=True).follow()

    # The life of a request

    async def _serve(self, route: Route, request: web.Request, call: Call) -> web.StreamResponse:
        """The answer to one request, written to its last byte, its outcome in the ledger.

        Raises `WorkerError` (the answer is its status), `ClientGone`, `AnswerCut`, or whatever an author's
        code raises (500).
        """
        handler = route.handler
        envelope = await self.parts.gate.admit(request)
        with self._entry_of(envelope) as entry:
            call.entry = entry
            async with self._received(route, request, envelope, entry) as received:
                request["auth_data"], request["payload"] = envelope.auth, received
                call.payload = _payload_of(handler, envelope, received)
                entry.set_workload(route.workload.count(call.payload))
                self._check_state()
                self._check_wait(route, envelope.session)
                entry.accept()
                with self._judged(route, request, call):
                    response = await self._work(route, request, call)
                    written = await _write_out(request, response, handler.on_disconnect == "finish")
                entry.settle(_outcome(request, response))
                return written

    @contextmanager
    def _judged(self, route: Route, request: web.Request, call: Call) -> Generator[None, None, None]:
        """Whose doing it is that the work on a request was broken off: the worker's, its client's, its own.

        Raises `ClientGone` for whatever is raised on the way out after the client left.
        """
        assert call.entry is not None
        finishes = route.handler.on_disconnect == "finish"
        try:
            yield
        except asyncio.CancelledError as e:
            by_client = _left(request) and not (finishes and call.started is not None)
            if self._cutting:
                call.entry.settle(Outcome.ERRORED)
            elif not (self._drains or by_client):
                raise RuntimeError("the handler's own code was cancelled, by nobody here") from e
            raise
        except Exception as e:
            if self._cutting:
                call.entry.settle(Outcome.ERRORED)
            elif _left(request) and not finishes and not isinstance(e, ClientGone):
                log.warning("request %s: raised after its client had left: %r", call.id, e)
                raise ClientGone from e
            elif _is_late(request) and not isinstance(e, ClientGone):
                call.entry.settle(Outcome.ERRORED)
            raise

    @contextmanager
    def _entry_of(self, envelope: Envelope) -> Generator[Entry, None, None]:
        """The request's entry in the ledger, and its part in the session that it is in.

        Raises `SessionGone` (410), inside the entry, when there is no such session.
        """
        session = envelope.session
        if session is not None:
            with self.parts.sessions.used(session), self.metrics.open(counted=False) as entry:
                yield entry
        else:
            gone = envelope.session_id is not None
            with self.metrics.open(None if gone else envelope.auth.request_idx) as entry:
                if gone:
                    raise SessionGone(SESSION_GONE)
                yield entry

    @asynccontextmanager
    async def _received(
        self, route: Route, request: web.Request, envelope: Envelope, entry: Entry
    ) -> AsyncGenerator[dict[str, Any] | Upload, None]:
        """The payload as it came; an upload isn't waited for where that would be in vain.

        Raises `Unavailable` (503) when the worker is stopped before all of it is here.
        """
        payload = self.parts.gate.payload(request, envelope, route.handler.takes_uploads)
        if envelope.payload is not None:
            async with payload as received:
                yield received
            return
        if is_upload(request, envelope):
            entry.set_workload(DEFAULT_WORKLOAD)  # until it is here
            self._check_state()
            self._check_wait(route, envelope.session)
        received = None
        async with AsyncExitStack() as kept:
            with anyio.CancelScope() as arriving:
                self._arriving.add(arriving)
                try:
                    received = await kept.enter_async_context(payload)
                finally:
                    self._arriving.discard(arriving)
            if received is None:  # `drain` has cancelled it
                raise _stopping()
            yield received

    def _check_state(self) -> None:
        """Raises `Unavailable` (503) while the worker is not ready."""
        state = self.parts.readiness.state
        if state in _NOT_READY:
            raise Unavailable(state.value, f"the worker is {state.value}", RETRY_NOT_READY_S)

    def _check_wait(self, route: Route, session: Session | None) -> None:
        """Raises `TooBusy` (429) when by estimate the wait would be too long.

        A session's cost is no work that the requests inside it would wait for.
        """
        max_perf = self.parts.readiness.max_perf
        if route.max_queue_time_s is not None and max_perf > 0:
            of_session = self._session_entries.get(session.id) if session is not None else None
            wait_s = (self.metrics.cur_load - (of_session.workload if of_session else 0.0)) / max_perf
            if wait_s > route.max_queue_time_s:
                raise TooBusy(
                    f"the wait would be {wait_s:.1f} s, more than {route.max_queue_time_s:g} s",
                    wait_s - route.max_queue_time_s,
                )

    async def _work(self, route: Route, request: web.Request, call: Call) -> web.StreamResponse:
        """The answer, once it is this request's turn; newlines to its client meanwhile, where it has them."""
        work, handler = self._in_turn(route, request, call), route.handler
        if not handler.keepalive_s or request.method == "HEAD":  # whose answer has no body
            return await work
        return await Heartbeat(request, handler.keepalive_s, self.clock).during(work)

    async def _in_turn(self, route: Route, request: web.Request, call: Call) -> web.StreamResponse:
        assert call.entry is not None
        async with route.queue.slot(route.max_queue_time_s):
            call.entry.start()
            call.started = self.clock.monotonic()
            return await self._ask_model(route.handler, request, call.payload)

    async def _ask_model(
        self, handler: EndpointHandler[Any], request: web.Request, payload: Any
    ) -> web.StreamResponse:
        """Call the model and turn its answer into the client's.

        A client that leaves closes the call with it, unless the handler lets it finish.
        """
        caller = self.parts.server.caller(_forwarded_headers(request, handler), request)
        try:
            async with handler.call_model(caller, payload) as answer:
                if isinstance(answer, web.StreamResponse):
                    return answer
                try:
                    return await handler.generate_client_response(request, answer)
                except (ClientGone, ConnectionError) as e:
                    if not _left(request):
                        raise
                    if handler.on_disconnect != "finish":
                        raise ClientGone from e
                    await drain(answer)
                    return web.Response(status=answer.status)
        except web.HTTPException as e:
            return returnable(e)
        except (aiohttp.ClientError, TimeoutError, asyncio.TimeoutError) as e:
            if isinstance(e, ConnectionError) and _left(request):
                raise ClientGone from e
            raise _broken(request, e) from e

    # Sessions: what the engine sees as one request

    async def open_session(self, request: web.Request) -> Session:
        """A session for the client of `request`; its cost is in flight until its end.

        Raises what `Gate.admit` and `Gate.json_payload` raise, `Invalid` (422), `Unavailable` (503) while not
        ready, `TooBusy` (429) past `max_sessions`.
        """
        gate = self.parts.gate
        envelope = await gate.admit(request)
        if envelope.session_id is not None:  # which would let a signature in again
            raise Invalid({"session_id": "must not be given: a session is opened outside any other"})
        entry = self.metrics.open(envelope.auth.request_idx)
        try:
            terms = SessionTerms.from_json(await gate.json_payload(request, envelope))
            entry.set_workload(envelope.auth.cost)
            self._check_state()
            session = self.parts.sessions.create(envelope.raw_auth, terms)
        except BaseException as e:
            entry.close(e)
            raise
        entry.accept()
        entry.start()
        self._session_entries[session.id] = entry
        return session

    def _session_ended(self, session: Session, how: SessionEnd) -> None:
        entry = self._session_entries.pop(session.id)
        entry.settle(Outcome.CANCELLED if how is SessionEnd.DRAINED else Outcome.SERVED)
        entry.close()
        log.info("session %s… %s", session.id[:6], how.value)
        if session.terms.on_close_route is not None:
            call = self.metrics.open(counted=False)
            call.accept()  # from now on: a worker that drains waits for it
            self.spawn(partial(self._post_on_close, session, session.terms.on_close_route, call))

    async def _post_on_close(self, session: Session, route: str, call: Entry) -> None:
        """Tell the model server that a session is over; best effort."""
        message = {**(session.terms.on_close_payload or {}), "session_id": session.id}
        failure: Exception | None = TimeoutError()  # what it stays, where the limit cuts the call
        with call, time_limit(self.clock, ON_CLOSE_LIMIT_S):
            failure = await async_result_or_error(self._post(route, message))
        if failure is not None:
            log.warning("session %s…: POST %s on its end failed", session.id[:6], route)

    async def _post(self, route: str, message: dict[str, Any]) -> None:
        async with self.parts.server.caller({}).post_json(route, message) as answer:
            await drain(answer)

    # From the story's end to the client and the log

    async def _answer(self, route: Route, request: web.Request) -> web.StreamResponse:
        """Serve a request; a client that leaves cancels it, or lets it finish in the server's task group."""
        request = _without_api_key(request)
        call = Call(_request_id(request), self.clock.monotonic())
        if route.handler.on_disconnect != "finish":
            return await self._concluded(route, request, call)
        done: asyncio.Future[web.StreamResponse] = asyncio.get_running_loop().create_future()
        scope = anyio.CancelScope()
        self.spawn(partial(self._finish, done, scope, route, request, call))
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            if call.started is None:  # it still waits: a client that leaves leaves the queue
                scope.cancel()
            raise

    async def _finish(
        self,
        done: asyncio.Future[web.StreamResponse],
        scope: anyio.CancelScope,
        route: Route,
        request: web.Request,
        call: Call,
    ) -> None:
        """A request that its client's leaving does not end."""
        try:
            with scope:
                done.set_result(await self._concluded(route, request, call))
        finally:
            done.cancel()

    async def _concluded(self, route: Route, request: web.Request, call: Call) -> web.StreamResponse:
        """The answer, whatever became of the request; one line in the log."""
        status = CLIENT_CLOSED_REQUEST
        call.first_byte = FirstByte(request, self.clock)
        try:
            try:
                response = await self._serve(route, request, call)
            except WorkerError as e:
                if e.status >= 500 and not isinstance(e, Unavailable):
                    log.warning("request %s: %d: %s", call.id, e.status, e.message)
                response = await _told(request, error_response(e))
            except AnswerCut as e:
                log.warning("request %s: %s", call.id, e)
                response = aborted(request)
            except ClientGone:
                return aborted(request)
            except Exception:  # noqa: BLE001 - whatever an author raises is a 500
                response = await _told(request, internal_error_response(log, call.id))
            status = response.status
            return response
        finally:
            self._conclude(route, request, call, status)

    def _conclude(self, route: Route, request: web.Request, call: Call, status: int) -> None:
        """Log the request; tell the handler if its client left while the model worked."""
        entry, now = call.entry, self.clock.monotonic()
        access_log.info(
            "%s %s %s %d %s workload=%g queue_s=%.3f total_s=%.3f",
            call.id,
            request.method,
            request.path,
            status,
            entry.outcome.name.lower() if entry and entry.outcome else "refused",
            entry.workload if entry else 0.0,
            (call.started or now) - call.began,
            now - call.began,
        )
        if entry is not None and entry.outcome is not None:
            self.timings.add(_timing(request, call, status, entry.workload, entry.outcome, self.clock))
        if call.started is not None and entry and entry.outcome is Outcome.CANCELLED:
            self.spawn(partial(_tell, route.handler, call))

    # What the server uses

    @property
    def parts(self) -> RunningWorker:
        """The running worker's parts; raises `RuntimeError` while it doesn't run."""
        if self._parts is None:
            raise RuntimeError("the worker is not running: start it with start_server(backend, routes)")
        return self._parts

    @property
    def _drains(self) -> bool:
        return self._parts is None or self._parts.readiness.state is State.DRAINING

    @property
    def handlers(self) -> list[EndpointHandler[Any]]:
        """The handlers of the routes, and the benchmark's, each once."""
        handlers = {id(r.handler): r.handler for r in self._routes}
        if self.benchmark_handler is not None:
            handlers[id(self.benchmark_handler)] = self.benchmark_handler
        return list(handlers.values())

    def problems(self) -> list[str]:
        """Everything in what the author told that can't work, a line each."""
        of_handlers = (f"{type(h).__name__}: {problem}" for h in self.handlers for problem in _problems_of(h))
        return [*self.model_config().problems(), *of_handlers]

    @asynccontextmanager
    async def run_with(
        self, settings: Settings, directory: Path, process_age_s: float = 0.0
    ) -> AsyncGenerator[RunningWorker, None]:
        """Serve requests inside the block. Raises `SettingsError` when what the author told can't work."""
        if self.unsecured is not None:
            settings = replace(settings, unsecured=self.unsecured)
        config = self.model_config()
        if problems := self.problems():
            raise SettingsError(problems)
        async with open_worker(config, settings, self.metrics, self.clock, directory, process_age_s) as parts:
            self._parts = parts
            parts.sessions.on_end = self._session_ended
            try:
                yield parts
            finally:
                self._parts, self.spawn = None, _no_server

    def drain(self) -> None:
        """Take no more requests, and release those that wait with 503."""
        self.parts.readiness.drain()
        self.parts.sessions.end_all(SessionEnd.DRAINED)
        for queue in {id(r.queue): r.queue for r in self._routes}.values():
            queue.release_all(_stopping)
        for body in self._arriving:
            body.cancel()

    def cut(self) -> None:
        """The requests still in flight are cut from now on, by the worker: they count as errored."""
        self._cutting = True

    def queue_lengths(self) -> tuple[int, int]:
        """How many requests wait for a slot, and how many have one."""
        queues = {id(r.queue): r.queue for r in self._routes}.values()
        return sum(q.waiting for q in queues), sum(q.working for q in queues)

    def _queue_of(self, handler: EndpointHandler[Any]) -> SlotQueue:
        """All handlers that are not parallel wait in one queue; the others each in one, on any route."""
        for route in self._routes:
            if route.handler is handler:
                return route.queue
        limit = self._concurrency_of(handler)
        return self._one_at_a_time if limit == 1 and not self._is_parallel(handler) else self._queue(limit)

    def _concurrency_of(self, handler: EndpointHandler[Any]) -> int | None:
        if handler.max_concurrency is not None:
            return max(1, handler.max_concurrency)  # less is refused at the start, with all else
        return None if self._is_parallel(handler) else 1

    def _is_parallel(self, handler: EndpointHandler[Any]) -> bool:
        own = handler.allow_parallel_requests
        return self.allow_parallel_requests if own is None else own

    def _queue(self, limit: int | None) -> SlotQueue:
        return SlotQueue(limit, self.clock, self._drain_time_s)

    def _drain_time_s(self) -> float:
        """Seconds until what is in flight now will be done, at the measured throughput."""
        return self.metrics.cur_load / max(self.parts.readiness.max_perf, 1e-9)

    def model_config(self) -> BackendConfig:
        """What the author told of the model server and its life."""
        handlers = [r.handler for r in self._routes]
        if self.benchmark_handler is not None:
            handlers.insert(0, self.benchmark_handler)
        checks = [h.healthcheck_endpoint for h in handlers]
        return BackendConfig(
            url=self.model_server_url,
            log_file=self.model_log_file,
            log_actions=self.log_actions,
            healthcheck=self.healthcheck_url or next((c for c in checks if c), None),
            lifecycle=self.lifecycle,
            benchmark_handler=self.benchmark_handler,
            benchmark_cap=self._concurrency_of(self.benchmark_handler) if self.benchmark_handler else None,
            max_perf=self.max_perf,
            max_sessions=self.max_sessions,
        )


def _no_server(call: Callable[[], Coroutine[Any, Any, None]]) -> None:
    raise RuntimeError("the worker is not running: start it with start_server(backend, routes)")


def _stopping() -> Unavailable:
    return Unavailable("draining", "the worker is stopping", RETRY_NOT_READY_S)


def _payload_of(handler: EndpointHandler[Any], envelope: Envelope, received: dict[str, Any] | Upload) -> Any:
    """The payload, as the handler's author reads it. Raises `Invalid` (422)."""
    try:
        if isinstance(received, Upload):
            return handler.read_upload(received)
        return handler.read_payload(envelope.as_request(received))
    except JsonDataException as e:
        raise Invalid(e.message) from e


def _forwarded_headers(request: web.Request, handler: EndpointHandler[Any]) -> dict[str, str]:
    """The headers of a client's request that reach the model server (protocol.md §2).

    An answer that follows newlines is read by the client as it is, and one that an author's code reads
    is not unpacked: then none is asked for that is compressed.
    """
    packed = handler.accepts_compressed_answers and handler.keepalive_s is None
    names = _FORWARDED if packed else _FORWARDED[:2]
    return {name: ", ".join(request.headers.getall(name)) for name in names if name in request.headers}


async def _write_out(request: web.Request, response: web.StreamResponse, finish: bool) -> web.StreamResponse:
    """Write what of `response` is not written yet; what the client got in the end.

    Raises `ClientGone`, unless the call was to `finish`.
    """
    keepalive = Heartbeat.of(request)
    try:
        if not (finish and _left(request)):
            if keepalive is not None and keepalive.waiting:
                return await keepalive.finish(response)
            await response.prepare(request)
            await response.write_eof()
    except ConnectionError as e:
        if not finish:
            raise ClientGone from e
    return response


async def _told(request: web.Request, response: web.Response) -> web.StreamResponse:
    """The failure `response` as its client can still be told it; an answer under way is aborted."""
    keepalive = Heartbeat.of(request)
    if _begun(request):
        return aborted(request)
    if keepalive is None or not keepalive.waiting:
        return response
    try:
        return await keepalive.finish(response)
    except ConnectionError:
        return aborted(request)


def _is_late(request: web.Request) -> bool:
    """Whether newlines have told the client 200 already."""
    keepalive = Heartbeat.of(request)
    return keepalive is not None and keepalive.begun


def _outcome(request: web.Request, response: web.StreamResponse) -> Outcome:
    """What a passed-on answer counts as: its status, or what the handler said in `request["outcome"]`."""
    told = request.get("outcome")
    if told in ("served", "errored"):
        return Outcome.SERVED if told == "served" else Outcome.ERRORED
    return Outcome.SERVED if response.status < (400 if _is_late(request) else 500) else Outcome.ERRORED


def _broken(request: web.Request, error: BaseException) -> Exception:
    """What it means that an author's code failed to read the model server's answer to its end."""
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)) and not _begun(request):
        return ModelTimedOut("the model server took too long")
    if not isinstance(error, aiohttp.ClientPayloadError) and not _begun(request):
        return ModelUnreachable(f"the model server could not be reached: {describe_error(error)}")
    return AnswerCut(f"the model server's answer broke off: {describe_error(error)}")


def _left(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _begun(request: web.Request) -> bool:
    """Whether an answer is out, more than newlines: no other may follow it."""
    keepalive = Heartbeat.of(request)
    return request.writer.output_size > 0 and not (keepalive is not None and keepalive.waiting)


def _without_api_key(request: web.Request) -> web.Request:
    """`request` without the `api_key` in its query: no handler may log it or pass it on."""
    if "api_key" not in request.rel_url.query:
        return request
    return request.clone(rel_url=request.rel_url.without_query_params("api_key"))


def _request_id(request: web.Request) -> str:
    """The client's own `X-Request-Id`, where it is fit for a log line, or a new one."""
    own = request.headers.get("X-Request-Id", "")
    return own if _REQUEST_ID.fullmatch(own) else secrets.token_hex(8)


def _timing(
    request: web.Request, call: Call, status: int, workload: float, outcome: Outcome, clock: Clock
) -> Timing:
    now, first_byte = clock.monotonic(), call.first_byte
    return Timing(
        id=call.id,
        route=f"{request.method} {request.path}",
        status=status,
        outcome=outcome.name.lower(),
        workload=workload,
        queue_s=(call.started or now) - call.began,
        first_byte_s=first_byte.at - call.began if first_byte and first_byte.at is not None else None,
        total_s=now - call.began,
        ended_at=clock.wall(),
    )


async def _tell(handler: EndpointHandler[Any], call: Call) -> None:
    async def stop() -> None:  # calling an author's function may raise too
        await handler.on_client_disconnect(call.payload)

    failure = await async_result_or_error(stop())
    if failure is not None:
        log.warning("request %s: on_client_disconnect raised %r", call.id, failure)


def _problems_of(handler: EndpointHandler[Any]) -> list[str]:
    problems: list[str] = []
    for name in ("max_concurrency", "benchmark_concurrency"):
        value = getattr(handler, name)
        if value is not None and value < 1:
            problems.append(f"{name} is {value}, less than 1")
    for name in ("max_queue_time", "keepalive_s"):
        value = getattr(handler, name)
        if value is not None and not 0 <= value < math.inf:
            problems.append(f"{name} is {value}, not a finite number of seconds ≥ 0")
    if handler.on_disconnect not in ("cancel", "finish"):
        problems.append(f"on_disconnect is {handler.on_disconnect!r}, neither 'cancel' nor 'finish'")
    return problems
