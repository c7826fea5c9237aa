"""Large envelopes while they arrive: verified early, bounded in memory and on disk until then."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from lib.access.arriving import KEPT_BYTES, Arrivals
from lib.access.authenticator import Admission
from lib.access.body import BodyReader
from lib.access.envelope import PARSED_WHOLE_BYTES
from lib.access.open import OpenAccess
from lib.access.payload import PayloadReader
from lib.access.refusals import Refusals
from lib.access.scanner import MAX_VALUES
from lib.access.signatures import BadSignature, Signatures
from lib.access.signed import SignedRequests
from lib.access.spool import SpoolRoom
from lib.errors import BodyTooLarge, Invalid, Unavailable
from lib.http.shares import Shares
from lib.local.engine import LocalEngine
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


async def _any_auth() -> Any:
    return (await Door().admit(envelope(auth(), {}, is_last=False))).auth
