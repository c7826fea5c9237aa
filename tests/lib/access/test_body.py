"""Limits of bodies: size, time, and the memory of all unverified bodies (docs/protocol.md, "Bodies")."""

from __future__ import annotations

import asyncio
import errno
import gzip
import json
import zlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from lib.access.body import (
    FLOOR_AFTER_S,
    FLOOR_BYTES_S,
    INFLATED_BYTES,
    REREAD_BYTES,
    WHOLE_BODY_FACTOR,
    BodyReader,
    MemoryShare,
    content_coding,
    let_read_again,
)
from lib.errors import (
    BodyStalled,
    BodyTooLarge,
    ClientGone,
    CodingNotUnderstood,
    Invalid,
    Unavailable,
    WorkerError,
)
from lib.http.heads import parse_request
from lib.http.shares import Shares
from lib.request.incoming import DirectRequest
from tests.event_loop import run_event_loop_turns
from tests.fakes.incoming_request import Client, IncomingRequest
from tests.virtual_time import VirtualClock, in_virtual_time

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


@pytest.mark.parametrize("size", [99, 100, 101])
@pytest.mark.parametrize("is_announced", [False, True])
@pytest.mark.parametrize("way", ["at once", "in parts", "compressed"])
async def test_a_body_of_exactly_the_limit_is_read(size: int, is_announced: bool, way: str) -> None:
    reader, plain = BodyReader(100, STALL_S), b"x" * size
    is_packed = way == "compressed"
    sent = gzip.compress(plain, mtime=0) if is_packed else plain
    incoming = IncomingRequest("gzip" if is_packed else None, len(sent) if is_announced else None)
    incoming.arrive(sent[:60], whole=False)
    async with reading(reader, incoming.request) as task:
        if way == "in parts":
            await run_event_loop_turns()
        incoming.arrive(*([sent[60:]] if sent[60:] else []))
        if size <= 100:
            assert await task == plain
            return
        with pytest.raises(BodyTooLarge):
            await task


@pytest.mark.parametrize("size", [99, 100, 101])
@pytest.mark.parametrize("is_announced", [False, True])
async def test_a_body_that_has_arrived_is_given_at_once(size: int, is_announced: bool) -> None:
    reader, body = BodyReader(100, STALL_S), b"x" * size
    incoming = IncomingRequest(length=size if is_announced else None)
    assert size > 100 or reader.arrived(incoming.request) is None
    incoming.arrive(body)
    if size <= 100:
        assert reader.arrived(incoming.request) == body
        return
    with pytest.raises(BodyTooLarge):
        reader.arrived(incoming.request)


@pytest.mark.parametrize("whole", [None, b"", b"x" * 100, b"x" * 101])
async def test_a_direct_body_that_has_arrived_is_given_at_once(whole: bytes | None) -> None:
    head = parse_request(b"POST / HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: chunked\r\n\r\n")
    request = DirectRequest(cast(Any, None), head, whole)
    reader = BodyReader(100, STALL_S)
    if whole is None or len(whole) <= 100:
        assert reader.arrived(request) == whole
        return
    with pytest.raises(BodyTooLarge):
        reader.arrived(request)


async def test_a_compressed_body_has_not_arrived_before_it_is_decompressed() -> None:
    request = IncomingRequest("gzip").arrive(COMPRESSED)
    assert BodyReader(100, STALL_S).arrived(request) is None


@pytest.mark.parametrize(
    ("field", "coding"), [("", ""), ("Content-Encoding: GZip \r\n", "gzip"), ("X: gzip\r\n", "")]
)
def test_the_coding_is_read_of_both_carriers(field: str, coding: str) -> None:
    name, _, value = field.strip().partition(": ")
    head = parse_request(f"POST / HTTP/1.1\r\nHost: w\r\n{field}\r\n".encode())
    assert content_coding(DirectRequest(cast(Any, None), head)) == coding
    assert content_coding(make_mocked_request("POST", "/", {name: value} if name else {})) == coding


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


# Seconds before a part, and its size in seconds at the lowest speed: around the limits.
PAUSES_S = st.sampled_from([0.13, 0.13, 5.17, FLOOR_AFTER_S - 0.21, FLOOR_AFTER_S + 0.21, STALL_S - 0.07])
SIZES_S = st.sampled_from([0.01, 0.01, 5.0, FLOOR_AFTER_S, STALL_S])
SLOW = [(STALL_S - 0.07, STALL_S)] * (WHOLE_BODY_FACTOR + 1)


def late_at_s(parts: list[tuple[float, float]], is_verified: bool) -> float | None:
    """The seconds after which a body is too late whose `parts` come after pauses; None if it isn't."""
    waited_s = received_s = 0.0
    for pause_s, size_s in parts:
        limit_s = min(waited_s + STALL_S, STALL_S * WHOLE_BODY_FACTOR)
        if not is_verified:
            limit_s = min(limit_s, max(FLOOR_AFTER_S, received_s))
        waited_s += pause_s
        if waited_s > limit_s:
            return limit_s
        received_s += int(size_s * FLOOR_BYTES_S) / FLOOR_BYTES_S
    return None


@given(
    st.lists(st.tuples(PAUSES_S, SIZES_S), max_size=6) | st.just(SLOW),
    st.sampled_from([0.0, STALL_S - 0.01, STALL_S + 0.01]),
    st.sampled_from(["stranger", "verified", "upload"]),
)
def test_a_body_is_refused_at_the_moment_when_it_is_too_late(
    parts: list[tuple[float, float]], last_pause_s: float, kind: str
) -> None:
    late_s = late_at_s([*parts, (last_pause_s, 0.0)], is_verified=kind != "stranger")

    async def example(clock: VirtualClock) -> None:
        upload, begun_s = IncomingRequest(), clock.monotonic()
        reader = BodyReader(10**9, STALL_S, Shares(10**9))

        async def read() -> None:
            if kind == "upload":
                async for _ in reader.parts(upload.request):
                    pass
                return
            if kind == "verified":
                await reader.read_verified(upload.request)
                return
            async with reader.read(upload.request):
                pass

        async def send() -> None:
            for pause_s, size_s in parts:
                await asyncio.sleep(pause_s)
                upload.content.feed_data(bytes(int(size_s * FLOOR_BYTES_S)))
            await asyncio.sleep(last_pause_s)
            upload.content.feed_eof()

        sending = asyncio.create_task(send())
        if late_s is None:
            await read()
            await sending
            return
        with pytest.raises(BodyStalled):
            await read()
        assert clock.monotonic() - begun_s == pytest.approx(late_s)
        sending.cancel()

    in_virtual_time(example)


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
        with pytest.raises(becomes) as raised:
            await task
    if isinstance(raised.value, Invalid):
        assert raised.value.fields == {"body": "incomplete: bad chunk"}


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


async def test_what_a_body_held_is_given_back_once() -> None:
    memory, client = Shares(100), Client()
    memory.add(client, 8)
    share = MemoryShare(memory, IncomingRequest(client=client).request)
    for _ in range(2):
        share.take(5)
        assert memory.held_bytes == 13
        share.give_back()
        share.give_back()
        assert memory.held_bytes == 8


async def test_a_body_whose_connection_is_lost_is_a_strangers() -> None:
    memory, known = Shares(100), Client(is_known=True)
    request = make_mocked_request("POST", "/", payload=IncomingRequest().content)  # without a connection
    share = MemoryShare(memory, request)
    share.take(40)
    assert memory.add(known, 61)
    assert (memory.held_bytes, known.evictions) == (61, 0)
    share.give_back()
    assert memory.held_bytes == 61


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
        if coding in (None, "", "identity"):
            assert status == (200 if len(plain) <= 100 else 413)
        async with (
            reader.read(IncomingRequest().arrive(b"x" * 100)) as first,
            reader.read(IncomingRequest().arrive(b"x" * 20)) as second,
        ):
            assert len(first) + len(second) == 120

    asyncio.run(example())


# Read again by author code


CONTENT = {"a": {"b": [1]}, "c": "d"}
TEXT = json.dumps(CONTENT)


async def received(read: web.Request, way: str) -> object:
    """The body that author code gets from `read`."""
    if way == "content":
        return b"".join([part async for part in read.content.iter_any()])
    return await getattr(read, way)()


@pytest.mark.parametrize(
    ("way", "expected"),
    [("read", TEXT.encode()), ("text", TEXT), ("json", CONTENT), ("content", TEXT.encode())],
)
@pytest.mark.parametrize("kind", ["bytes", "bytearray", "object", "file"])
@pytest.mark.parametrize("is_gone", [False, True])
async def test_author_code_may_read_a_body_again(
    way: str, expected: object, kind: str, is_gone: bool, tmp_path: Path
) -> None:
    file = tmp_path / "body"
    file.write_text(TEXT)
    bodies = {"bytes": TEXT.encode(), "bytearray": bytearray(TEXT, "ascii"), "object": CONTENT, "file": file}
    request = IncomingRequest(content_type="application/json").arrive(b"")
    assert await request.content.read() == b""  # aiohttp remembers `content`
    let_read_again(request, bodies[kind])
    if is_gone:
        request.content.set_exception(ConnectionResetError())
    assert await received(request, way) == expected


@pytest.mark.parametrize("size", [0, REREAD_BYTES, REREAD_BYTES + 1, 2 * INFLATED_BYTES + 1])
@pytest.mark.parametrize("has_content", [False, True])
@pytest.mark.parametrize("kind", [bytes, bytearray])
async def test_the_bytes_of_a_large_body_are_not_kept(
    size: int, has_content: bool, kind: type[bytes | bytearray], tmp_path: Path
) -> None:
    request, body = IncomingRequest().request, kind(size)
    let_read_again(request, body, CONTENT if has_content else None)
    is_kept = size <= REREAD_BYTES or not has_content
    assert await request.read() == (bytes(body) if is_kept else TEXT.encode())
    (tmp_path / "body").write_bytes(body)
    let_read_again(other := IncomingRequest().request, tmp_path / "body", CONTENT)
    assert await other.read() == bytes(body)


async def test_of_an_object_its_members_are_copied() -> None:
    content: dict[str, Any] = {"a": {"b": 1}, "c": [1]}
    request = IncomingRequest().request
    let_read_again(request, content)
    content["a"]["b"] = content["more"] = 2
    assert await request.json() == {"a": {"b": 1}, "c": [1]}


async def test_a_direct_request_is_not_read_again() -> None:
    head = parse_request(b"POST / HTTP/1.1\r\nHost: w\r\nContent-Length: 3\r\n\r\n")
    request = DirectRequest(cast(Any, None), head, b"abc")
    let_read_again(request, b"xyz")
    assert request.arrived() == b"abc"
