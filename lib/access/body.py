"""Request bodies: limited in size, in time, and in the total memory held by unverified bodies.

Owns reading and decompressing bodies. It does not parse them (envelope.py) or write them to disk (spool.py).
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import anyio
from aiohttp import web

from lib.errors import (
    BodyStalled,
    BodyTooLarge,
    ClientGone,
    CodingNotUnderstood,
    Invalid,
    Unavailable,
    WorkerError,
)
from lib.request.incoming import DirectRequest, IncomingRequest

# Limit of the memory that all unverified bodies hold together (docs/protocol.md, "Bodies").
UNVERIFIED_BYTES = 256 * 1024 * 1024
# A body that keeps arriving, but slowly, is refused after this many times the stall limit.
WHOLE_BODY_FACTOR = 10
RETRY_AFTER_S = 1.0
_CODINGS = ("", "identity", "gzip", "x-gzip", "deflate")
_ZLIB_AUTO = 47  # wbits that accept both gzip and zlib headers
# Decompressed per step: a packet may expand to a thousand times its size.
INFLATED_BYTES = 256 * 1024


class _Decompressor(Protocol):
    @property
    def unused_data(self) -> bytes: ...

    @property
    def unconsumed_tail(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class BodyReader:
    """Reads bodies of at most `max_bytes`; each may make no progress for `stall_s` seconds.

    `setting` is the name of the variable that sets the limit, for messages. `unverified_bytes` limits the
    memory of all bodies inside `read` together.
    """

    def __init__(
        self,
        max_bytes: int,
        stall_s: float,
        unverified_bytes: int = UNVERIFIED_BYTES,
        setting: str = "MAX_JSON_BYTES",
    ) -> None:
        self._max_bytes = max_bytes
        self._stall_s = stall_s
        self._budget = _Budget(unverified_bytes)
        self._setting = setting

    def read(
        self, request: IncomingRequest, arrived: bytes | None = None
    ) -> AbstractAsyncContextManager[bytes | bytearray]:
        """The body in memory; it counts as unverified until the block ends. `arrived` is what `arrived` gave.

        Raises what `parts` raises, and `Unavailable` (503) if unverified bodies hold too much memory.
        """
        return _UnverifiedBody(self, request, arrived, self._budget)

    def arrived(self, request: IncomingRequest) -> bytes | None:
        """The body, if it has arrived as a whole and is not compressed; otherwise None.

        Raises what `parts` raises.
        """
        if content_coding(request):
            return None
        is_direct = isinstance(request, DirectRequest)
        if not is_direct and not request.content.is_eof():
            return None
        if (request.content_length or 0) > self._max_bytes:
            raise self._too_large()
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

    async def parts(self, request: IncomingRequest) -> AsyncGenerator[bytes, None]:
        """Yield the body in parts, decompressed. The size limit applies to both sizes.

        Raises `BodyTooLarge` (413), `BodyStalled` (408), `CodingNotUnderstood` (415), `Invalid` (422: the
        body is incomplete or not in its content coding), and `ClientGone`.
        """
        self._check_headers(request)
        is_plain = content_coding(request) in ("", "identity")
        decompressor = None if is_plain else zlib.decompressobj(_ZLIB_AUTO)
        sent_bytes = plain_bytes = 0
        async for part in self._received(request):
            sent_bytes += len(part)
            for plain in _inflated(decompressor, part) if decompressor else (part,):
                plain_bytes += len(plain)
                if max(sent_bytes, plain_bytes) > self._max_bytes:
                    raise self._too_large()
                yield plain
        if decompressor is not None and not decompressor.eof:
            raise Invalid({"body": "the compressed data is incomplete"})

    async def _received(self, request: IncomingRequest) -> AsyncGenerator[bytes, None]:
        content = request.content
        try:
            deadline = anyio.current_time() + self._stall_s * WHOLE_BODY_FACTOR
            while True:
                with anyio.fail_after(min(self._stall_s, deadline - anyio.current_time())):
                    part = await content.readany()
                if not part:
                    return
                yield part
        except (OSError, web.RequestPayloadError) as e:
            raise self._failure(e) from e

    def _failure(self, error: Exception) -> WorkerError | ClientGone:
        """The error to raise for `error`, which ended the receiving of a body."""
        if isinstance(error, TimeoutError):
            return BodyStalled(f"the body made no progress for {self._stall_s:g} s, or took too long")
        if isinstance(error, web.RequestPayloadError):
            return Invalid({"body": f"incomplete: {error}"})
        return ClientGone()  # the connection was reset, or its host is unreachable

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is larger than {self._max_bytes} bytes ({self._setting})")


@dataclass
class _Budget:
    """The number of bytes that unverified bodies may still take; negative while one is being refused."""

    free_bytes: int


class _UnverifiedBody:
    """The body of `request` in memory, as an async context manager; it takes from `budget` inside it.

    A class, as a generator for each request costs more than the rest of the reading.
    """

    __slots__ = ("_arrived", "_budget", "_reader", "_request", "_size_bytes")

    def __init__(
        self, reader: BodyReader, request: IncomingRequest, arrived: bytes | None, budget: _Budget
    ) -> None:
        self._reader = reader
        self._arrived = arrived
        self._request = request
        self._budget = budget
        self._size_bytes = 0

    async def __aenter__(self) -> bytes | bytearray:
        """Read the body."""
        try:
            whole = self._arrived
            if whole is None:
                whole = self._reader.arrived(self._request)
            if whole is not None:
                self._take(len(whole))
                return whole
            body = bytearray()
            async for part in self._reader.parts(self._request):
                self._take(len(part))
                body += part
        except BaseException:
            self._give_back()
            raise
        return body  # not a copy, which the budget would not count

    async def __aexit__(self, *raised: object) -> None:
        """Return what the body took from the budget."""
        self._give_back()

    def _take(self, size_bytes: int) -> None:
        self._size_bytes += size_bytes
        self._budget.free_bytes -= size_bytes
        if self._budget.free_bytes < 0:
            raise Unavailable("busy", "too many request bodies at once", RETRY_AFTER_S)

    def _give_back(self) -> None:
        self._budget.free_bytes += self._size_bytes


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
        if not part and len(plain) < INFLATED_BYTES:  # after a full piece, more may be buffered
            return


def content_coding(request: IncomingRequest) -> str:
    """The `Content-Encoding` of the request's body in lower case; "" if it has none."""
    if isinstance(request, DirectRequest):
        return request.header_values.get("content-encoding", "").strip().lower()
    return request.headers.get("Content-Encoding", "").strip().lower()
