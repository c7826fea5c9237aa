"""A client's connection: it finds where each request begins and ends, and hands it to one of two carriers.

Owns the framing of requests, one at a time, and the writing of answers. Requests for routes in `Front.direct`
are carried here; all others by aiohttp's server, which gets one message at a time, and chunked bodies in a
framing of our own: what two readers could see differently never reaches it. Which connections there may be,
and for how long, is in front.py.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import sys
from collections.abc import Coroutine, Sequence
from http import HTTPStatus
from typing import Any, Protocol, cast

from lib.errors import BadRequest, PlainAnswer, Unavailable, WorkerError, error_answer
from lib.http.chunked import BadChunk, ChunkScanner
from lib.http.counted import CountedConnection
from lib.http.deadlines import Deadlines
from lib.http.heads import (
    HEAD_END,
    BadHead,
    RequestHead,
    date_field,
    parse_request,
)
from lib.http.outbox import Outbox
from lib.http.shares import Shares
from lib.request.incoming import DirectBody, DirectRequest, Serve, Source
from lib.request.log_lines import NO_REQUEST

log = logging.getLogger(__name__)
access_log = logging.getLogger("lib.access")

MAX_HEAD_BYTES = 32 * 1024
# Bytes of further requests that are kept while one is served; the connection is not read beyond.
MAX_PIPELINED_BYTES = 64 * 1024
# A body up to this is awaited before its request is looked at, for at most `Front.bodies`' limit: nearly all
# come together with their heads.
AWAITED_BYTES = 64 * 1024
# Parts of an answer up to this are held until the end of the event loop's turn.
HELD_BYTES = 16 * 1024
RETRY_EVICTED_S = 1.0
_PHRASES: dict[int, str] = {status.value: status.phrase for status in HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_EXPECT = re.compile(rb"\r\nexpect:[^\r]*", re.IGNORECASE)


class Port(Protocol):
    """The port that a connection came in on (`lib.front.front.Front`), as the connection uses it."""

    is_closing: bool
    outbox: Outbox
    shares: Shares
    bodies: Deadlines[FrontConnection]
    lingering: Deadlines[FrontConnection]
    stalls: Deadlines[FrontConnection]

    def carrier(self, head: RequestHead) -> Serve | None: ...

    def new_http(self, connection: FrontConnection) -> Any: ...

    def forget_http(self, protocol: object) -> None: ...

    def add(self, connection: FrontConnection) -> None: ...

    def remove(self, connection: FrontConnection) -> None: ...

    def note_idle(self, connection: FrontConnection) -> None: ...

    def note_head_begun(self, connection: FrontConnection) -> None: ...

    def note_head(self, connection: FrontConnection, is_late: bool) -> None: ...

    def note_forwarded(self, connection: FrontConnection, head: RequestHead) -> None: ...

    def note_stalled(self, connection: FrontConnection) -> None: ...

    def note_lingering(self, connection: FrontConnection) -> None: ...

    def note_refused(self, status: int) -> None: ...


class FrontConnection(CountedConnection):
    """One connection. `transport` is None once it is lost; `output_size` is that of the current answer.

    `is_proxied`: it comes from a trusted proxy, so that each request on it may be another client's.

    `taken_bytes` and `looks` are the front's, for the stall limit: what the client had taken when it was last
    looked at, and how often it had taken nothing since the look before.
    """

    __slots__ = (
        "_awaited",
        "_body",
        "_chunks",
        "_drain_waiter",
        "_front",
        "_held",
        "_http",
        "_is_answered",
        "_is_begun",
        "_is_broken",
        "_is_busy",
        "_is_head_late",
        "_is_http_turn",
        "_is_read_paused",
        "_is_upgraded",
        "_keep_alive",
        "_left",
        "_pending",
        "_source",
        "_task",
        "is_proxied",
        "is_write_paused",
        "looks",
        "output_size",
        "taken_bytes",
        "transport",
    )

    def __init__(self, front: Port) -> None:
        self.transport: asyncio.Transport | None = None
        self.output_size = 0
        self.group = ""
        self.is_known = self.is_proxied = self.is_write_paused = False
        self.taken_bytes = self.looks = 0
        self._front = front
        self._http: Any = None  # aiohttp's protocol, once a request was for it
        self._pending = b""
        self._held = b""  # of the answer, to be written at the end of the event loop's turn
        self._left = 0  # bytes of the current body to come
        self._chunks: ChunkScanner | None = None
        self._body: DirectBody | None = None
        self._awaited: tuple[Serve, DirectRequest] | None = None
        self._task: asyncio.Task[None] | None = None
        self._source: Source | None = None
        self._drain_waiter: asyncio.Future[None] | None = None
        self._keep_alive = True
        self._is_busy = self._is_http_turn = self._is_upgraded = self._is_broken = False
        self._is_read_paused = False  # perhaps: reading is to be resumed for the next request
        self._is_head_late = False  # a part of a head has arrived before the rest
        self._is_begun = False  # aiohttp's server has begun to write the current request's answer
        self._is_answered = False  # the current request's answer is written

    # Facts

    @property
    def keep_alive(self) -> bool:
        """Whether the connection stays open after the current answer."""
        return self._keep_alive

    @property
    def peername(self) -> Any:
        """The client's address, as aiohttp's requests have it."""
        return None if self.transport is None else self.transport.get_extra_info("peername")

    @property
    def sockname(self) -> Any:
        """The worker's address, as aiohttp's requests have it."""
        return None if self.transport is None else self.transport.get_extra_info("sockname")

    @property
    def ssl_context(self) -> ssl.SSLContext | None:
        """The TLS context, as aiohttp's requests have it."""
        return None if self.transport is None else self.transport.get_extra_info("sslcontext")

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._front.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._front.remove(self)
        self._source = None
        if self._http is not None:
            self._front.forget_http(self._http)
            self._http.connection_lost(exc)
            self._http = None
        if self._body is not None:
            self._body.fail(ConnectionResetError("the client has left"))
            self._body = None
        if self._drain_waiter is not None and not self._drain_waiter.done():
            self._drain_waiter.set_exception(ConnectionResetError("the client has left"))
        if self._task is not None:
            self._task.cancel()
        else:
            self.start_awaited()  # it ends at once, and is logged

    def eof_received(self) -> None:
        """Take a client that has closed its half for one that has left: its request is cancelled at once.

        The transport would close only once all that the request goes on to write was sent.
        """
        self.flush()
        if self._is_busy and not self._is_answered:
            self._abort()

    def data_received(self, data: bytes) -> None:
        """Take what has arrived: the current body, and then the next head once its turn has come."""
        if self._is_upgraded:
            self._http.data_received(data)
            return
        if self._pending:
            data, self._pending = self._pending + data, b""
        has_begun = False
        try:
            while data and not self._is_broken:
                if self._left or self._chunks is not None:
                    data = self._take_body(data)
                elif self._is_busy:
                    self._hold(data)
                    return
                elif has_begun:  # that request has ended already; now others have their turn
                    self._hold(data)
                    asyncio.get_running_loop().call_soon(self._go_on)
                    return
                elif self.is_write_paused:  # the client doesn't read its answers: it gets no more of them
                    self._hold(data)
                    return
                else:
                    has_begun = True
                    data = self._take_head(data)
        except BadHead as e:
            self.refuse(e.status, str(e))
        except BadChunk as e:
            self._break(BadRequest(f"the body is not in the chunked coding: {e}"))

    def pause_writing(self) -> None:
        self.is_write_paused = True
        self._front.note_stalled(self)
        if self._source is not None:
            self._source.pause_reading()
        if self._http is not None:
            self._http.pause_writing()

    def resume_writing(self) -> None:
        self.is_write_paused = False
        self._front.stalls.remove(self)
        if self._source is not None:
            self._source.resume_reading()
        if self._http is not None:
            self._http.resume_writing()
        if self._drain_waiter is not None and not self._drain_waiter.done():
            self._drain_waiter.set_result(None)
        self._go_on()

    # For the answer

    def write(self, data: bytes) -> None:
        """Write a part of the answer; what is written after the client has left is dropped."""
        self.output_size += len(data)
        if len(data) > HELD_BYTES:
            self.flush()
            if self.transport is not None:
                self.transport.write(data)
        elif self._held:
            self._held += data
        else:
            self._held = data
            self._front.outbox.add(self)

    def flush(self) -> None:
        """Write what `write` has taken."""
        data, self._held = self._held, b""
        if data and self.transport is not None:
            self.transport.write(data)

    def follow(self, source: Source | None) -> None:
        """Read `source` only as fast as the client takes what is written; None: follow no source."""
        self._source = source
        if source is not None and self.is_write_paused:
            source.pause_reading()

    async def drained(self) -> None:
        """Return once little is waiting to be sent. Raises `ConnectionError` if the client left."""
        while self.is_write_paused:
            if self.transport is None:
                raise ConnectionResetError("the client has left")
            self._drain_waiter = asyncio.get_running_loop().create_future()
            try:
                await self._drain_waiter
            finally:
                self._drain_waiter = None

    # The requests

    def _go_on(self) -> None:
        """Take what was held while others had their turn, unless that has happened meanwhile."""
        data = self._pending
        if data and self.transport is not None and not self._is_busy and not self.is_write_paused:
            self._resume_reading()
            self._pending = b""
            self.data_received(data)

    def _hold(self, data: bytes) -> None:
        """Keep further requests until the current one has been served."""
        self._pending = data
        if len(data) > MAX_PIPELINED_BYTES and self.transport is not None:
            self._is_read_paused = True
            self.transport.pause_reading()

    def _take_head(self, data: bytes) -> bytes:
        """Read the head at the beginning of `data` and begin to serve its request; return what follows."""
        if data[0] in b"\r\n":  # RFC 9112, section 2.2: empty lines before a request are skipped
            data = data.lstrip(b"\r\n")
            if not data:
                return data
        end = data.find(HEAD_END) + len(HEAD_END)
        if end < len(HEAD_END) or end > MAX_HEAD_BYTES:
            if len(data) > MAX_HEAD_BYTES:
                self.refuse(431, f"the request's head is larger than {MAX_HEAD_BYTES} bytes")
            elif b"\n\n" in data:
                raise BadHead("the request is not valid HTTP/1.1")
            else:
                self._pending = data
                if not self._is_head_late:
                    self._is_head_late = True
                    self._front.note_head_begun(self)
            return b""
        text = data[:end]
        head = parse_request(text)
        self._front.note_head(self, self._is_head_late)
        self._is_head_late = False
        self._keep_alive = head.keep_alive
        self._is_busy = True
        self._is_begun = self._is_answered = False
        self.output_size = 0
        if self.is_proxied:
            self._front.note_forwarded(self, head)
        self._left, self._chunks = head.length or 0, ChunkScanner() if head.length is None else None
        serve = self._front.carrier(head)
        if serve is None:
            self.flush()  # aiohttp writes to the transport itself
            self._is_http_turn = True
            if head.expects_continue and self.transport is not None:
                # aiohttp would log a traceback if the client has left meanwhile.
                self.transport.write(_CONTINUE)
                text = _EXPECT.sub(b"", text)
            self._give_to_http(text)
            return data[end:]
        return self._begin_direct(serve, head, data, end)

    def _begin_direct(self, serve: Serve, head: RequestHead, data: bytes, end: int) -> bytes:
        """Begin to serve a request here; return what follows its head, or its body if that is whole."""
        length = head.length
        if length is not None and len(data) - end >= length:
            self._left = 0
            self._start(serve, DirectRequest(self, head, data[end : end + length]))
            return data[end + length :]
        request = DirectRequest(self, head)
        self._body = request.content
        self._body.charge_to(self._front.shares)
        if head.expects_continue and self.transport is not None:
            self.flush()
            self.transport.write(_CONTINUE)
        if length is not None and length <= AWAITED_BYTES:
            self._awaited = serve, request
            self._front.bodies.add(self)
        else:
            self._start(serve, request)
        return data[end:]

    def start_awaited(self) -> None:
        """Serve the request whose body was awaited, although its body is not whole."""
        if self._awaited is not None:
            awaited, self._awaited = self._awaited, None
            self._start(*awaited)

    def _start(self, serve: Serve, request: DirectRequest) -> None:
        task = new_task(self._serve(serve, request))
        self._task = None if task.done() else task

    def _take_body(self, data: bytes) -> bytes:
        """Take the part of `data` that belongs to the current body; return the rest."""
        if self._chunks is not None:
            pieces: list[bytes] = []
            used = self._chunks.scan(data, pieces)
            if self._chunks.is_done:
                self._chunks = None
            if self._is_http_turn:
                parts = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces]
                if self._chunks is None:
                    parts.append(b"0\r\n\r\n")
                pieces = [b"".join(parts)] if parts else []
        else:
            used = min(len(data), self._left)
            self._left -= used
            pieces = [data if used == len(data) else data[:used]]
        if self._is_http_turn:
            for piece in pieces:
                self._http.data_received(piece)
        elif self._body is not None:
            self._is_read_paused = True  # by the body, if its reader is slow
            body = self._body  # which is forgotten if the connection is evicted meanwhile
            for piece in pieces:
                body.feed(piece)
        if not self._left and self._chunks is None:
            self._end_body()
        return data[used:]

    def _end_body(self) -> None:
        if self._body is not None:
            self._body.end()
            self._body = None
        if self._awaited is not None:
            self._front.bodies.remove(self)
            self.start_awaited()
        elif self._is_answered:
            self._front.lingering.remove(self)
            self._next()

    # Their carriers

    async def _serve(self, serve: Serve, request: DirectRequest) -> None:
        """Serve a request here. The task belongs to this connection, and is cancelled with it."""
        try:
            response = await serve(request)
        except Exception:
            log.exception("a request ended without an answer")
            self._abort()
            return
        finally:
            self._task = None  # it holds this connection by its frames, which would keep each other alive
            self._source = None
            request.end_charges()
        if isinstance(response, PlainAnswer):
            self._write_plain(response)
        self._finish()

    def _give_to_http(self, text: bytes) -> None:
        """Give a head to aiohttp's server."""
        if self._http is None:
            self._http = self._front.new_http(self)
            self._http.connection_made(self.transport)
            if self.is_write_paused:
                self._http.pause_writing()
        self._http.data_received(text)

    def http_begun(self, status: int) -> None:
        """Note that aiohttp's server is about to write the head of an answer.

        After 101, what the client sends is no HTTP any more, and is all for aiohttp's server.
        """
        self._is_begun = True
        if status == 101:
            self._is_upgraded = True
            data, self._pending = self._pending, b""
            if data:
                self._http.data_received(data)
            self._resume_reading()

    def http_finished(self, keep_alive: bool) -> None:
        """Note that aiohttp's server has written an answer whole."""
        self._keep_alive = self._keep_alive and keep_alive and not self._is_upgraded
        asyncio.get_running_loop().call_soon(self._finish)

    def _finish(self) -> None:
        """Go on after an answer: with the rest of its request's body, or with the next request."""
        if self.transport is None or self.transport.is_closing():
            return
        self._is_answered = True
        if self._is_broken:
            self._end_writing()
        elif self._left or self._chunks is not None:
            self._body = None  # the rest is not wanted, but the client may read the answer only behind it
            if not self._is_http_turn:  # aiohttp reads it itself, and closes if it takes too long
                self._resume_reading()
                self._front.note_lingering(self)
        else:
            self._next()

    def _next(self) -> None:
        """Serve the next request, if the connection stays open and there is one."""
        transport = self.transport
        if transport is None:
            return
        self._is_busy = self._is_http_turn = False
        if not self._keep_alive or self._front.is_closing:
            self._is_broken, self._pending = True, b""  # what follows is not looked at
            if self._front.is_closing:
                self.flush()
                transport.close()
            else:
                self._end_writing()
            return
        self._front.note_idle(self)
        if transport.is_closing():  # there are too many
            return
        if self._is_read_paused:
            self._resume_reading()
        if self._pending:
            data, self._pending = self._pending, b""
            self.data_received(data)

    def _resume_reading(self) -> None:
        if self._is_read_paused and self.transport is not None:
            self._is_read_paused = False
            self.transport.resume_reading()

    # Its end

    def refuse(self, status: int, message: str) -> None:
        """Answer what is no request that could be served, if nothing was answered yet, and close."""
        error = WorkerError(message)
        error.status = status
        self._break(error)

    def refuse_with(self, error: WorkerError) -> None:
        """Answer a connection that has no request with `error`, and close."""
        self._break(error)

    def close_idle(self) -> None:
        """Close the connection, which serves no request; what can't be sent is dropped."""
        self.flush()
        if self.transport is not None:
            if self.transport.get_write_buffer_size():
                self.transport.abort()
            else:
                self.transport.close()

    def evict(self) -> None:
        """Close the connection, after a 503 if a request has begun: strangers hold too much together.

        It happens in the next turn of the event loop, as whoever counts what is held may be this connection.
        """
        asyncio.get_running_loop().call_soon(self._give_way)

    def _give_way(self) -> None:
        if self._is_busy:
            if self._body is not None:
                self._body.drop()
            message = "strangers hold too much memory or disk at once, and this address most of it"
            self._break(Unavailable("busy", message, RETRY_EVICTED_S))
        else:
            self._front.note_head(self, self._is_head_late)
            self._is_broken, self._is_head_late, self._pending = True, False, b""
            self.close_idle()

    def note_verified(self) -> None:
        """Note that a request on the connection was verified: its client is known from now on."""
        if not self.is_proxied:
            self._front.shares.release(self)
            self.is_known = True

    def close_when_sent(self) -> None:
        """Close the connection, which serves no request, once all is sent that was written."""
        self.flush()
        if self.transport is not None:
            self.transport.close()

    def _break(self, error: WorkerError) -> None:
        """Read no more requests, since it isn't known where the next would begin; answer with `error`."""
        if self._is_broken:
            return
        self._is_broken, self._keep_alive, self._pending = True, False, b""
        self._left, self._chunks = 0, None
        if self._awaited is not None:
            self._front.bodies.remove(self)
            self._awaited = self._body = None
        if self._task is not None:  # its answer ends the connection
            if self._body is not None:
                self._body.fail(error)
                self._body = None
            return
        if not self._is_busy:
            self._front.note_head(self, self._is_head_late)
            self._is_head_late = False
        elif self._is_begun and not self._is_answered:  # the answer can't be written to its end
            self._abort()
        elif self._is_http_turn and not self._is_answered:
            self._fail_http_body(error)  # as above
            return
        if not self._is_answered or not self._is_busy:
            self._front.note_refused(error.status)
            access_log.info(NO_REQUEST, error.status, error.message, "refused")
            self._write_plain(error_answer(error))
        self._end_writing()

    def _fail_http_body(self, error: WorkerError) -> None:
        """Have whoever reads the body of the current request at aiohttp's server get `error`."""
        request, waiting = self._http._current_request, self._http._messages
        if request is None and not waiting:
            return  # its answer was written just now: `_finish` follows
        body = waiting[-1][1] if request is None else request.content  # None before its task runs
        body.set_exception(error)
        body.feed_eof()  # else aiohttp would read on after the answer

    def _end_writing(self) -> None:
        """Close, once the client had time to read the answer: unread input would reset the connection."""
        self.flush()
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if transport.can_write_eof():
            transport.resume_reading()  # whoever has paused it
            try:
                transport.write_eof()
            except OSError:  # the client has reset the connection
                transport.abort()
            self._front.note_lingering(self)
        else:
            transport.close()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _write_plain(self, answer: PlainAnswer) -> None:
        """Write an answer of the worker's own, unless the connection is closed."""
        if self.transport is None or self.transport.is_closing():
            return
        reason = _PHRASES.get(answer.status, "") if answer.reason is None else answer.reason
        lines = [f"HTTP/1.1 {answer.status} {reason}\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in answer.headers.items()]
        if answer.status not in (204, 304):
            lines.append(f"Content-Length: {len(answer.body)}\r\n")
        if not self._keep_alive:
            lines.append("Connection: close\r\n")
        head = "".join(lines).encode("utf-8", "surrogateescape")
        self.write(b"%s%s\r\n%s" % (head, date_field(), answer.body))


if sys.version_info >= (3, 12):

    def new_task(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task and take its first step at once: most have sent their call to the model then."""
        return asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True)

else:

    def new_task(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task."""
        return asyncio.get_running_loop().create_task(work)


def address_of(transport: asyncio.BaseTransport | None) -> str:
    """The client's IP address; "" if it is not known."""
    peer: Sequence[Any] | None = None if transport is None else transport.get_extra_info("peername")
    return str(peer[0]) if peer else ""
