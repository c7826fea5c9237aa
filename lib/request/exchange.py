"""One request between a client's socket and the model server: an exchange.

Owns the state of one request: id, ledger entry, times, heartbeat, verdict, and what has been sent.
It does not decide the order of the steps (lib/backend.py) or the rules of the verdict (verdict.py).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
from collections.abc import Callable, Sequence
from contextvars import Token
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from aiohttp import hdrs, web
from multidict import CIMultiDict

from lib.errors import (
    AnswerCut,
    ClientGone,
    DeclinedByAuthor,
    NoFiles,
    PlainAnswer,
    Unavailable,
    WorkerError,
    aborted,
    error_answer,
    internal_error_answer,
    is_out_of_files,
)
from lib.fields.json_fields import JsonDataException
from lib.http.counted import CountedConnection, counted_on
from lib.metrics import Entry, Outcome
from lib.request.heartbeat import Heartbeat
from lib.request.incoming import ClientConnection, DirectRequest, IncomingRequest, free_body_memory
from lib.request.lanes import Lane
from lib.request.log_lines import ACCESS_LOG, FAILED, OUTCOMES
from lib.request.own_requests import IS_COUNTED
from lib.request.refusal_reason import reason_of
from lib.request.sessions import Session
from lib.request.verbatim import Text, Verbatim
from lib.request.verdict import ABORTED_STATUS, Ending, Phase, Reply, Verdict, conclude, judge_answer
from lib.runtime.clock import Clock
from lib.runtime.urls import without_api_key

log = logging.getLogger(__name__)

Step = Callable[["Exchange"], None]

# The route of what reached none: an unknown path, or no valid request.
NO_ROUTE = ""

_FORWARDED_PLAIN = ("Accept", "X-Request-Id")
_FORWARDED = (*_FORWARDED_PLAIN, "Accept-Encoding")
_FORWARDED_LOWER = tuple((name.lower(), name) for name in _FORWARDED)
_FORWARDED_LOWER_PLAIN = tuple((name.lower(), name) for name in _FORWARDED_PLAIN)
_REQUEST_ID = re.compile(r"[\w.:+/=@-]{1,128}")
_OF_FRAMING = frozenset({"connection", "content-length", "date", "transfer-encoding"})
# A new id is unique, and needs no more: a random one for each request costs a system call.
_PROCESS_ID = secrets.token_hex(4)
_numbers = itertools.count(1)
_TWICE = "the handler answers twice: an answer to this request has already begun, and no second can follow"
_USED = "the handler returned a response that was sent before: make a new one for each request"
_OUTCOMES = {"served": Outcome.SERVED, "errored": Outcome.ERRORED}


@dataclass(frozen=True)
class Steps:
    """The observers' functions to call at each step of a request (observers.py)."""

    admitted: tuple[Step, ...] = ()
    accepted: tuple[Step, ...] = ()
    started: tuple[Step, ...] = ()
    first_byte: tuple[Step, ...] = ()
    ended: tuple[Step, ...] = ()


class AnsweredTwice(RuntimeError):
    """Author code answers a request a second time, or with a response that another request has had."""


class Admitted(Protocol):
    """The part of an `Admission` (lib/access/authenticator.py) that is read here."""

    payload_text: Text | None


class Relayed(NamedTuple):
    """An answer that was passed on byte by byte: all of it is written."""

    status: int


Answer = web.StreamResponse | Relayed | PlainAnswer


class Exchange:
    """One request and its state, for observers to read.

    `request` is aiohttp's, and `incoming` the same or, where this worker has parsed it, a `DirectRequest`.
    Author code reads `request["auth_data"]` and `request["payload"]`, and may set `request["outcome"]` to
    "served" or "errored". `method` and `path` are the request's, `route` has those that were declared,
    such as `GET /items/{id}`. `is_direct`: this worker has
    parsed it, and passes the answer on byte by byte. `lane` has the route's `handler`. `id` is
    the client's `X-Request-Id` or a new one. `payload` is what the handler has made of the body, None before;
    `verbatim` the text of the body's payload, if it can be forwarded as it came.
    `session` is the session that the request is in, or None. `verdict` is None before the end. `refusal` is
    the reason of the worker's own 4xx for the log, if that is on; else None. `began_s`, `started_s` (None
    before the slot) and `ended_s` are monotonic seconds of the worker's clock.
    """

    # What a request has at its beginning; set on the class, which costs each request nothing.
    started_s: float | None = None
    ended_s: float | None = None
    session: Session | None = None
    payload: Any = None
    verbatim: Verbatim | None = None
    verdict: Verdict | None = None
    refusal: str | None = None
    heartbeat: Heartbeat | None = None
    _entry: Entry | None = None
    _was_counted: Token[bool] | None = None
    _answer_status = 0
    _written: Answer | None = None
    _is_streamed = False
    _head_s: float | None = None
    _chunk_s: float | None = None

    def __init__(
        self,
        request: IncomingRequest,
        lane: Lane,
        clock: Clock,
        steps: Steps,
        phase: Callable[[], Phase] = Phase,
    ) -> None:
        self.incoming: IncomingRequest
        path = request.path
        self.is_direct = isinstance(request, DirectRequest)
        if isinstance(request, DirectRequest):
            self.incoming, self.route = request, "POST " + path
        else:
            request[_HAD_EXCHANGE] = True
            self.incoming, self.route = _without_api_key(request), route_of(request)
            self.incoming[_KEY] = self
        self._received_request = self.incoming
        self.method = request.method
        self.path = path
        self.lane = lane
        self.id = _request_id(request)
        self.began_s = clock.monotonic()
        handler = lane.handler
        self.finishes = handler.on_disconnect == "finish"
        if handler.keepalive_s and request.method != "HEAD":  # its answer has no body
            self.heartbeat = Heartbeat(self.request, handler.keepalive_s, clock)
        self._clock = clock
        self._steps = steps
        self._phase = phase

    @staticmethod
    def of(request: web.Request) -> Exchange | None:
        """The exchange of `request`; None for routes that no handler serves."""
        return request.get(_KEY)

    # Facts

    @property
    def request(self) -> web.Request:
        """The request as aiohttp's; a middleware may replace it."""
        incoming = self.incoming
        return incoming.as_aiohttp() if isinstance(incoming, DirectRequest) else incoming

    @request.setter
    def request(self, request: web.Request) -> None:
        self.incoming = request

    @property
    def client(self) -> ClientConnection:
        """The client's connection, for a request that this worker has parsed."""
        assert isinstance(self.incoming, DirectRequest)
        return self.incoming.connection

    @property
    def entry(self) -> Entry:
        """The request's entry in the ledger. It exists once `admit` was called."""
        assert self._entry is not None
        return self._entry

    @property
    def status(self) -> int:
        """The HTTP status for the log, 499 if the client left; 0 before the end."""
        return 0 if self.verdict is None else self.verdict.status

    @property
    def client_left(self) -> bool:
        """Whether the client's connection is closed or closing."""
        transport = self.incoming.transport
        return transport is None or transport.is_closing()

    @property
    def heartbeat_out(self) -> bool:
        """Whether a newline of the heartbeat, and with it status 200, was sent."""
        return self.heartbeat is not None and self.heartbeat.begun

    @property
    def answer_out(self) -> bool:
        """Whether an answer has begun, beyond newlines of the heartbeat: no other answer may follow."""
        is_waiting = self.heartbeat is not None and self.heartbeat.waiting
        return self._output_size > 0 and not is_waiting

    @property
    def _output_size(self) -> int:
        incoming = self.incoming
        if isinstance(incoming, DirectRequest):
            return incoming.connection.output_size
        return incoming.writer.output_size

    @property
    def outcome(self) -> Outcome | None:
        """The outcome in the ledger; None before the end and for requests that were not admitted."""
        return None if self._entry is None else self._entry.outcome

    @property
    def workload(self) -> float:
        """The workload in the author's unit; 0.0 before the payload was read."""
        return 0.0 if self._entry is None else self._entry.workload

    @property
    def queue_s(self) -> float:
        """Seconds from the request's arrival to its slot, or to its end or now if it has none."""
        until_s = self._ended_or_now_s if self.started_s is None else self.started_s
        return until_s - self.began_s

    @property
    def first_byte_s(self) -> float | None:
        """Seconds from the request's arrival to the answer's first byte, of its body if that is streamed.

        None before.
        """
        first_s = self._head_s if self._chunk_s is None else self._chunk_s
        return None if first_s is None else first_s - self.began_s

    @property
    def total_s(self) -> float:
        """Seconds from the request's arrival to its end, or to now."""
        return self._ended_or_now_s - self.began_s

    def forwarded_fields(self) -> bytes:
        """The same as `forwarded_headers` of an answer that is passed on unchanged, as lines of a head."""
        assert isinstance(self.incoming, DirectRequest)
        values = self.incoming.header_values
        names = _FORWARDED_LOWER if self.lane.accepts_compressed_answers else _FORWARDED_LOWER_PLAIN
        lines = [f"{name}: {values[key]}\r\n" for key, name in names if key in values]
        return "".join(lines).encode("utf-8", "surrogateescape")

    def forwarded_query(self) -> str:
        """The query of the client's URL, without `api_key`, for an answer that is passed on unchanged."""
        assert isinstance(self.incoming, DirectRequest)
        query = self.incoming.target.partition("?")[2]
        return without_api_key(query) if query else ""

    def forwarded_headers(self) -> dict[str, str]:
        """The client's header fields that the model server receives (docs/protocol.md, "Forwarded request").

        `Accept-Encoding` is left out if a compressed answer could not be passed on unchanged: with a
        heartbeat, or if author code reads the answer.
        """
        headers = self.incoming.headers
        names = _FORWARDED if self.lane.accepts_compressed_answers else _FORWARDED_PLAIN
        return {name: ", ".join(headers.getall(name)) for name in names if name in headers}

    # Steps

    def begin(self) -> None:
        """Note that author code which runs from now to `end` works for this request, which is counted."""
        self._was_counted = IS_COUNTED.set(True)

    def admit(self, auth: object, entry: Entry, session: Session | None) -> None:
        """Note that the request is authenticated, and belongs to `session` if that is not None."""
        note_verified(self.incoming)
        self._entry, self.session = entry, session
        self.incoming["auth_data"] = auth
        if self._steps.admitted:
            _notify(self._steps.admitted, self)

    def keep_text(self, admission: Admitted, received: Any) -> None:
        """Take the JSON text of the payload, as `received`, from `admission`, if it can be forwarded."""
        if admission.payload_text is not None and self.is_direct:
            self.verbatim = Verbatim.of(admission.payload_text, received)
        admission.payload_text = None  # it holds the whole body

    def receive(self, received: Any, payload: Any, workload: float) -> None:
        """Note the payload, as `received` and as the handler has read it, and its workload."""
        self.incoming["payload"], self.payload = received, payload
        assert self._entry is not None
        self._entry.set_workload(workload)

    def accept(self) -> None:
        """Count the request as load; a second call, by a middleware that tries again, does nothing.

        Raises `RuntimeError` once the request has ended: nothing would end its load any more.
        """
        if self.verdict is not None:
            raise RuntimeError("the request has ended: a middleware must await its handler before it answers")
        assert self._entry is not None
        if self._entry.accepted:
            return
        self._entry.accept()
        if self._steps.accepted:
            _notify(self._steps.accepted, self)

    def start(self) -> None:
        """Note that the request has its slot: the model is called next. Only the first slot counts."""
        if self.started_s is not None:
            return
        assert self._entry is not None
        self._entry.start()
        if (
            not self.is_direct
        ):  # author code is next; the calls that this worker writes itself wait in an outbox
            self._entry.secure()
        self.started_s = self._clock.monotonic()
        if self._steps.started:
            _notify(self._steps.started, self)

    def stream(self) -> None:
        """Note that the answer's body is streamed; `note_chunk` is called before each chunk."""
        self._is_streamed = True

    def note_head(self, response: web.StreamResponse) -> None:
        """Note that `response` is about to send its headers. Raises `AnsweredTwice` for a second answer."""
        if self.heartbeat is not None:
            self.heartbeat.check(response)
        if self._output_size > 0:
            raise AnsweredTwice(_TWICE)
        if self.heartbeat is not None and self.heartbeat.is_stream(response):
            return  # only its newlines follow for now
        self._answer_status = response.status
        is_first = self._head_s is None
        self._head_s = self._clock.monotonic()
        if is_first and not self._is_streamed:
            self._first_byte()

    def note_chunk(self) -> None:
        """Note that a chunk of the answer's body is about to be written."""
        if self._chunk_s is None:
            self._chunk_s = self._clock.monotonic()
            self._first_byte()

    def note_relayed_head(self, status: int) -> None:
        """Note that the head of an answer that is passed on byte by byte is about to be written."""
        self._answer_status = status
        self._head_s = self._clock.monotonic()
        if not self._is_streamed and self._steps.first_byte:
            _notify(self._steps.first_byte, self)

    async def write(self, response: web.StreamResponse | Relayed) -> Answer:
        """Write the rest of `response`; return the answer that was sent, which may be the heartbeat's.

        Raises `ClientGone` if the client left, except for handlers with `on_disconnect="finish"`,
        `AnsweredTwice`, and what reading the body of `response` raises.
        """
        self._answer_status = response.status
        if isinstance(response, Relayed):
            self._written = response
            return response
        if self.is_direct:  # author code has raised it
            if self._output_size > 0:
                raise AnsweredTwice(_TWICE)
            self._written = _plain(response)
            return self._written
        if response.prepared and self._head_s is None and not self.heartbeat_out:
            raise AnsweredTwice(_USED)
        try:
            if not (self.finishes and self.client_left):
                if self.heartbeat is not None and self.heartbeat.waiting:
                    response = await self._finish_heartbeat(response)
                else:
                    await response.prepare(self.request)
                    await response.write_eof()
        except ConnectionError as e:
            if not self.client_left:  # reading the body raised it: the author's code, or the model's side
                raise
            if not self.finishes:
                raise ClientGone from e
        self._written = response
        return response

    def conclude(self, error: BaseException | None) -> Verdict:
        """Decide the verdict once, from `error` or the answer that was written; set the entry's outcome."""
        if self.verdict is not None:
            if isinstance(error, Exception):
                log_failure(self, logging.ERROR, "an error after its answer", error)
        else:
            if error is None:  # as nearly always: without gathering all that an error may need
                heartbeat_out = self.heartbeat is not None and self.heartbeat.begun
                requested, cut = self._requested_outcome(), self._phase().cut
                started = self.started_s is not None
                self.verdict = judge_answer(self._answer_status, requested, heartbeat_out, cut, started)
                if self._entry is not None:
                    self._entry.set_outcome(self.verdict.outcome, self.verdict.without_work)
            else:
                error = _known(error)
                self.verdict = conclude(self._entry, self._ending(error))
                if isinstance(error, WorkerError) and error.status < 500 and not self.client_left:
                    self.refusal = reason_of(error) if ACCESS_LOG.isEnabledFor(logging.INFO) else None
                self._log_error(error)
        return self.verdict

    def _ending(self, error: BaseException) -> Ending:
        phase = self._phase()
        return Ending(
            error=error,
            status=self._answer_status,
            requested=self._requested_outcome(),
            client_left=self.client_left,
            finishes=self.finishes,
            started=self.started_s is not None,
            heartbeat_out=self.heartbeat_out,
            answer_out=self.answer_out,
            cut=phase.cut,
            draining=phase.draining,
        )

    async def reply(self, verdict: Verdict, error: BaseException) -> Answer:
        """Return the reply to a request that `error` has ended, as `verdict` says.

        Returns the answer that `write` returned, if the error came after it. Raises `error` if it cancels
        the request's task from outside; there is no reply then.
        """
        if verdict.reply is Reply.NONE and not isinstance(error, Exception):
            try:
                raise error
            finally:
                del error  # its traceback has this frame: they would keep each other alive
        if self._written is not None:
            return self._written
        if verdict.reply in (Reply.ABORT, Reply.NONE):
            return self._abort()
        error = _known(error)
        answer = error_answer(error) if isinstance(error, WorkerError) else internal_error_answer(self.id)
        if self.is_direct:
            return answer
        if verdict.reply is Reply.ERROR:
            return answer.response()
        try:
            return await self._finish_heartbeat(answer.response())
        except ConnectionError:
            return self._abort()

    def end(self) -> None:
        """Note that the request has ended."""
        self.ended_s = self._clock.monotonic()
        if self._steps.ended:
            _notify(self._steps.ended, self)
        # Break the reference cycles, so that all are freed without the garbage collector.
        if isinstance(self._received_request, DirectRequest):
            self._received_request.end()
        else:
            free_body_memory(self._received_request)
            self._received_request.pop(_KEY, None)
            self.request.pop(_KEY, None)
        if self._was_counted is not None:
            IS_COUNTED.reset(self._was_counted)

    async def notify_client_left(self) -> None:
        """Call the handler's `on_client_disconnect`; log what it raises."""
        IS_COUNTED.set(True)  # for this task, which ends with the call
        try:
            await self.lane.handler.on_client_disconnect(self.payload)
        except Exception as e:  # noqa: BLE001 - it is the author's code
            log_failure(self, logging.WARNING, "on_client_disconnect failed", e)

    async def _finish_heartbeat(self, response: web.StreamResponse) -> web.StreamResponse:
        assert self.heartbeat is not None
        self.note_chunk()
        return await self.heartbeat.finish(response)

    def _requested_outcome(self) -> Outcome | None:
        """The outcome that author code asked for, on the request or on what a middleware replaced it by."""
        requested = self.incoming.get("outcome")
        if requested is None and self._received_request is not self.incoming:
            requested = self._received_request.get("outcome")
        return _OUTCOMES.get(requested) if isinstance(requested, str) else None

    def _abort(self) -> web.Response:
        """Abort the client's connection; return an answer, which is not sent."""
        if not isinstance(self.incoming, DirectRequest):
            return aborted(self.incoming)
        if self.incoming.transport is not None:
            self.incoming.transport.abort()
        return web.Response(status=ABORTED_STATUS)

    def _first_byte(self) -> None:
        if self._steps.first_byte:
            _notify(self._steps.first_byte, self)

    @property
    def _ended_or_now_s(self) -> float:
        return self._clock.monotonic() if self.ended_s is None else self.ended_s

    def _log_error(self, error: BaseException) -> None:
        assert self.verdict is not None
        if self.verdict.reply is Reply.NONE or isinstance(error, ClientGone):
            return
        if self.verdict.outcome is Outcome.CANCELLED:
            log_failure(self, logging.WARNING, f"raised {type(error).__name__} after its client had left")
        elif isinstance(error, asyncio.CancelledError):
            log_failure(self, logging.ERROR, "the handler's own code was cancelled", error)
        elif isinstance(error, AnsweredTwice):
            log_failure(self, logging.ERROR, f"{self.method} {self.path}: {error}")
        elif self.verdict.is_unexpected:
            log_failure(self, logging.ERROR, "unexpected error", error)
        elif isinstance(error, AnswerCut):
            log_failure(self, logging.WARNING, str(error))
        elif isinstance(error, WorkerError) and self.verdict.reply is Reply.ABORT:
            failure = f"{error.status} after its answer had begun: {reason_of(error)}"
            log_failure(self, logging.WARNING, failure)
        elif isinstance(error, NoFiles) or (
            isinstance(error, WorkerError) and error.status >= 500 and not isinstance(error, Unavailable)
        ):
            log_failure(self, logging.WARNING, f"{error.status}: {error.message}")


_KEY = web.RequestKey("pyworker.exchange", Exchange)
_HAD_EXCHANGE = web.RequestKey("pyworker.had_exchange", bool)


async def on_response_prepare(request: web.Request, response: web.StreamResponse) -> None:
    """Note the headers of every answer; a signal for the application's `on_response_prepare`.

    Raises `AnsweredTwice` for a second answer of a handler, and `ConnectionResetError` for one to a closed
    connection: aiohttp expects an answer also for a request whose answer was cut, and doesn't log this error.
    A second answer of an author's own route closes the connection, too.
    """
    exchange = Exchange.of(request)
    if exchange is not None:
        exchange.note_head(response)
    elif request.transport is None or request.transport.is_closing():
        raise ConnectionResetError("the client's connection is closed")
    elif request.writer.output_size > 0:
        log.error("%s %s: %s", request.method, request.path, _TWICE)
        request.transport.abort()
        raise ConnectionResetError("an answer to this request has already begun")
    _forget_unsent_head(request.writer, response)


def had_exchange(request: web.BaseRequest) -> bool:
    """Whether the request of aiohttp's has or had an exchange."""
    return _HAD_EXCHANGE in request


def route_of(request: web.BaseRequest) -> str:
    """The method and the declared path of the route of `request`, such as `GET /items/{id}`.

    `NO_ROUTE` without one. A method that RFC 9110 and RFC 5789 don't define is `*`: what clients write into
    a path or a method makes no new route.
    """
    resource = request.match_info.route.resource if isinstance(request, web.Request) else None
    if resource is None:
        return NO_ROUTE
    return f"{request.method if request.method in hdrs.METH_ALL else '*'} {resource.canonical}"


def connection_of(request: IncomingRequest) -> CountedConnection | ClientConnection | None:
    """The connection that `request` has come on; None if it is lost."""
    if isinstance(request, DirectRequest):
        return request.connection
    return counted_on(request.transport)


def note_verified(request: IncomingRequest) -> None:
    """Note that `request` was admitted: its client, and what it holds, is no stranger's any more."""
    connection: CountedConnection | ClientConnection | None
    if isinstance(request, DirectRequest):
        request.end_charges()
        connection = request.connection
    else:
        connection = counted_on(request.transport)
    if connection is not None and not connection.is_known:
        connection.note_verified()


def _forget_unsent_head(writer: Any, response: web.StreamResponse) -> None:
    """Have `writer`, aiohttp's of one request, frame the body as `response` says.

    aiohttp sends a head with the first byte of its body. If that was never made, as the author's code raised,
    another answer follows, for which the writer would keep the framing of the first.
    """
    writer.chunked = "Transfer-Encoding" in response.headers
    if writer.chunked:
        writer.length = None
    if not response.compression:
        writer._compress = None


def _notify(functions: Sequence[Step], exchange: Exchange) -> None:
    """Call each of `functions`, whatever the others raise."""
    for function in functions:
        try:
            function(exchange)
        except (Exception, asyncio.CancelledError) as e:  # noqa: BLE001 - it is the author's code
            log_failure(exchange, logging.ERROR, "an observer failed", e)


def log_failure(exchange: Exchange, level: int, failure: str, error: BaseException | None = None) -> None:
    """Log a failure of a request, with the traceback of `error` if it is given."""
    ended = exchange.verdict is not None
    status, outcome = (exchange.status, OUTCOMES[exchange.outcome]) if ended else (None, None)
    request = (exchange.id, failure, exchange.method, exchange.path, exchange.route)
    log.log(level, FAILED, *request, status, outcome, exchange.queue_s, exchange.total_s, exc_info=error)


def _known(error: BaseException) -> BaseException:
    """Return `error`, or the worker's own in place of author code's refusal, or where files ran out."""
    if isinstance(error, WorkerError):
        return error
    if isinstance(error, JsonDataException):
        return DeclinedByAuthor({"payload": error.message})
    return NoFiles() if is_out_of_files(error) else error


def _without_api_key(request: web.Request) -> web.Request:
    """Remove `api_key` from the query of `request`, so that no handler logs or forwards it."""
    if "api_key" not in request.rel_url.query:
        return request
    return request.clone(rel_url=request.rel_url.without_query_params("api_key"))


def _plain(response: web.StreamResponse) -> PlainAnswer:
    """The same as `response`. Raises `TypeError` for one with a body that is not in memory."""
    body = response.body if isinstance(response, web.Response) else response
    if not isinstance(body, (bytes, bytearray, type(None))):
        raise TypeError("an answer that is raised must have its body in memory")
    headers = CIMultiDict((n, v) for n, v in response.headers.items() if n.lower() not in _OF_FRAMING)
    for cookie in response.cookies.values():
        headers.add("Set-Cookie", cookie.output(header="").strip())
    return PlainAnswer(response.status, headers, bytes(body or b""), response.reason)


def _request_id(request: IncomingRequest) -> str:
    """The client's `X-Request-Id` if it is safe in a log line, otherwise a new id."""
    if isinstance(request, DirectRequest):
        own = request.header_values.get("x-request-id", "")
    else:
        own = request.headers.get("X-Request-Id", "")
    return own if own and _REQUEST_ID.fullmatch(own) else f"{_PROCESS_ID}-{next(_numbers)}"
