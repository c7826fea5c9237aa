"""Decompressing an answer for a client that doesn't accept its content coding.

Owns doing so in small steps, since a packet may expand to a thousand times its size, and finding out whether
the compressed data is whole.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable
from typing import Protocol

from lib.errors import AnswerCut
from lib.request.incoming import Source

STEP_BYTES = 64 * 1024
_ZLIB_AUTO = 47  # the `wbits` that accept both gzip and zlib headers
_GZIP = 31


class Inflater:
    """Decompresses one body in the content coding `coding`, gzip or deflate.

    A gzip stream may have several members (RFC 1952, section 2.2). An empty body is allowed: some servers
    label one.
    """

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._is_gzip = "gzip" in coding.lower()
        self._decoder = zlib.decompressobj(_ZLIB_AUTO)
        self._is_empty = True

    def step(self, data: bytes) -> tuple[bytes, bytes]:
        """Return at most `STEP_BYTES` of what is in `data`, and the part of it that is to be given again.

        Raises `AnswerCut`.
        """
        self._is_empty = False
        try:
            if self._decoder.eof and not self._is_gzip:
                raise zlib.error("bytes follow its end")
            if self._decoder.eof:
                self._decoder = zlib.decompressobj(_GZIP)
            plain = self._decoder.decompress(data, STEP_BYTES)
        except zlib.error as e:
            raise self._cut(e) from e
        return plain, self._decoder.unused_data if self._decoder.eof else self._decoder.unconsumed_tail

    def end(self) -> bytes:
        """Return the rest, once all data was given. Raises `AnswerCut` if that was not a whole stream."""
        try:
            plain = self._decoder.flush()
        except zlib.error as e:
            raise self._cut(e) from e
        if not (self._is_empty or self._decoder.eof):
            raise self._cut("it has no end")
        return plain

    def _cut(self, reason: object) -> AnswerCut:
        return AnswerCut(f"the model server's answer is not {self._coding}: {reason}")


class PausedSink(Protocol):
    """Receiver of decompressed bytes."""

    @property
    def is_write_paused(self) -> bool:
        """Whether the sink has enough for now."""
        ...

    async def drained(self) -> None:
        """Return once the sink takes more."""
        ...


class AbortableSource(Source, Protocol):
    """Source of compressed bytes."""

    def abort(self) -> None: ...


class InflatingSource:
    """Stands between a client's connection and `source`: `write` gets what the bytes given to `add` hold.

    It decompresses only as fast as `sink`, the connection, takes the result.
    """

    def __init__(
        self, coding: str, sink: PausedSink, source: AbortableSource, write: Callable[[bytes], None]
    ) -> None:
        self._inflater = Inflater(coding)
        self._sink = sink
        self._source: AbortableSource | None = source
        self._write = write
        self._waiting: deque[bytes] = deque()
        self._error: Exception | None = None  # raised while the sink asked for more

    def add(self, pieces: list[bytes]) -> None:
        """Decompress `pieces`, as far as the sink takes the result. Raises `AnswerCut`."""
        self._waiting.extend(pieces)
        self._go_on()
        if self._waiting and self._source is not None:
            self._source.pause_reading()

    def detach(self) -> None:
        """Leave the source alone: all that it had has come."""
        self._source = None

    def pause_reading(self) -> None:
        """Note that the sink takes no more for now."""
        if self._source is not None:
            self._source.pause_reading()

    def resume_reading(self) -> None:
        """Go on where `pause_reading` has stopped."""
        try:
            self._go_on()
        except Exception as e:  # noqa: BLE001 - `write` calls an author's scanner, which may raise anything
            self._error = e
            self._waiting.clear()
            if self._source is not None:
                self._source.abort()
        if self._source is not None and not self._waiting:
            self._source.resume_reading()

    async def end(self) -> None:
        """Decompress the rest.

        Raises `AnswerCut` for a body that is not whole, and what the sink and `write` raise.
        """
        while self._waiting:
            await self._sink.drained()
            self._go_on()
        if self._error is not None:
            raise self._error
        self._write(self._inflater.end())

    def _go_on(self) -> None:
        while self._waiting and not self._sink.is_write_paused:
            self._step()

    def _step(self) -> None:
        plain, rest = self._inflater.step(self._waiting.popleft())
        if rest:
            self._waiting.appendleft(rest)
        self._write(plain)
