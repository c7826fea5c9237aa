"""Request bodies: limited in size, in time, and in the total memory held by unverified bodies.

Owns reading and decompressing bodies. It does not parse them (envelope.py) or write them to disk (spool.py).
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Protocol

import anyio
from aiohttp import web

from lib.errors import BodyStalled, BodyTooLarge, ClientGone, CodingNotUnderstood, Invalid, Unavailable

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
        self._free_bytes = unverified_bytes
        self._setting = setting

    @asynccontextmanager
    async def read(self, request: web.Request) -> AsyncGenerator[bytearray, None]:
        """The body in memory; it counts as unverified until the block ends.

        Raises what `parts` raises, and `Unavailable` (503) if unverified bodies hold too much memory.
        """
        body = bytearray()
        try:
            async for part in self.parts(request):
                self._free_bytes -= len(part)
                body += part
                if self._free_bytes < 0:
                    raise Unavailable("busy", "too many request bodies at once", RETRY_AFTER_S)
            yield body  # not a copy, which the budget would not count
        finally:
            self._free_bytes += len(body)

    def _check_headers(self, request: web.Request) -> None:
        if (request.content_length or 0) > self._max_bytes:
            raise self._too_large()
        coding = content_coding(request)
        if coding not in _CODINGS:
            raise CodingNotUnderstood(
                f"request bodies in {coding!r} are not supported: send identity or gzip"
            )

    async def parts(self, request: web.Request) -> AsyncGenerator[bytes, None]:
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

    async def _received(self, request: web.Request) -> AsyncGenerator[bytes, None]:
        content = request.content
        try:
            if content.is_eof():  # it arrived together with the headers
                yield content.read_nowait()
                return
            deadline = anyio.current_time() + self._stall_s * WHOLE_BODY_FACTOR
            while True:
                with anyio.fail_after(min(self._stall_s, deadline - anyio.current_time())):
                    part = await content.readany()
                if not part:
                    return
                yield part
        except TimeoutError as e:
            raise BodyStalled(f"the body made no progress for {self._stall_s:g} s, or took too long") from e
        except web.RequestPayloadError as e:
            raise Invalid({"body": f"incomplete: {e}"}) from e
        except OSError as e:  # the connection was reset, or its host is unreachable
            raise ClientGone from e

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is larger than {self._max_bytes} bytes ({self._setting})")


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


def content_coding(request: web.Request) -> str:
    """The `Content-Encoding` of the request's body in lower case; "" if it has none."""
    return request.headers.get("Content-Encoding", "").strip().lower()
