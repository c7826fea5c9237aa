"""Request bodies: limited in size, in time, and in the total memory that they hold.

Owns reading and decompressing bodies, and giving them once more to author code that reads a request as
aiohttp's. It does not parse them (envelope.py), look for `auth_data` in them while they arrive (arriving.py)
or write them to disk (spool.py).
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol, cast

import aiohttp
import anyio
from aiohttp import web

from lib.access.body_memory import BodyMemory
from lib.errors import (
    BodyStalled,
    BodyTooLarge,
    ClientGone,
    CodingNotUnderstood,
    Invalid,
    Unavailable,
    WorkerError,
)
from lib.http.shares import STRANGERS_BYTES, Holder, Shares
from lib.request.exchange import connection_of
from lib.request.incoming import DirectRequest, IncomingRequest

# Of a body that is not verified, the lowest speed, and the seconds of waiting for it after which it holds.
FLOOR_BYTES_S = 16 * 1024
FLOOR_AFTER_S = 10.0
# A body that keeps arriving, but slowly, is refused after this many times the stall limit.
WHOLE_BODY_FACTOR = 10
RETRY_AFTER_S = 1.0
_CODINGS = ("", "identity", "gzip", "x-gzip", "deflate")
_ZLIB_AUTO = 47  # wbits that accept both gzip and zlib headers
# Decompressed per step: a packet may expand to a thousand times its size.
INFLATED_BYTES = 256 * 1024
# The bytes of a body up to this size are kept for author code. A larger one is kept parsed, and written anew.
REREAD_BYTES = 64 * 1024


class _Decompressor(Protocol):
    @property
    def unused_data(self) -> bytes: ...

    @property
    def unconsumed_tail(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class BodyReader:
    """Reads bodies of at most `max_bytes`; each may make no progress for `stall_s` seconds.

    `setting` is the name of the variable that sets the limit, for messages. `memory` is the budget of what
    unverified bodies hold in memory, `verified` that of the others. Before it is verified, a body that needs
    more than `floor_after_s` seconds must have `FLOOR_BYTES_S` in each of them on average.
    """

    def __init__(
        self,
        max_bytes: int,
        stall_s: float,
        memory: Shares | None = None,
        setting: str = "MAX_JSON_BYTES",
        floor_after_s: float = FLOOR_AFTER_S,
        verified: BodyMemory | None = None,
    ) -> None:
        self.memory = memory or Shares(STRANGERS_BYTES)
        self.verified = verified or BodyMemory(0, max_bytes)
        self._max_bytes = max_bytes
        self._stall_s = stall_s
        self._setting = setting
        self._floor_after_s = floor_after_s

    def read(self, request: IncomingRequest) -> AbstractAsyncContextManager[bytes | bytearray]:
        """The body in memory, of a request that is not verified: it counts as a stranger's in the block.

        Raises what `parts` raises, and `Unavailable` (503) if strangers hold too much memory.
        """
        return _BodyInMemory(self, request)

    async def read_verified(self, request: IncomingRequest) -> bytes | bytearray:
        """The body in memory, of a verified request: it counts until the request ends.

        Raises what `parts` raises, and `NoMemory` (503) if verified bodies hold too much.
        """
        body = self.arrived(request)
        if body is not None:
            self.verified.keep(request, len(body))
            return body
        body, length = bytearray(), request.content_length or 0
        async for part in self.parts(request):
            body += part
            self.verified.keep(request, max(len(body), length))
        return body

    def arrived(self, request: IncomingRequest) -> bytes | None:
        """The body, if it has arrived as a whole and is not compressed; otherwise None.

        Raises what `parts` raises.
        """
        if content_coding(request):
            return None
        is_direct = isinstance(request, DirectRequest)
        if not is_direct and not request.content.is_eof():
            return None
        try:
            body = request.arrived() if is_direct else request.content.read_nowait()
        except (OSError, web.RequestPayloadError) as e:
            raise self._failure(e) from e
        if body is not None and len(body) > self._max_bytes:
            raise self._too_large()
        return body

    def _check_headers(self, request: IncomingRequest) -> None:
        if (request.content_length or 0) > self._max_bytes:
            raise self._too_large()
        coding = content_coding(request)
        if coding not in _CODINGS:
            raise CodingNotUnderstood(
                f"request bodies in {coding!r} are not supported: send identity or gzip"
            )

    async def parts(
        self, request: IncomingRequest, is_verified: Callable[[], bool] = lambda: True
    ) -> AsyncGenerator[bytes, None]:
        """Yield the body in parts, decompressed. The size limit applies to both sizes.

        While `is_verified` returns false, the body must not be slower than the floor. Raises `BodyTooLarge`
        (413), `BodyStalled` (408), `CodingNotUnderstood` (415), `Invalid` (422: the body is incomplete or not
        in its content coding), and `ClientGone`.
        """
        self._check_headers(request)
        is_plain = content_coding(request) in ("", "identity")
        decompressor = None if is_plain else zlib.decompressobj(_ZLIB_AUTO)
        sent_bytes = plain_bytes = 0
        async for part in self._received(request, is_verified):
            sent_bytes += len(part)
            for plain in _inflated(decompressor, part) if decompressor else (part,):
                plain_bytes += len(plain)
                if max(sent_bytes, plain_bytes) > self._max_bytes:
                    raise self._too_large()
                yield plain
            part = plain = b""
        if decompressor is not None and not decompressor.eof:
            raise Invalid({"body": "the compressed data is incomplete"})

    async def _received(
        self, request: IncomingRequest, is_verified: Callable[[], bool]
    ) -> AsyncGenerator[bytes, None]:
        content, received_bytes, waited_s = request.content, 0, 0.0
        try:
            deadline = anyio.current_time() + self._stall_s * WHOLE_BODY_FACTOR
            while True:
                begun = anyio.current_time()
                limit_s = min(self._stall_s, deadline - begun)
                if not is_verified():  # the time that the worker takes itself doesn't count
                    limit_s = min(limit_s, self._floor_limit_s(received_bytes) - waited_s)
                with anyio.fail_after(limit_s):
                    part = await content.readany()
                if not part:
                    return
                received_bytes += len(part)
                waited_s += anyio.current_time() - begun
                yield part
                part = b""  # it may be large, and the wait for the next one long
        except (OSError, web.RequestPayloadError) as e:
            raise self._failure(e) from e

    def _floor_limit_s(self, received_bytes: int) -> float:
        """The seconds within which the next part of an unverified body must come, from its beginning."""
        return max(self._floor_after_s, received_bytes / FLOOR_BYTES_S)

    def _failure(self, error: Exception) -> WorkerError | ClientGone:
        """The error to raise for `error`, which ended the receiving of a body."""
        if isinstance(error, TimeoutError):
            return BodyStalled(f"the body made no progress for {self._stall_s:g} s, or was too slow")
        if isinstance(error, web.RequestPayloadError):
            return Invalid({"body": f"incomplete: {error}"})
        return ClientGone()  # the connection was reset, or its host is unreachable

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is larger than {self._max_bytes} bytes ({self._setting})")


class _Unconnected:
    """The holder of a body whose connection is lost."""

    group = ""
    is_known = False

    def evict(self) -> None:
        """Do nothing: the body is dropped by its reader."""


class MemoryShare:
    """The part of `memory` that the body of `request` holds. `holder` is its connection."""

    __slots__ = ("_memory", "_size_bytes", "holder")

    def __init__(self, memory: Shares, request: IncomingRequest) -> None:
        self._memory = memory
        self.holder: Holder = connection_of(request) or _Unconnected()
        self._size_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Count `size_bytes` more. Raises `Unavailable` (503) if the budget is used up and it gives way."""
        self._size_bytes += size_bytes
        if not self._memory.add(self.holder, size_bytes):
            raise Unavailable("busy", "too many request bodies at once", RETRY_AFTER_S)

    def give_back(self) -> None:
        """Count nothing any more."""
        self._memory.add(self.holder, -self._size_bytes)
        self._size_bytes = 0


class _BodyInMemory:
    """The body of `request` in memory, as an async context manager.

    A class, as a generator for each request costs more than the rest of the reading.
    """

    __slots__ = ("_reader", "_request", "_share")

    def __init__(self, reader: BodyReader, request: IncomingRequest) -> None:
        self._reader = reader
        self._request = request
        self._share = MemoryShare(reader.memory, request)

    async def __aenter__(self) -> bytes | bytearray:
        """Read the body."""
        try:
            whole = self._reader.arrived(self._request)
            if whole is not None:
                self._share.take(len(whole))
                return whole
            body = bytearray()
            async for part in self._reader.parts(self._request, lambda: False):
                self._share.take(len(part))
                body += part
        except BaseException:
            self._share.give_back()
            raise
        return body  # not a copy, which the budget would not count

    async def __aexit__(self, *raised: object) -> None:
        """Return what the body took from the budget."""
        self._share.give_back()


def _inflated(decompressor: _Decompressor, part: bytes) -> Iterator[bytes]:
    """Decompress `part` in pieces. Raises `Invalid` if data follows the end of the compressed stream."""
    while True:
        try:
            plain = decompressor.decompress(part, INFLATED_BYTES)
        except zlib.error as e:
            raise Invalid({"body": f"does not match its Content-Encoding: {e}"}) from e
        if decompressor.unused_data:
            raise Invalid({"body": "data follows the compressed data"})
        yield plain
        part = decompressor.unconsumed_tail
        if not part:  # what is buffered comes with the next part: the check sum follows in any case
            return


def content_coding(request: IncomingRequest) -> str:
    """The `Content-Encoding` of the request's body in lower case; "" if it has none."""
    if isinstance(request, DirectRequest):
        coding = request.header_values.get("content-encoding")
        return coding.strip().lower() if coding else ""
    return request.headers.get("Content-Encoding", "").strip().lower()


def let_read_again(
    request: IncomingRequest,
    body: bytes | bytearray | dict[str, Any] | Path,
    content: dict[str, Any] | None = None,
) -> None:
    """Let author code read the body of `request` once more: `read`, `text`, `json`, `post` and `content`.

    `body` is the body, the object that it was parsed as, or the file that it is in. The bytes of a large one
    are not kept where there is its `content`, which the request keeps in any case. Of an object, the objects
    in it are copied, but not what is in those: author code may change them. Nothing is made before it asks.
    """
    if isinstance(request, DirectRequest):  # no author code has it
        return
    if content is not None and not isinstance(body, (dict, Path)) and len(body) > REREAD_BYTES:
        body = content
    if isinstance(body, dict):
        body = {
            name: cast("dict[str, Any]", value).copy() if isinstance(value, dict) else value
            for name, value in body.items()
        }
    read: Any = request
    read._payload = _ReceivedBody(_in_file(body) if isinstance(body, Path) else _in_memory(body))
    read._cache.pop("content", None)  # the attribute: aiohttp looks it up only once


class _ReceivedBody(aiohttp.StreamReader):
    """Reads `parts`, the next of them when all before were read."""

    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        super().__init__(_NO_CONNECTION, INFLATED_BYTES, loop=asyncio.get_running_loop())
        self._parts = parts

    async def _wait(self, func_name: str) -> None:
        part = await anext(self._parts, b"")
        if part:
            self.feed_data(part)
        else:
            self.feed_eof()

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        """Do nothing: the body has arrived, also for a handler that finishes after its client has left."""


class _NoConnection:
    """Stands for the connection, which was read to the end of the body."""

    connected = True
    _reading_paused = False

    def pause_reading(self) -> None: ...

    def resume_reading(self, resume_parser: bool = True) -> None: ...


_NO_CONNECTION: Any = _NoConnection()


async def _in_memory(body: bytes | bytearray | dict[str, Any]) -> AsyncIterator[bytes]:
    yield json.dumps(body).encode() if isinstance(body, dict) else bytes(body)


async def _in_file(path: Path) -> AsyncIterator[bytes]:
    async with await anyio.open_file(path, "rb") as file:
        while part := await file.read(INFLATED_BYTES):
            yield part
