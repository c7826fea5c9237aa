"""A request's body: bounded in size, in time, and together with all others that are not verified yet.

Owns the reading and unpacking of bodies. What is in those held in memory (JSON) is envelope.py's; others
go to disk by spool.py.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, Iterator
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
# Unpacked at once: a packet may hold a thousand times its size.
INFLATED_BYTES = 256 * 1024


class _Decompressor(Protocol):
    @property
    def unused_data(self) -> bytes: ...

    @property
    def unconsumed_tail(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class BodyReader:
    """Reads bodies of at most `max_bytes`, which `setting` names; each may stall for `stall_s` seconds."""

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
        """The body in memory; inside the block it counts as not verified yet.

        Raises what `parts` raises, and `Unavailable` (503) when there are too many bodies at once.
        """
        body = bytearray()
        try:
            async for part in self.parts(request):
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

    async def parts(self, request: web.Request) -> AsyncGenerator[bytes, None]:
        """The body's parts, unpacked; neither they nor what was sent is more than the limit in all.

        Raises `BodyTooLarge` (413), `BodyStalled` (408), `CodingNotUnderstood` (415), `Invalid` (422, a body
        that breaks off or isn't in its coding), and `ClientGone`.
        """
        self._check_headers(request)
        unpack = zlib.decompressobj(_ZLIB_AUTO) if _coding(request) not in ("", "identity") else None
        sent_bytes = plain_bytes = 0
        async for part in self._received(request):
            sent_bytes += len(part)
            for plain in _inflated(unpack, part) if unpack else (part,):
                plain_bytes += len(plain)
                if max(sent_bytes, plain_bytes) > self._max_bytes:
                    raise self._too_large()
                yield plain
        if unpack is not None and not unpack.eof:
            raise Invalid({"body": "its compressed form breaks off"})

    async def _received(self, request: web.Request) -> AsyncGenerator[bytes, None]:
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
        except OSError as e:  # reset, or unreachable by now
            raise ClientGone from e

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is larger than {self._max_bytes} bytes ({self._setting})")


def _inflated(unpack: _Decompressor, part: bytes) -> Iterator[bytes]:
    """`part` unpacked, piece by piece. Raises `Invalid` at once where the compressed form has ended."""
    while True:
        try:
            plain = unpack.decompress(part, INFLATED_BYTES)
        except zlib.error as e:
            raise Invalid({"body": f"not compressed as its Content-Encoding says: {e}"}) from e
        if unpack.unused_data:
            raise Invalid({"body": "something follows its compressed form"})
        yield plain
        part = unpack.unconsumed_tail
        if not part and len(plain) < INFLATED_BYTES:  # a full piece: more may be held back
            return


def _coding(request: web.Request) -> str:
    return request.headers.get("Content-Encoding", "").strip().lower()
