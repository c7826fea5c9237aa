"""Calls to the model server on connections of our own, whose answers are handed on as they come.

Owns the connections, their reuse, and following one answer to its end: where its head and its body end, and
what makes it broken. A `Receiver` gets the bytes; for the client's answer that is lib/model/direct_relay.py.
What authors call is carried by aiohttp's client (connection.py), under the same rules.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import ssl
from collections.abc import Awaitable, Callable
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import anyio
from yarl import URL

from lib.errors import ModelUnreachable, NoFiles, describe_error, is_out_of_files
from lib.http.chunked import BadChunk, ChunkScanner
from lib.http.deadlines import Deadlines
from lib.http.heads import HEAD_END, BadHead, ResponseHead, parse_response
from lib.http.outbox import Outbox
from lib.model.checked_connector import MAX_INTERIM_ANSWERS
from lib.model.connection import (
    CONNECT_TIMEOUT_S,
    KEEP_ALIVE_S,
    answer_cut,
    is_same_origin,
    resolved,
    timed_out,
    unreachable,
)
from lib.model.reach import Reach
from lib.model.stall import Stall, StallWatch
from lib.request.verbatim import Text
from lib.runtime.clock import Clock
from lib.runtime.excerpt import LOGGED_BYTES
from lib.runtime.tcp import bytes_acked, closed_untaken, input_poll

log = logging.getLogger(__name__)

# The largest head of an answer.
MAX_HEAD_BYTES = 64 * 1024
# A body up to this is written together with its head.
ONE_SEGMENT_BYTES = 64 * 1024


class Origin(NamedTuple):
    """Address to connect to: the model server's, or that of another server that a handler calls."""

    host: str
    port: int
    is_tls: bool


class PostTarget(NamedTuple):
    """A URL to POST to. `head` has the request line and the fields that follow from the URL."""

    origin: Origin
    head: bytes


class Outgoing:
    """A request on its way: the header `fields`, each with its line end, and the body.

    The body is let go as soon as an answer begins: it may be large, and the answer long.
    """

    __slots__ = ("body", "fields", "idempotent")

    def __init__(self, fields: bytes, body: Text, idempotent: bool) -> None:
        self.fields = fields
        self.body = body
        self.idempotent = idempotent


class Receiver(Protocol):
    """Gets the answer to one call, in the order in which it arrives, on the event loop."""

    def answer(self, head: ResponseHead, source: asyncio.Transport) -> None:
        """Take the head. `source` can be paused as long as the answer has not ended."""
        ...

    def body(self, raw: bytes, pieces: list[bytes]) -> None:
        """Take a part of the body: `raw` with its chunked framing, if it has one, and `pieces` without."""
        ...

    def flush(self) -> None:
        """Pass on what was held back to be sent together with more: nothing more has arrived."""
        ...

    def ended(self) -> None:
        """Note that the whole answer has come: the source may carry another call from now on."""
        ...


class NotTaken(Exception):
    """A reused connection ended before the model server had taken a byte of the request."""


class DirectCalls:
    """Calls by POST to the model server and to other servers; use it in an `async with`.

    A call may take `timeout_s` seconds, None: no limit. `reach` is told which calls reach their address;
    `stalls` breaks off answers that stall.
    """

    def __init__(
        self,
        clock: Clock,
        timeout_s: float | None = None,
        reach: Reach | None = None,
        stalls: StallWatch | None = None,
    ) -> None:
        self.reach = reach or Reach()
        self._idle: dict[Origin, list[ModelConnection]] = {}
        self._open: set[ModelConnection] = set()
        self._expiry: Deadlines[ModelConnection] = Deadlines(clock, KEEP_ALIVE_S, ModelConnection.abort)
        self._limits: Deadlines[_TimedCall] | None = None
        if timeout_s is not None:
            self._limits = Deadlines(clock, timeout_s, _TimedCall.end_late)
        self._tls: ssl.SSLContext | None = None
        self._stalls = stalls or StallWatch(clock)
        self.outbox = Outbox(self._open, self._expiry.items)

    def post(self, target: PostTarget, outgoing: Outgoing, receiver: Receiver) -> Awaitable[None]:
        """Send a request; the result can be awaited, and returns once `receiver` has got the whole answer.

        It is sent once more, on a new connection, if a reused one turns out to have been closed before, or,
        if it is idempotent, whenever the connection ended before any byte of an answer came. A cancelled call
        closes its connection. Raises `ModelUnreachable` (502), `ModelTimedOut` (504), `AnswerCut`, and
        `ModelDown` (503) if it was not tried.
        """
        if self.reach.is_down:
            return self._post_in_turn(target, outgoing, receiver)
        if self._limits is None:
            return self._post(target, outgoing, receiver)
        return self._post_within(self._limits, target, outgoing, receiver)

    async def _post_in_turn(self, target: PostTarget, outgoing: Outgoing, receiver: Receiver) -> None:
        with self.reach.attempt(target.origin.host, target.origin.port):
            await self._post_within(self._limits, target, outgoing, receiver)

    async def _post_within(
        self, limits: Deadlines[_TimedCall] | None, target: PostTarget, outgoing: Outgoing, receiver: Receiver
    ) -> None:
        if limits is None:
            await self._post(target, outgoing, receiver)
            return
        timed = _TimedCall()
        limits.add(timed)
        try:
            await self._post(target, outgoing, receiver, timed)
        finally:
            limits.remove(timed)

    async def _post(
        self, target: PostTarget, outgoing: Outgoing, receiver: Receiver, timed: _TimedCall | None = None
    ) -> None:
        origin = target.origin
        connection = self._reusable(origin)
        may_repeat = True
        while True:
            is_reused = connection is not None
            if connection is None:
                connection = await self._connect(origin, timed)
            ended = connection.call(target, outgoing, receiver, is_reused and may_repeat, may_repeat)
            if timed is not None:
                timed.use(connection, ended)
            try:
                await ended
                return
            except NotTaken:
                connection, may_repeat = None, False
            except BaseException:
                connection.cancel(ended)
                raise

    async def __aenter__(self) -> DirectCalls:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._expiry.close()
        if self._limits is not None:
            self._limits.close()
        for connection in list(self._open):
            connection.abort()
        self._idle.clear()

    # Called by connections

    def release(self, connection: ModelConnection) -> None:
        """Keep `connection` for another call."""
        self._idle.setdefault(connection.origin, []).append(connection)
        self._expiry.add(connection)

    def forget(self, connection: ModelConnection) -> None:
        """Note that `connection` is closed."""
        self._open.discard(connection)
        self._stalls.remove(connection)
        self._expiry.remove(connection)
        idle = self._idle.get(connection.origin, [])
        if connection in idle:
            idle.remove(connection)

    def _reusable(self, origin: Origin) -> ModelConnection | None:
        """An idle connection, taken out of the idle ones: not one whose end or unasked bytes have arrived."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            self._expiry.remove(connection)
            if not idle:
                del self._idle[origin]
            if connection.is_usable:
                return connection
            connection.abort()
        return None

    async def _connect(self, origin: Origin, timed: _TimedCall | None) -> ModelConnection:
        tls = None
        if origin.is_tls:
            tls = self._tls = self._tls or ssl.create_default_context()
        connection = ModelConnection(self, origin)
        loop = asyncio.get_running_loop()
        try:
            with anyio.move_on_after(CONNECT_TIMEOUT_S) as scope:
                if timed is not None:
                    timed.connecting(scope)
                await loop.create_connection(lambda: connection, origin.host, origin.port, ssl=tls)
        except OSError as e:
            if is_out_of_files(e):
                raise NoFiles from e
            self.reach.note_failure(origin.host, origin.port, e)
            raise unreachable(describe_error(e)) from e
        if timed is not None and timed.is_late:
            if not scope.cancelled_caught:
                connection.abort()
            raise timed_out()
        if scope.cancelled_caught:
            raise unreachable("connecting took too long")
        self._open.add(connection)
        self._stalls.add(connection)
        return connection


class _TimedCall:
    """A call with a time limit; `is_late` once it is over."""

    def __init__(self) -> None:
        self.is_late = False
        self._end: Callable[[], object] | None = None

    def connecting(self, scope: anyio.CancelScope) -> None:
        """Note that a connection is being made inside `scope`."""
        self._end = scope.cancel

    def use(self, connection: ModelConnection, ended: asyncio.Future[None]) -> None:
        """Note that the call goes on on `connection`, until `ended`."""
        self._end = partial(connection.fail_call, ended)

    def end_late(self) -> None:
        """End the call, which has taken too long."""
        self.is_late = True
        if self._end is not None:
            self._end()


class ModelConnection(asyncio.Protocol):
    """One connection to a server, with at most one call on it at a time."""

    __slots__ = (
        "_acked_extra",
        "_calls",
        "_chunks",
        "_ended",
        "_fd",
        "_head",
        "_held",
        "_idempotent",
        "_interim",
        "_is_reused",
        "_keep_alive",
        "_left",
        "_moves",
        "_moves_before",
        "_outgoing",
        "_poll",
        "_receiver",
        "_sent_before",
        "_sent_bytes",
        "origin",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, calls: DirectCalls, origin: Origin) -> None:
        self.origin = origin
        self._calls = calls
        self._fd = -1
        self._receiver: Receiver | None = None
        self._ended: asyncio.Future[None] | None = None
        self._outgoing: Outgoing | None = None  # until the first byte of its answer
        self._head: bytes | None = None
        self._chunks: ChunkScanner | None = None
        self._left = 0  # bytes of the body to come; -1: until the connection ends
        self._moves = self._moves_before = 0  # parts of bodies on this connection, and before the current one
        self._interim = 0
        self._held = b""  # the request, to be written at the end of the event loop's turn
        self._keep_alive = False
        self._is_reused = self._idempotent = False
        self._sent_bytes = self._sent_before = 0  # on this connection, and before the current call
        # What the other side has acknowledged beyond what calls have sent; known once the first is answered.
        self._acked_extra: int | None = None

    # The call

    def call(
        self, target: PostTarget, outgoing: Outgoing, receiver: Receiver, is_reused: bool, may_repeat: bool
    ) -> asyncio.Future[None]:
        """Send a request; return the future of its answer's end, which has the error if there is one."""
        body = outgoing.body
        head = b"%s%sContent-Length: %d\r\n\r\n" % (target.head, outgoing.fields, len(body))
        self._outgoing = outgoing
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._receiver, self._ended, self._head = receiver, ended, b""
        self._chunks, self._left, self._interim = None, 0, 0
        self._moves_before = self._moves
        self._is_reused, self._idempotent = is_reused, outgoing.idempotent and may_repeat
        self._sent_before = self._sent_bytes
        self._sent_bytes += len(head) + len(body)
        if self.transport.is_closing():  # it was closed as soon as it was open
            self.fail(self._no_answer(None))
        elif len(body) <= ONE_SEGMENT_BYTES:
            self._held = head + body
            self._calls.outbox.add(self)
        else:
            self._calls.outbox.before()
            self.transport.writelines((head, body))
        return ended

    def flush(self) -> None:
        """Write the request that `call` has taken."""
        data, self._held = self._held, b""
        if data and not self.transport.is_closing():
            self.transport.write(data)

    @property
    def is_usable(self) -> bool:
        """Whether an idle connection is open, and nothing has arrived on it."""
        return not self.transport.is_closing() and not self._poll.poll(0)

    def abort(self) -> None:
        """Close the connection at once, with the call on it, if there is one."""
        if self._ended is not None:
            self._ended.cancel()
        self._receiver = self._ended = None
        self.transport.abort()

    def cancel(self, ended: asyncio.Future[None]) -> None:
        """Close the connection, unless the call that `ended` belongs to has ended and others may be on it."""
        if self._ended is ended:
            self.abort()

    def fail_call(self, ended: asyncio.Future[None]) -> None:
        """End the call that `ended` belongs to, which has taken too long; do nothing if it has ended."""
        if self._ended is ended:
            self.fail(timed_out())

    @property
    def progress(self) -> int | None:
        """The parts of bodies so far; None where no body has begun, or while the client has enough of it."""
        has_begun = self._receiver is not None and self._moves > self._moves_before
        return self._moves if has_begun and self.transport.is_reading() else None

    def stall(self, error: Stall) -> None:
        """End the call on this connection, whose answer has stalled."""
        self.fail(answer_cut(error))

    def fail(self, error: Exception) -> None:
        """End the call on this connection with `error`, and close it."""
        ended, self._ended, self._receiver = self._ended, None, None
        if isinstance(error, StopIteration):  # which no future may hold
            error = RuntimeError(f"an author's scanner raised {error!r}")
        if ended is not None and not ended.done():
            ended.set_exception(error)
        self.transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # pyright: ignore[reportAttributeAccessIssue]
        self._fd = transport.get_extra_info("socket").fileno()
        self._poll = input_poll(self._fd)

    def data_received(self, data: bytes) -> None:
        receiver = self._receiver
        if receiver is None:  # nobody asked for it
            self.abort()
            return
        if self._outgoing is not None:
            self._outgoing.body, self._outgoing = b"", None
        try:
            if self._head is not None:
                rest = self._read_head(receiver, self._head + data)
                if rest is None:
                    return
                if rest and self._receiver is not None:
                    self._read_body(receiver, rest)
                receiver.flush()
            else:
                self._read_body(receiver, data)
        except (BadHead, BadChunk) as e:
            log.debug(
                "the model server has sent invalid HTTP: %r", ((self._head or b"") + data)[:LOGGED_BYTES]
            )
            is_head = isinstance(e, BadHead)
            self.fail(ModelUnreachable(f"the model server's answer {e}") if is_head else answer_cut(e))
        except Exception as e:  # noqa: BLE001 - an author's scanner may raise anything
            self.fail(e)

    def connection_lost(self, exc: Exception | None) -> None:
        self._calls.forget(self)
        if self._receiver is None:
            return
        if self._head is not None:
            self.fail(self._no_answer(exc))
        elif exc is None and self._left < 0:
            self._end()
        else:
            error = exc or ConnectionError("the connection was closed")
            self._calls.reach.note_failure(self.origin.host, self.origin.port, error)
            self.fail(answer_cut(error))

    # The answer

    def _read_head(self, receiver: Receiver, data: bytes) -> bytes | None:
        """Read the head at the beginning of `data`; return what follows it, None if it is not whole."""
        while True:
            end = data.find(HEAD_END)
            if end < 0:
                if len(data) > MAX_HEAD_BYTES or b"\n\n" in data:
                    raise BadHead("has a head that is too large or malformed")
                self._head = data
                return None
            end += 4
            if end > MAX_HEAD_BYTES:
                raise BadHead("has a head that is too large or malformed")
            head, data = parse_response(data[:end]), data[end:]
            if head.status >= 200:
                break
            self._interim += 1
            if head.status == 101 or self._interim > MAX_INTERIM_ANSWERS:
                raise BadHead("has too many interim answers, or switches protocols")
        self._head = None
        self._keep_alive = head.keep_alive
        if head.chunked:
            self._chunks = ChunkScanner()
        else:
            self._left = -1 if head.length is None else head.length
        receiver.answer(head, self.transport)
        if self._calls.reach.is_suspect:
            self._calls.reach.note_success(self.origin.host, self.origin.port)
        if not self._left and self._chunks is None:
            self._keep_alive = self._keep_alive and not data
            self._end()
        return data

    def _read_body(self, receiver: Receiver, data: bytes) -> None:
        if self._chunks is not None:
            pieces: list[bytes] = []
            used = self._chunks.scan(data, pieces)
            is_over = self._chunks.is_done
            if used < len(data):
                self._keep_alive = False
                data = data[:used]
        elif self._left < 0:
            pieces, is_over = [data], False
        else:
            if len(data) > self._left:
                self._keep_alive = False
                data = data[: self._left]
            self._left -= len(data)
            pieces, is_over = [data], not self._left
        if pieces:
            self._moves += 1
        receiver.body(data, pieces)
        if is_over:
            self._end()

    def _end(self) -> None:
        """Note that the whole answer has come: free the connection for another call, or close it."""
        if self._receiver is not None:
            self._receiver.ended()
        ended, self._ended, self._receiver = self._ended, None, None
        if ended is not None and not ended.done():
            ended.set_result(None)
        transport = self.transport
        # With a part of the request unsent, the server has answered early: it may never read the rest.
        if self._keep_alive and not transport.is_closing() and not transport.get_write_buffer_size():
            transport.resume_reading()
            if self._acked_extra is None and (acked := bytes_acked(self._fd)) is not None:
                self._acked_extra = acked - self._sent_bytes
            self._calls.release(self)
        else:
            transport.abort()

    def _no_answer(self, exc: Exception | None) -> Exception:
        """The error of a connection that ended before an answer."""
        if self._outgoing is not None:
            if self._idempotent:
                return NotTaken()
            if self._is_reused and self._acked_extra is not None:
                before = self._acked_extra + self._sent_before
                if closed_untaken(before, bytes_acked(self._fd), exc):
                    return NotTaken()
        self._calls.reach.note_failure(self.origin.host, self.origin.port, exc)
        return unreachable(describe_error(exc) if exc is not None else "it closed the connection")


@lru_cache(maxsize=256)
def target_of(server_url: str, endpoint: str | None, api_key: str = "") -> PostTarget:
    """The target of `endpoint`, a path below `server_url` or an absolute URL.

    Its head has `api_key`, unless that is "", if it is of the server's own origin, and has no user. Raises
    `ValueError` for None, and for what is no http(s) URL.
    """
    url: Any = resolved(server_url, endpoint)
    if url.host is None or url.scheme not in ("http", "https"):
        raise ValueError(f"the handler's endpoint {endpoint!r} is not an http(s) URL")
    head = f"POST {url.raw_path_qs} HTTP/1.1\r\nHost: {url.host_port_subcomponent}\r\n"
    if url.user is not None:
        secret = base64.b64encode(f"{url.user}:{url.password or ''}".encode()).decode()
        head += f"Authorization: Basic {secret}\r\n"
    elif api_key and is_same_origin(URL(server_url), url):
        head += f"Authorization: Bearer {api_key}\r\n"
    return PostTarget(Origin(url.host, url.port, url.scheme == "https"), head.encode())
