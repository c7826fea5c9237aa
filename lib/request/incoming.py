"""The client's request: aiohttp's, or that of the direct way in (lib/front).

Owns `DirectRequest`, which has the part of `aiohttp.web.Request` that the worker's own code reads. It does
not parse: lib/front does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, cast
from urllib.parse import unquote

from aiohttp import HttpVersion11, web
from aiohttp.http import RawRequestMessage, StreamWriter
from aiohttp.streams import EMPTY_PAYLOAD
from multidict import CIMultiDict, CIMultiDictProxy, MultiDict, MultiDictProxy
from yarl import URL

from lib.http.heads import RequestHead, fields_in
from lib.http.shares import Reservation, Shares

# A body's unread bytes beyond which the connection is not read.
BUFFERED_BYTES = 256 * 1024
# The same for a body that is not verified.
STRANGERS_BUFFERED_BYTES = 64 * 1024
# Memory of a request whose body is still arriving, besides the body: its head, its task and their buffers.
REQUEST_BYTES = 48 * 1024


class Source(Protocol):
    """Source of the bytes of an answer."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class ClientConnection(Protocol):
    """The client's connection, as a request on it uses it."""

    group: str
    is_known: bool

    def evict(self) -> None:
        """Close the connection, after a 503 if a request has begun."""
        ...

    def note_verified(self) -> None:
        """Note that a request on the connection was verified: its client is known from now on."""
        ...

    @property
    def transport(self) -> asyncio.Transport | None:
        """The transport; None once the connection is lost."""
        ...

    @property
    def output_size(self) -> int:
        """The number of bytes of the answer to the current request that were written."""
        ...

    @property
    def keep_alive(self) -> bool:
        """Whether the connection stays open after the answer."""
        ...

    @property
    def is_write_paused(self) -> bool:
        """Whether more is waiting to be sent than the connection should hold."""
        ...

    def write(self, data: bytes) -> None:
        """Write a part of the answer; what is written after the client has left is dropped."""
        ...

    def follow(self, source: Source | None) -> None:
        """Read `source` only as fast as the client takes what is written; None: follow no source."""
        ...

    async def drained(self) -> None:
        """Return once little is waiting to be sent. Raises `ConnectionError` if the client left."""
        ...


class DirectBody:
    """A request's body as it arrives, with the methods of `aiohttp.StreamReader` that are used.

    `whole` is the body if it has arrived. `memory` is what `body_memory_of` has reserved, or None.
    """

    __slots__ = (
        *("_charged_bytes", "_connection", "_error", "_is_paused", "_is_whole", "_parts", "_shares"),
        *("_size_bytes", "_waiter", "memory"),
    )

    def __init__(self, connection: ClientConnection, whole: bytes | None = None) -> None:
        self._connection = connection
        self._parts: list[bytes] = [whole] if whole else []
        self._size_bytes = 0  # of what has arrived in parts
        self._is_whole = whole is not None
        self._is_paused = False  # the connection, until what has arrived is read
        self._shares: Shares | None = None
        self._charged_bytes = 0
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.memory: Reservation | None = None

    # For its reader

    def is_eof(self) -> bool:
        """Whether the whole body has arrived."""
        return self._is_whole

    def read_nowait(self) -> bytes:
        """Return what has arrived and was not read; b"" if there is nothing."""
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if self._is_paused and (transport := self._connection.transport) is not None:
            self._is_paused = False
            transport.resume_reading()
        if self._shares is not None:
            self._charge(-self._size_bytes)
        self._size_bytes = 0
        return data

    async def readany(self) -> bytes:
        """Return the next part as soon as there is one; b"" at the end.

        Raises `aiohttp.web.RequestPayloadError` for a malformed body, and `ConnectionError` if the client
        left.
        """
        while not self._parts:
            if self._error is not None:
                raise self._error
            if self._is_whole:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self.read_nowait()

    # For the connection

    def charge_to(self, shares: Shares) -> None:
        """Count what the request and its unread body hold in `shares`, until `end_charges`."""
        self._shares = shares
        self._charge(REQUEST_BYTES)

    def end_charges(self) -> None:
        """Count nothing any more: the request was verified, or has ended."""
        if self._shares is not None:
            self._charge(-self._charged_bytes)
            self._shares = None

    def _charge(self, size_bytes: int) -> None:
        if self._shares is not None:
            self._charged_bytes += size_bytes
            self._shares.add(self._connection, size_bytes)

    def feed(self, data: bytes) -> None:
        """Add the next part."""
        self._parts.append(data)
        self._size_bytes += len(data)
        limit_bytes = BUFFERED_BYTES if self._shares is None else STRANGERS_BUFFERED_BYTES
        if self._size_bytes > limit_bytes and (transport := self._connection.transport) is not None:
            self._is_paused = True
            transport.pause_reading()
        self._wake()
        if self._shares is not None:
            self._charge(len(data))

    def end(self) -> None:
        """Note that the whole body has arrived."""
        self._is_whole = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """Raise `error` in the reader, once it has read what has arrived."""
        self._error = error
        self._wake()

    def drop(self) -> None:
        """Forget what has arrived and was not read: the connection gives way to others."""
        self._parts.clear()
        self._size_bytes = 0
        self.end_charges()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class DirectRequest(dict[Any, Any]):
    """A request of the direct way in. Its items are those that author code reads (`request["payload"]`).

    `target` is the path and the query as they were received. `lines` are the header fields as they came,
    `header_values` their values by the names in lower case. `body` is the whole body, None if it has not
    arrived.
    """

    __slots__ = (
        "_content",
        "_headers",
        "_request",
        "_whole",
        "connection",
        "content_length",
        "header_values",
        "lines",
        "method",
        "target",
    )

    match_info: Mapping[str, str] = {}

    def __init__(
        self,
        connection: ClientConnection,
        head: RequestHead,
        body: bytes | None = None,
    ) -> None:
        self.connection = connection
        self.method = head.method
        self.target = head.target
        self.lines = head.lines
        self.header_values = head.values
        self.content_length = head.length
        self._whole = body  # until it is read
        self._content: DirectBody | None = None
        self._headers: CIMultiDictProxy[str] | None = None
        self._request: web.Request | None = None

    @property
    def body_exists(self) -> bool:
        """Whether the request has a body, which may be empty."""
        return self.content_length != 0

    @property
    def content(self) -> DirectBody:
        """The body as it arrives."""
        if self._content is None:
            self._content = DirectBody(self.connection, self._whole)
            self._whole = None
        return self._content

    def arrived(self) -> bytes | None:
        """The body, if it has arrived as a whole: it can be read once. None otherwise."""
        if self._content is None and self._whole is not None:
            whole, self._whole = self._whole, b""
            return whole
        return self.content.read_nowait() if self.content.is_eof() else None

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """The header fields."""
        if self._headers is None:
            self._headers = CIMultiDictProxy(CIMultiDict(fields_in(self.lines)))
        return self._headers

    @property
    def path(self) -> str:
        """The path, decoded."""
        path = self.target.partition("?")[0]
        return unquote(path) if "%" in path else path

    @property
    def query(self) -> MultiDictProxy[str]:
        """The parameters in the query."""
        if "?" not in self.target:
            return MultiDictProxy(MultiDict[str]())
        return MultiDictProxy(MultiDict(URL(self.target, encoded=True).query))

    @property
    def content_type(self) -> str:
        """The media type in lower case, "application/octet-stream" without one."""
        given = self.headers.get("Content-Type")
        return "application/octet-stream" if given is None else given.partition(";")[0].strip().lower()

    @property
    def transport(self) -> asyncio.Transport | None:
        """The client's connection; None once it is lost."""
        return self.connection.transport

    def end_charges(self) -> None:
        """Count nothing that the request holds any more: it was verified, or has ended."""
        if self._content is not None:
            self._content.end_charges()

    def as_aiohttp(self) -> web.Request:
        """The same request as aiohttp's, for author code that looks at it. It shares the items.

        Its body can't be read, and `api_key` is not in its query.
        """
        if self._request is None:
            url = URL(self.target, encoded=True)
            message = RawRequestMessage(
                method=self.method,
                path=self.target,
                version=HttpVersion11,
                headers=self.headers,
                raw_headers=tuple(
                    (n.encode(), v.encode(errors="surrogateescape")) for n, v in fields_in(self.lines)
                ),
                should_close=False,
                compression=None,
                upgrade=False,
                chunked=self.content_length is None,
                url=url.without_query_params("api_key") if "api_key" in url.query else url,
            )
            connection: Any = self.connection
            loop = asyncio.get_running_loop()
            task: Any = asyncio.current_task()
            writer = StreamWriter(connection, loop)
            request = web.Request(message, EMPTY_PAYLOAD, connection, writer, task, loop, state=self)
            cast(Any, request)._match_info = {}
            self._request = request
        return self._request

    def end(self) -> None:
        """Free the body's memory, and forget what `as_aiohttp` has made: the two keep each other alive."""
        self._request = None
        if self._content is not None and self._content.memory is not None:
            self._content.memory.free()


IncomingRequest = web.Request | DirectRequest
_BODY_MEMORY = web.RequestKey("pyworker.body_memory", Reservation)


def body_memory_of(request: IncomingRequest, shares: Shares) -> Reservation:
    """The memory of `shares` that the body of `request` has: of its own, or new. See `free_body_memory`."""
    is_direct = isinstance(request, DirectRequest)
    reserved = request.content.memory if is_direct else request.get(_BODY_MEMORY)
    if reserved is None:
        reserved = Reservation(shares)
        if is_direct:
            request.content.memory = reserved
        else:
            request[_BODY_MEMORY] = reserved
    return reserved


def free_body_memory(request: web.Request) -> None:
    """Give back what the body of `request` has reserved: the request has ended."""
    reserved = request.get(_BODY_MEMORY)
    if reserved is not None:
        reserved.free()


# Serves a request that this worker has parsed. A `lib.errors.PlainAnswer` that it returns is to be written.
Serve = Callable[[DirectRequest], Awaitable[object]]
