"""A request's body: bounded in size, in time, and together with all others that are not verified yet.

Owns the reading of bodies that are held in memory (JSON envelopes). What is in them is envelope.py's.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Protocol

import anyio
from aiohttp import web

from lib.errors import BodyStalled, BodyTooLarge, ClientGone, CodingNotUnderstood, Invalid, Unavailable

# protocol.md §2: what bodies that are read and not verified yet may hold together.
UNVERIFIED_BYTES = 256 * 1024 * 1024
# A body that trickles is refused after this many times the stall limit.
WHOLE_BODY_FACTOR = 10
RETRY_AFTER_S = 1.0
_CODINGS = ("", "identity", "gzip", "x-gzip", "deflate")
_ZLIB_AUTO = 47  # wbits that take gzip and zlib headers alike


class _Decompressor(Protocol):
    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class BodyReader:
    """Reads bodies of at most `max_bytes`; each may stall for `stall_s` seconds at most."""

    def __init__(self, max_bytes: int, stall_s: float, unverified_bytes: int = UNVERIFIED_BYTES) -> None:
        self._max_bytes = max_bytes
        self._stall_s = stall_s
        self._free_bytes = unverified_bytes

    @asynccontextmanager
    async def read(self, request: web.Request) -> AsyncGenerator[bytearray, None]:
        """The body, unpacked; inside the block it counts as not verified yet.

        Raises `BodyTooLarge` (413), `BodyStalled` (408), `CodingNotUnderstood` (415), `Unavailable` (503,
        too many bodies at once), `Invalid` (422, a body that breaks off or isn't in its coding), and
        `ClientGone`.
        """
        self._check_headers(request)
        body = bytearray()
        try:
            async for part in self._unpacked(request):
                self._free_bytes -= len(part)
                body += part
                if self._free_bytes < 0:
                    raise Unavailable("busy", "too many request bodies at once", RETRY_AFTER_S)
            yield body  # not a copy: what the budget counts is what is held
        finally:
            self._free_bytes += len(body)

    def _check_headers(self, request: web.Request) -> None:
        if (request.content_length or 0) > self._max_bytes:
            raise self._too_large()
        coding = _coding(request)
        if coding not in _CODINGS:
            raise CodingNotUnderstood(
                f"request bodies in {coding!r} are not understood: send identity or gzip"
            )

    async def _unpacked(self, request: web.Request) -> AsyncGenerator[bytes, None]:
        """The body's parts, unpacked; neither they nor what was sent is more than the limit in all."""
        unpack = zlib.decompressobj(_ZLIB_AUTO) if _coding(request) not in ("", "identity") else None
        sent_bytes = plain_bytes = 0
        async for part in self._parts(request):
            sent_bytes += len(part)
            while part:
                plain = _inflate(unpack, part, self._max_bytes - plain_bytes + 1) if unpack else part
                plain_bytes += len(plain)
                if max(sent_bytes, plain_bytes) > self._max_bytes:
                    raise self._too_large()
                yield plain
                part = unpack.unconsumed_tail if unpack else b""
        if unpack is not None and not unpack.eof:
            raise Invalid({"body": "its compressed form breaks off"})

    async def _parts(self, request: web.Request) -> AsyncGenerator[bytes, None]:
        content = request.content
        try:
            if content.is_eof():  # it came with the head: nothing to wait for
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
            raise Invalid({"body": f"breaks off: {e}"}) from e
        except ConnectionError as e:
            raise ClientGone from e

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is larger than {self._max_bytes} bytes (MAX_JSON_BYTES)")


def _inflate(unpack: _Decompressor, part: bytes, limit_bytes: int) -> bytes:
    """At most `limit_bytes` out of `part`. Raises `Invalid` at once where the compressed form has ended."""
    try:
        plain = unpack.decompress(part, limit_bytes)
    except zlib.error as e:
        raise Invalid({"body": f"not compressed as its Content-Encoding says: {e}"}) from e
    if unpack.unused_data:
        raise Invalid({"body": "something follows its compressed form"})
    return plain


def _coding(request: web.Request) -> str:
    return request.headers.get("Content-Encoding", "").strip().lower()
