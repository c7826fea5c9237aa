"""Compressed answers for clients that do not accept them: whole or an error, however slow the client."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable

import pytest

from lib.errors import AnswerCut
from lib.model.inflate import STEP_BYTES, InflatingSource

TEXT = bytes(10 * STEP_BYTES)
GZIPPED = gzip.compress(TEXT)
CUT = GZIPPED[:-1]


class SlowSink:
    """A client that takes one part each time it is asked to; its connection then resumes what it follows."""

    def __init__(self) -> None:
        self.is_write_paused = False
        self.received = b""
        self.inflating: InflatingSource | None = None

    def write(self, data: bytes) -> None:
        self.received += data
        self.is_write_paused = True

    async def drained(self) -> None:
        await asyncio.sleep(0)
        self.is_write_paused = False
        assert self.inflating is not None
        self.inflating.resume_reading()  # as a connection does, before whoever waits goes on


class QuietSource:
    """The model server's connection."""

    def __init__(self) -> None:
        self.is_aborted = False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def abort(self) -> None:
        self.is_aborted = True


def inflating(
    coding: str, write: Callable[[bytes], None] | None = None
) -> tuple[InflatingSource, SlowSink, QuietSource]:
    sink, source = SlowSink(), QuietSource()
    sink.inflating = InflatingSource(coding, sink, source, write or sink.write)
    return sink.inflating, sink, source


@pytest.mark.parametrize(("coding", "packed"), [("gzip", GZIPPED), ("deflate", zlib.compress(TEXT))])
@pytest.mark.parametrize("has_ended", [False, True])
async def test_a_slow_client_gets_all(coding: str, packed: bytes, has_ended: bool) -> None:
    body, sink, _ = inflating(coding)
    body.add([packed[:20], packed[20:]])
    assert len(sink.received) <= STEP_BYTES
    if has_ended:
        body.detach()
    await body.end()
    assert sink.received == TEXT


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("deflate", zlib.compress(TEXT) + b"more"),
        ("gzip", GZIPPED + b"more"),
        ("gzip", CUT),
        ("gzip", GZIPPED[:-8] + bytes(8)),
    ],
)
async def test_what_is_wrong_behind_a_pause_is_still_an_error(coding: str, packed: bytes) -> None:
    body, sink, source = inflating(coding)
    body.add([packed])
    while sink.is_write_paused:
        sink.is_write_paused = False
        body.resume_reading()
    with pytest.raises(AnswerCut):
        await body.end()
    assert source.is_aborted or packed == CUT  # whose lack shows at its end only


async def test_a_scanner_that_raises_behind_a_pause_ends_the_answer() -> None:
    calls: list[bytes] = []

    def write(data: bytes) -> None:
        calls.append(data)
        sink.is_write_paused = True
        if len(calls) > 1:
            raise LookupError("a scanner's bug")

    body, sink, source = inflating("gzip", write)
    body.add([GZIPPED])
    sink.is_write_paused = False
    body.resume_reading()
    assert source.is_aborted
    with pytest.raises(LookupError):
        await body.end()
