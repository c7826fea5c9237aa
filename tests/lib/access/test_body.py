"""Limits of bodies: size, time, and the memory of all unverified bodies (docs/protocol.md, "Bodies")."""

from __future__ import annotations

import asyncio
import errno
import gzip
import zlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from lib.access.body import FLOOR_BYTES_S, INFLATED_BYTES, BodyReader
from lib.errors import (
    BodyStalled,
    BodyTooLarge,
    ClientGone,
    CodingNotUnderstood,
    Invalid,
    Unavailable,
    WorkerError,
)
from lib.http.shares import Shares
from tests.fakes.incoming_request import Client, IncomingRequest

STALL_S = 30.0

# Without a time stamp: the bytes are in the names of tests, which must be the same in every process.
COMPRESSED = gzip.compress(b"abc", mtime=0)


@asynccontextmanager
async def reading(reader: BodyReader, request: web.Request) -> AsyncGenerator[asyncio.Task[bytes], None]:
    """Read in a task; run the block once the task waits for more."""

    async def read() -> bytes:
        async with reader.read(request) as body:
            return bytes(body)

    task = asyncio.create_task(read())
    for _ in range(5):
        await asyncio.sleep(0)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def body_of(reader: BodyReader, request: web.Request) -> bytes:
    async with reader.read(request) as body:
        return bytes(body)


async def test_a_body_is_read_unchanged() -> None:
    reader = BodyReader(100, STALL_S)
    assert await body_of(reader, IncomingRequest().arrive(b"abc")) == b"abc"
    assert await body_of(reader, IncomingRequest().arrive()) == b""
    upload = IncomingRequest()
    async with reading(reader, upload.request) as task:
        for part in (b"a", b"bc"):
            upload.content.feed_data(part)
            await asyncio.sleep(0)
        upload.content.feed_eof()
        assert await task == b"abc"


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZIP ", "deflate"])
async def test_a_compressed_body_is_decompressed(coding: str) -> None:
    plain = b"all that is compressed " * 100
    compressed = zlib.compress(plain) if coding == "deflate" else gzip.compress(plain)
    upload = IncomingRequest(coding).arrive(*(compressed[i : i + 7] for i in range(0, len(compressed), 7)))
    assert await body_of(BodyReader(len(plain), STALL_S), upload) == plain


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "chunked"])
async def test_another_coding_is_refused(coding: str) -> None:
    with pytest.raises(CodingNotUnderstood) as refused:
        await body_of(BodyReader(100, STALL_S), IncomingRequest(coding).arrive(b"abc"))
    assert refused.value.status == 415


async def test_a_body_is_refused_for_its_announced_length_before_it_arrives() -> None:
    with pytest.raises(BodyTooLarge) as refused:
        await body_of(BodyReader(100, STALL_S), IncomingRequest(length=101).request)
    assert refused.value.status == 413
    assert "100 bytes" in refused.value.message
    assert "MAX_JSON_BYTES" in refused.value.message


async def test_a_body_of_exactly_the_limit_is_read() -> None:
    reader = BodyReader(100, STALL_S)
    assert len(await body_of(reader, IncomingRequest().arrive(b"x" * 60, b"x" * 40))) == 100
    assert (
        len(await body_of(reader, IncomingRequest("gzip").arrive(gzip.compress(b"x" * 100, mtime=0)))) == 100
    )
    with pytest.raises(BodyTooLarge):
        await body_of(reader, IncomingRequest().arrive(b"x" * 60, b"x" * 41, whole=False))


async def test_a_compressed_body_is_refused_by_its_decompressed_size() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    with pytest.raises(BodyTooLarge):
        await body_of(BodyReader(60_000, STALL_S), IncomingRequest("gzip").arrive(bomb, whole=False))


@pytest.mark.parametrize("size", [n * INFLATED_BYTES + d for n in (1, 2) for d in (-1, 0, 1)] + [10**7])
@pytest.mark.parametrize("step", [1, 7, 65536])
async def test_a_compressed_body_is_decompressed_in_small_pieces(size: int, step: int) -> None:
    plain = bytes(size)
    compressed = gzip.compress(plain, mtime=0)
    upload = IncomingRequest("gzip").arrive(
        *(compressed[i : i + step] for i in range(0, len(compressed), step))
    )
    parts = [part async for part in BodyReader(size, STALL_S).parts(upload)]
    assert b"".join(parts) == plain
    assert max(map(len, parts)) <= INFLATED_BYTES


async def test_a_compressed_body_that_decompresses_to_nothing_is_limited_too() -> None:
    upload, nothing = IncomingRequest("gzip"), b"\x00\x00\x00\xff\xff" * 1000  # empty stored blocks
    head = gzip.compress(b"", mtime=0)[:10]
    with pytest.raises(BodyTooLarge):
        await body_of(BodyReader(9_000, STALL_S), upload.arrive(head, nothing, nothing, whole=False))


async def test_data_after_a_compressed_body_is_refused_when_it_arrives() -> None:
    upload = IncomingRequest("gzip")
    with pytest.raises(Invalid, match="invalid request") as refused:
        await body_of(BodyReader(100, STALL_S), upload.arrive(gzip.compress(b"{}"), b"more", whole=False))
    assert refused.value.body() == {"body": "data follows the compressed data"}


@pytest.mark.parametrize("compressed", [b"", b"abc", COMPRESSED[:-1], COMPRESSED[:5]])
async def test_a_body_that_is_not_in_its_coding_is_invalid(compressed: bytes) -> None:
    with pytest.raises(Invalid) as refused:
        await body_of(BodyReader(100, STALL_S), IncomingRequest("gzip").arrive(compressed))
    assert list(refused.value.fields) == ["body"]


async def test_a_body_that_stalls_is_refused() -> None:
    with pytest.raises(BodyStalled) as refused:
        await body_of(BodyReader(100, 0.01), IncomingRequest().arrive(b"{", whole=False))
    assert refused.value.status == 408


async def test_a_body_that_arrives_too_slowly_is_refused() -> None:
    upload, stall_s = IncomingRequest(), 0.02
    loop = asyncio.get_running_loop()

    def trickle() -> None:
        upload.content.feed_data(b" ")
        timers.append(loop.call_later(stall_s / 4, trickle))

    timers = [loop.call_soon(trickle)]
    try:
        with pytest.raises(BodyStalled):
            await body_of(BodyReader(10**9, stall_s), upload.request)
    finally:
        timers[-1].cancel()


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (web.RequestPayloadError("bad chunk"), Invalid),
        (ConnectionResetError("gone"), ClientGone),
        (OSError(errno.EHOSTUNREACH, "unreachable"), ClientGone),
    ],
)
async def test_an_incomplete_body(error: Exception, becomes: type[Exception]) -> None:
    upload = IncomingRequest()
    async with reading(BodyReader(100, STALL_S), upload.arrive(b"{", whole=False)) as task:
        upload.content.set_exception(error)
        with pytest.raises(becomes):
            await task


@pytest.mark.parametrize(
    ("error", "becomes"),
    [(web.RequestPayloadError("bad chunk"), Invalid), (ConnectionResetError("gone"), ClientGone)],
)
async def test_a_body_that_arrived_before_an_error(error: Exception, becomes: type[Exception]) -> None:
    upload = IncomingRequest()
    request = upload.arrive(b"{}")
    upload.content.set_exception(error)
    with pytest.raises(becomes):
        await body_of(BodyReader(100, STALL_S), request)


async def test_a_whole_body_without_an_announced_length_is_limited() -> None:
    with pytest.raises(BodyTooLarge):
        await body_of(BodyReader(100, STALL_S), IncomingRequest().arrive(b"x" * 101))


async def test_unverified_bodies_share_a_limit() -> None:
    reader, few, many = BodyReader(100, STALL_S, Shares(150)), Client("192.0.2.1"), Client("192.0.2.2")
    async with reading(reader, IncomingRequest(client=few).arrive(b"x" * 70, whole=False)) as kept:
        async with reader.read(IncomingRequest(client=many).arrive(b"x" * 80)):
            with pytest.raises(Unavailable) as refused:
                await body_of(reader, IncomingRequest(client=Client(many.group)).arrive(b"x" * 81))
            assert refused.value.status == 503
            assert refused.value.body() == {"error": "too many request bodies at once", "state": "busy"}
            assert refused.value.headers() == {"Retry-After": "1"}
        assert many.evictions == 1
        assert len(await body_of(reader, IncomingRequest(client=many).arrive(b"x" * 80))) == 80
        assert not kept.done()
    assert few.evictions == 0
    assert len(await body_of(reader, IncomingRequest().arrive(b"x" * 100))) == 100


async def test_a_body_that_gives_way_ends_with_503() -> None:
    reader, honest = BodyReader(200, STALL_S, Shares(150)), Client("192.0.2.1")
    async with reading(reader, IncomingRequest().arrive(b"x" * 100, whole=False)) as evicted:
        assert len(await body_of(reader, IncomingRequest(client=honest).arrive(b"x" * 60))) == 60
        with pytest.raises(Unavailable):
            await evicted


@pytest.mark.parametrize("coding", [None, "identity"])
async def test_a_verified_body_takes_nothing_of_the_limit(coding: str | None) -> None:
    reader = BodyReader(100, STALL_S, Shares(10))
    body = await reader.read_verified(IncomingRequest(coding).arrive(b"x" * 50, b"x" * 50))
    assert bytes(body) == b"x" * 100
    assert reader.memory.held_bytes == reader.memory.evicted == 0


@pytest.mark.parametrize(("sent_bytes", "is_slow"), [(FLOOR_BYTES_S // 20 - 1, True), (FLOOR_BYTES_S, False)])
async def test_a_body_slower_than_the_floor_is_refused_before_it_is_verified(
    sent_bytes: int, is_slow: bool
) -> None:
    reader = BodyReader(10**6, STALL_S, floor_after_s=0.05)
    upload = IncomingRequest()
    async with reading(reader, upload.arrive(b"x" * sent_bytes, whole=False)) as task:
        if is_slow:
            with pytest.raises(BodyStalled):
                await task
        else:
            upload.content.feed_eof()
            assert len(await task) == sent_bytes


async def test_a_compressed_body_counts_with_its_decompressed_size() -> None:
    reader = BodyReader(1000, STALL_S, Shares(500))
    with pytest.raises(Unavailable):
        await body_of(reader, IncomingRequest("gzip").arrive(gzip.compress(bytes(501))))
    assert len(await body_of(reader, IncomingRequest("gzip").arrive(gzip.compress(bytes(500))))) == 500


PARTS = st.lists(st.binary(max_size=30) | st.sampled_from([30, 50]).map(bytes), max_size=6)
CODINGS = st.sampled_from([None, "", "identity", "gzip", "deflate", "br"])


@given(PARTS, CODINGS, st.booleans())
def test_any_body_is_read_or_refused_and_releases_its_memory(
    parts: Sequence[bytes], coding: str | None, packs: bool
) -> None:
    async def example() -> None:
        reader = BodyReader(100, STALL_S, Shares(120))
        sent, plain = list(parts), b"".join(parts)
        if packs and coding in ("gzip", "deflate"):
            packer = gzip.compress if coding == "gzip" else zlib.compress
            compressed = packer(plain)
            sent = [compressed[i : i + 9] for i in range(0, len(compressed), 9)]
        status = 200
        try:
            body = await body_of(reader, IncomingRequest(coding).arrive(*sent))
            assert body == plain or not packs
            assert len(body) <= 100
        except WorkerError as e:
            status = e.status
        assert status in (200, 413, 415, 422)
        async with (
            reader.read(IncomingRequest().arrive(b"x" * 100)) as first,
            reader.read(IncomingRequest().arrive(b"x" * 20)) as second,
        ):
            assert len(first) + len(second) == 120

    asyncio.run(example())
