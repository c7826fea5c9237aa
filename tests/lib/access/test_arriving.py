"""Large envelopes while they arrive: verified early, bounded in memory and on disk until then."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from lib.access.arriving import KEPT_BYTES, WAITING_BYTES, Arrivals
from lib.access.authenticator import Admission
from lib.access.body import BodyReader
from lib.access.envelope import PARSED_WHOLE_BYTES
from lib.access.open import OpenAccess
from lib.access.payload import PayloadReader
from lib.access.refusals import Refusals
from lib.access.scanner import MAX_VALUES, SLICE_BYTES, EnvelopeScanner
from lib.access.signatures import BadSignature, Signatures
from lib.access.signed import SignedRequests
from lib.access.spool import SpoolRoom
from lib.access.turns import AT_ONCE
from lib.errors import BodyTooLarge, Invalid, Unavailable
from lib.http.heads import parse_request
from lib.http.shares import Shares
from lib.local.engine import LocalEngine
from lib.request.incoming import DirectRequest
from lib.request.incoming import IncomingRequest as AnyRequest
from lib.request.sessions import Sessions, SessionTerms
from lib.runtime.clock import SystemClock
from tests.event_loop import until
from tests.fakes.incoming_request import Client, IncomingRequest
from tests.guard import GUARD_S
from tests.system import engine_key

URL = "http://192.0.2.1:3000"
ENGINE = LocalEngine("full", key=engine_key())
PART = b" " * (KEPT_BYTES + 1)
MIB = 1024 * 1024


async def no_other_key() -> None: ...


class Door:
    """Signed requests with budgets of their own."""

    def __init__(self, memory_bytes: int = 64 * MIB, room_bytes: int = 64 * MIB) -> None:
        self.memory, self.room = Shares(memory_bytes), SpoolRoom(room_bytes)
        clock = SystemClock()
        self.sessions = Sessions(None, clock)
        signatures = Signatures("auto", URL)
        signatures.use_key(ENGINE.public_key)
        arrivals = Arrivals(BodyReader(64 * MIB, GUARD_S, self.memory), self.room)
        self.signed = SignedRequests(arrivals, signatures, self.sessions, no_other_key, Refusals(clock))

    @asynccontextmanager
    async def admitting(self, incoming: IncomingRequest) -> AsyncGenerator[asyncio.Task[Admission], None]:
        """Admit in a task inside the block; check afterwards that nothing is held any more."""
        task = asyncio.create_task(self.signed.admit(incoming.request))
        try:
            with anyio.fail_after(GUARD_S):
                yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert self.memory.held_bytes == 0
            assert self.room.shares.held_bytes == 0

    async def admit(self, body: bytes, coding: str | None = None) -> Admission:
        async with self.admitting(incoming := IncomingRequest(coding)) as task:
            incoming.arrive(body)
            return await task


def auth(**changes: Any) -> dict[str, Any]:
    return {**ENGINE.sign(url=URL, cost=1.0), **changes}


def envelope(raw: dict[str, Any], payload: dict[str, Any], *, is_last: bool, **more: Any) -> bytes:
    whole = {"payload": payload, "auth_data": raw} if is_last else {"auth_data": raw, "payload": payload}
    return json.dumps({**whole, **more}).encode()


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("size", [10, PARSED_WHOLE_BYTES, KEPT_BYTES, 3 * MIB])
async def test_auth_data_may_stand_anywhere(is_last: bool, size: int) -> None:
    raw, payload = auth(), {"x": "y" * size}
    admission = await Door().admit(envelope(raw, payload, is_last=is_last))
    assert (admission.raw_auth, admission.payload) == (raw, payload)
    assert json.loads(bytes(admission.payload_text or b"")) == payload


async def test_a_body_of_unknown_length_may_be_small() -> None:
    incoming, raw = IncomingRequest(), auth()
    async with Door().admitting(incoming) as task:
        body = envelope(raw, {"x": 1}, is_last=True)
        for part in (body[:10], body[10:20], body[20:]):
            incoming.content.feed_data(part)
            await asyncio.sleep(0)
        incoming.content.feed_eof()
        assert (await task).payload == {"x": 1}


@pytest.mark.parametrize("length", [None, 2 * PARSED_WHOLE_BYTES])
async def test_a_bad_signature_is_refused_before_the_rest_has_arrived(length: int | None) -> None:
    incoming = IncomingRequest(length=length)
    async with Door().admitting(incoming) as task:
        body = envelope(auth(cost=2.0), {"x": "y" * PARSED_WHOLE_BYTES}, is_last=False)
        incoming.arrive(body[: -100 if length is None else 1000], whole=False)
        with pytest.raises(BadSignature):
            await task
    assert not incoming.client.is_known


async def test_a_verified_client_is_known() -> None:
    door, incoming = Door(), IncomingRequest()
    async with door.admitting(incoming) as task:
        body = envelope(auth(), {"x": "y" * MIB}, is_last=False)
        incoming.arrive(body[:-1], whole=False)
        await until(lambda: incoming.client.is_known)
        assert door.memory.held_bytes == 0
        incoming.arrive(body[-1:])
        await task


async def test_the_most_of_an_unverified_body_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    door, incoming = Door(), IncomingRequest()
    async with door.admitting(incoming) as task:
        incoming.arrive(b'{"payload": {"a": 1},', whole=False)
        for number in range(1, 9):
            incoming.arrive(PART, whole=False)
            await until(lambda n=number: door.room.shares.held_bytes >= n * KEPT_BYTES)
            assert door.memory.held_bytes <= 2 * KEPT_BYTES
        assert os.listdir(tmp_path) == []  # it has no name that a killed worker would leave
        incoming.arrive(b'"auth_data": %s}' % json.dumps(auth()).encode())
        assert (await task).payload == {"a": 1}


async def test_a_large_body_of_a_session_is_found_by_its_auth_data() -> None:
    door, raw = Door(), auth()
    session = door.sessions.create(raw, SessionTerms())
    for is_last in (False, True):
        body = envelope(raw, {"x": "y" * MIB}, is_last=is_last, session_id=session.id)
        assert (await door.admit(body)).session is session
    door.sessions.end(session)
    admission = await door.admit(envelope(raw, {"x": "y" * MIB}, is_last=False, session_id=session.id))
    assert (admission.session_id, admission.session) == (session.id, None)


async def test_a_large_body_is_no_replay_of_a_signature() -> None:
    door, body = Door(), envelope(auth(), {"x": "y" * MIB}, is_last=True)
    await door.admit(body)
    with pytest.raises(Exception, match="replay"):
        await door.admit(body)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b'{"payload": {}, "x": "%s"}', {"auth_data": "field missing"}),
        (b'{"auth_data": {}, "x": "%s"}', None),
        (b'["%s"]', {"body": "must be a JSON object"}),
        (b'{"auth_data": 1, "x": "%s"}', {"auth_data": "must be an object"}),
    ],
)
async def test_a_large_body_that_is_no_envelope(body: bytes, problem: dict[str, str] | None) -> None:
    with pytest.raises(Invalid) as refused:
        await Door().admit(body % (b"y" * MIB))
    if problem is None:
        assert refused.value.body()["auth_data"]["url"] == "missing parameter"
    else:
        assert refused.value.body() == problem


# When a budget is used up


@pytest.mark.parametrize(
    ("memory_bytes", "room_bytes"), [(3 * KEPT_BYTES, 64 * MIB), (64 * MIB, 4 * KEPT_BYTES)]
)
async def test_the_address_that_holds_most_gives_way(memory_bytes: int, room_bytes: int) -> None:
    door = Door(memory_bytes, room_bytes)
    greedy = [IncomingRequest(client=Client("192.0.2.66")) for _ in range(3)]
    tasks = [asyncio.create_task(door.signed.admit(incoming.request)) for incoming in greedy]
    try:
        for incoming in greedy:
            incoming.arrive(b"{" + PART[: KEPT_BYTES - 10], whole=False)
            await until(lambda i=incoming: not i.content._buffer)  # pyright: ignore[reportPrivateUsage]
            if room_bytes < memory_bytes:
                held = door.room.shares.held_bytes
                incoming.arrive(PART[:10], whole=False)
                await until(lambda h=held: door.room.shares.held_bytes > h)
        honest = IncomingRequest(client=Client("192.0.2.7"))
        raw = auth()
        honest.arrive(b'{"x": "%s",' % (b"y" * (KEPT_BYTES * 6 // 5)), whole=False)
        honest.arrive(b'"payload": {}, "auth_data": %s}' % json.dumps(raw).encode())
        with anyio.fail_after(GUARD_S):
            assert (await door.signed.admit(honest.request)).raw_auth == raw
        assert honest.client.evictions == 0
        assert any(incoming.client.evictions for incoming in greedy)
        await until(lambda: any(task.done() for task in tasks))
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert any(isinstance(result, Unavailable) for result in results)
    assert (door.memory.held_bytes, door.room.shares.held_bytes) == (0, 0)


# What would take a hundred times its size once parsed


MANY = b"[" + b"{}," * MAX_VALUES + b"0]"


async def test_a_signed_body_of_too_many_values_is_refused_before_it_is_parsed() -> None:
    body = envelope(auth(), {"x": "HERE"}, is_last=False).replace(b'"HERE"', MANY)
    with pytest.raises(BodyTooLarge, match="more than 1000000 values"):
        await Door().admit(body)


async def test_other_work_goes_on_while_a_body_is_scanned() -> None:
    turns = 0

    async def other_work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    work = asyncio.create_task(other_work())
    body = envelope(auth(), {"x": "HERE"}, is_last=False).replace(b'"HERE"', b"[" + b"{}," * 300_000 + b"0]")
    await Door().admit(body)
    work.cancel()
    assert turns > 20


async def test_a_payload_without_an_envelope_is_bounded_as_well() -> None:
    reader, sessions = BodyReader(64 * MIB, GUARD_S), Sessions(None, SystemClock())
    body = b'{"x": %s}' % MANY
    admission = Admission(await _any_auth(), {}, None)
    payloads = PayloadReader(reader, reader, SpoolRoom(MIB))
    with pytest.raises(BodyTooLarge):
        await payloads.read_json(IncomingRequest(content_type="application/json").arrive(body), admission)
    with pytest.raises(BodyTooLarge):
        await OpenAccess(Arrivals(reader, SpoolRoom(MIB)), sessions).admit(
            IncomingRequest(content_type="application/json").arrive(body)
        )


async def test_too_many_values_are_refused_before_the_rest_of_a_verified_body_has_arrived() -> None:
    incoming = IncomingRequest()
    async with Door().admitting(incoming) as task:
        begin, _, _ = envelope(auth(), {"x": "HERE"}, is_last=False).partition(b'"HERE"')
        incoming.arrive(begin + PART, whole=False)
        await until(lambda: incoming.client.is_known)
        incoming.arrive(MANY, whole=False)
        assert isinstance((await task).failure, BodyTooLarge)


async def _any_auth() -> Any:
    return (await Door().admit(envelope(auth(), {}, is_last=False))).auth


# What one holds, part by part


class NotingReader(BodyReader):
    """Notes whether a body was verified when each part was asked for, and whether its reading has ended."""

    def __init__(self, memory: Shares) -> None:
        super().__init__(64 * MIB, GUARD_S, memory)
        self.were_verified = list[bool]()
        self.is_closed = False

    async def parts(
        self, request: AnyRequest, is_verified: Callable[[], bool] = lambda: True
    ) -> AsyncGenerator[bytes, None]:
        try:
            async for part in super().parts(request, is_verified):
                yield part
                self.were_verified.append(is_verified())
        finally:
            self.is_closed = True


class Arriving:
    """Arrivals with budgets of their own, and a request whose body arrives."""

    def __init__(self, memory_bytes: int = 64 * MIB, length: int | None = None) -> None:
        self.memory, self.room = Shares(memory_bytes), SpoolRoom(64 * MIB)
        self.reader = NotingReader(self.memory)
        self.arrivals = Arrivals(self.reader, self.room)
        self.incoming = IncomingRequest(length=length)

    @property
    def held(self) -> tuple[int, int]:
        """The bytes that are held in memory and on disk."""
        return self.memory.held_bytes, self.room.shares.held_bytes

    async def feed(self, part: bytes) -> None:
        """Let `part` arrive, and wait until the next is asked for."""
        parts = len(self.reader.were_verified)
        self.incoming.arrive(part, whole=False)
        await until(lambda: len(self.reader.were_verified) > parts)


BEGIN, INNER = b'{"auth_data": ', b'{"a": "'


@pytest.mark.parametrize("length", [None, 2 * MIB])
async def test_what_has_arrived_of_an_unverified_envelope_is_counted_exactly(length: int | None) -> None:
    here = Arriving(length=length)
    async with here.arrivals.of(here.incoming.request, None) as envelope:
        task = asyncio.create_task(envelope.find_auth_data())
        await here.feed(BEGIN + INNER)
        scanned = len(INNER)  # the scanner keeps a copy of `auth_data`, if the body is known to be large
        assert here.held == (len(BEGIN) + len(INNER) + (scanned if length else 0), 0)
        rest = KEPT_BYTES - len(BEGIN) - len(INNER)
        await here.feed(b"x" * (rest - 10))
        await here.feed(b"x" * 10)
        scanned += rest
        assert here.held == (KEPT_BYTES + (scanned if length else 0), 0)
        await here.feed(b'"')  # one byte more than is kept
        assert here.held == (scanned + 1, KEPT_BYTES + 1)
        here.incoming.arrive(b"}", whole=False)
        assert await task == INNER + b"x" * rest + b'"}'
        assert here.held == (1, KEPT_BYTES + 1)
        await envelope.note_verified()
        assert here.held == (0, 0)
        here.incoming.arrive(b', "payload": {}}')
        assert await envelope.whole() == BEGIN + INNER + b"x" * rest + b'"}, "payload": {}}'
    assert here.reader.were_verified == [False] * 4 + [True] * 2
    assert here.reader.is_closed


async def test_a_small_part_of_a_verified_envelope_is_counted_no_more() -> None:
    here = Arriving(length=MIB)
    async with here.arrivals.of(here.incoming.request, None) as envelope:
        here.incoming.arrive(BEGIN + b"{}", whole=False)
        assert await envelope.find_auth_data() == b"{}"
        assert here.held == (len(BEGIN) + 2, 0)
        await envelope.note_verified()
        assert here.held == (0, 0)
    assert here.reader.is_closed


async def test_what_has_arrived_of_a_body_that_nothing_verifies_is_counted_exactly() -> None:
    here = Arriving()
    async with here.arrivals.of(here.incoming.request, None) as envelope:
        task = asyncio.create_task(envelope.unverified())
        await here.feed(b"x" * KEPT_BYTES)
        assert here.held == (KEPT_BYTES, 0)
        await here.feed(b"yz")
        assert here.held == (0, KEPT_BYTES + 2)
        await here.feed(b"z")
        assert here.held == (1, KEPT_BYTES + 2)
        here.incoming.content.feed_eof()
        assert await task == b"x" * KEPT_BYTES + b"yzz"
        assert here.held == (0, 0)
    assert here.reader.were_verified == [False] * 3


@pytest.mark.parametrize("size", [PARSED_WHOLE_BYTES - 1, PARSED_WHOLE_BYTES, PARSED_WHOLE_BYTES + 1])
@pytest.mark.parametrize("way", ["arrived", "with its length", "in parts"])
async def test_auth_data_is_looked_for_in_large_bodies_only(size: int, way: str) -> None:
    body = BEGIN + b'{}, "x": "'
    body += b"x" * (size - len(body) - 2) + b'"}'
    here = Arriving(length=size if way == "with its length" else None)
    third = size // 3
    parts = [body[:third], body[third : 2 * third], body[2 * third :]] if way == "in parts" else [body]
    arrived = body if way == "arrived" else None
    async with here.arrivals.of(here.incoming.request, arrived) as envelope:
        task = asyncio.create_task(envelope.find_auth_data())
        if arrived is None:
            for part in parts[:-1]:
                await here.feed(part)
            here.incoming.arrive(parts[-1])
        assert await task == (b"{}" if size > PARSED_WHOLE_BYTES else None)


# Turns


class NotingScanner(EnvelopeScanner):
    """Notes the sizes of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = list[int]()

    def feed(self, data: bytes) -> None:
        self.sizes.append(len(data))


@pytest.mark.parametrize(
    ("is_verified", "scanned"),
    [
        # What is scanned before each wait.
        (True, [[SLICE_BYTES], [SLICE_BYTES, SLICE_BYTES]]),
        (False, [list[int]()]),
    ],
)
async def test_a_verified_body_is_scanned_a_slice_in_each_turn_and_another_as_strangers(
    is_verified: bool, scanned: list[list[int]]
) -> None:
    arrivals, scanner = Arriving().arrivals, NotingScanner()
    for _ in range(AT_ONCE):
        await arrivals.turns.wait()
    scan, sizes = arrivals.scan(scanner, bytes(2 * SLICE_BYTES + 1), is_verified), list[list[int]]()
    with suppress(StopIteration):
        while True:
            turn = scan.send(None)
            sizes.append(scanner.sizes[:])
            await until(turn.done)
    assert sizes == scanned
    assert scanner.sizes == [SLICE_BYTES, SLICE_BYTES, 1]


async def test_an_envelope_waits_for_strangers_until_it_is_verified() -> None:
    here = Arriving(length=MIB)
    strangers = [asyncio.ensure_future(here.arrivals.turns.wait()) for _ in range(8 * AT_ONCE)]
    await asyncio.sleep(0)
    async with here.arrivals.of(here.incoming.request, None) as envelope:
        here.incoming.arrive(BEGIN + b"{}", whole=False)
        assert await envelope.find_auth_data() == b"{}"
        assert all(stranger.done() for stranger in strangers)
        await envelope.note_verified()
        strangers = [asyncio.ensure_future(here.arrivals.turns.wait()) for _ in range(30 * AT_ONCE)]
        await asyncio.sleep(0)
        here.incoming.arrive(b', "payload": {}}')
        await envelope.whole()
        assert not strangers[-1].done()
        await asyncio.gather(*strangers)


def direct_request(length: int | None) -> DirectRequest:
    fields = "" if length is None else f"Content-Length: {length}\r\n"
    head = parse_request(f"POST / HTTP/1.1\r\nHost: w\r\n{fields}\r\n".encode())
    return DirectRequest(cast(Any, Client()), head)


LENGTHS = [None, 0, 1, PARSED_WHOLE_BYTES - 1, PARSED_WHOLE_BYTES, PARSED_WHOLE_BYTES + 1]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("is_direct", [False, True])
async def test_a_stranger_that_waits_for_its_turn_is_counted(length: int | None, is_direct: bool) -> None:
    bytes_held = min(length or 0, PARSED_WHOLE_BYTES) + (WAITING_BYTES if is_direct else 0)
    here = Arriving(memory_bytes=bytes_held)
    request = direct_request(length) if is_direct else IncomingRequest(length=length).request
    for _ in range(AT_ONCE):
        assert here.arrivals.turns.is_free
        with pytest.raises(StopIteration):  # it returned at once, and counted nothing
            here.arrivals.turn_of(request).send(None)
    assert not here.arrivals.turns.is_free
    wait = here.arrivals.turn_of(request)
    turn = wait.send(None)
    assert here.memory.held_bytes == bytes_held
    await until(turn.done)
    with pytest.raises(StopIteration):
        wait.send(None)
    assert here.memory.held_bytes == 0


async def test_a_stranger_that_waits_for_its_turn_gives_way_when_memory_is_used_up() -> None:
    here = Arriving(memory_bytes=WAITING_BYTES)
    for _ in range(AT_ONCE):
        await here.arrivals.turns.wait()
    with pytest.raises(Unavailable):
        await here.arrivals.turn_of(direct_request(1))
    assert here.memory.held_bytes == 0
