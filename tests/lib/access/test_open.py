"""Requests without authentication: which bodies are envelopes, and which are payloads. No HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from lib.access.arriving import KEPT_BYTES, Arrivals
from lib.access.authenticator import Admission
from lib.access.body import BodyReader
from lib.access.open import OpenAccess
from lib.access.spool import SpoolRoom
from lib.data_types import UNSIGNED_AUTH_DATA, AuthData
from lib.errors import BodyStalled, Invalid, Unavailable
from lib.http.shares import Shares
from lib.request.sessions import Sessions, SessionTerms
from tests.event_loop import run_event_loop_turns, until
from tests.fakes.incoming_request import Client, IncomingRequest
from tests.guard import GUARD_S
from tests.manual_clock import ManualClock

AUTH = {"signature": "s", "cost": 2.5, "endpoint": "e", "reqnum": 3, "url": "http://w:1", "request_idx": 4}
UNSIGNED = AuthData.from_json_msg(UNSIGNED_AUTH_DATA)
PAYLOAD = {"prompt": "hello"}
MIB = 1024 * 1024


def access() -> OpenAccess:
    return OpenAccess(Arrivals(BodyReader(1024, 1.0), SpoolRoom(MIB)), Sessions(None, ManualClock()))


def request(body: bytes, content_type: str = "application/json") -> web.Request:
    """A request whose whole body has arrived."""
    return IncomingRequest(length=len(body), content_type=content_type).arrive(body)


async def admit(content: object, content_type: str = "application/json") -> Admission:
    return await access().admit(request(json.dumps(content).encode(), content_type))


@pytest.mark.parametrize(
    "payload",
    [
        {},
        PAYLOAD,
        {"payload": PAYLOAD},
        {"payload": PAYLOAD, "auth_data": None},
        {"payload": PAYLOAD, "auth_data": "text"},
        {"payload": PAYLOAD, "auth_data": "text", "session_id": "s"},
        {"payload": [PAYLOAD], "auth_data": AUTH},
        {"payload": "text", "auth_data": AUTH},
        {"payload": "text", "session_id": "s"},
        {"auth_data": AUTH},
        {"session_id": "s"},
        {"auth_data": AUTH, "session_id": "s"},
    ],
)
async def test_a_body_that_is_the_payload(payload: dict[str, Any]) -> None:
    admission = await admit(payload)
    assert admission == Admission(UNSIGNED, dict(UNSIGNED_AUTH_DATA), payload)
    assert admission.payload_text == json.dumps(payload).encode()


@pytest.mark.parametrize(
    ("envelope", "raw_auth", "session_id"),
    [
        ({"auth_data": AUTH}, AUTH, None),
        ({"auth_data": AUTH, "session_id": None}, AUTH, None),
        ({"auth_data": AUTH, "session_id": "gone"}, AUTH, "gone"),
        ({"session_id": "gone"}, UNSIGNED_AUTH_DATA, "gone"),
        ({"session_id": None}, UNSIGNED_AUTH_DATA, None),
    ],
)
async def test_a_body_that_is_an_envelope(
    envelope: dict[str, Any], raw_auth: Mapping[str, Any], session_id: str | None
) -> None:
    admission = await admit({**envelope, "payload": PAYLOAD})
    assert (admission.payload, admission.raw_auth) == (PAYLOAD, raw_auth)
    assert admission.payload_text == json.dumps(PAYLOAD).encode()
    assert (admission.session_id, admission.session) == (session_id, None)
    assert (admission.auth.cost, admission.auth.reqnum) == (raw_auth["cost"], raw_auth["reqnum"])


async def test_a_request_idx_is_ignored_as_no_report_needs_it() -> None:
    assert (await admit({"auth_data": AUTH, "payload": PAYLOAD})).auth.request_idx is None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"[]", "body"),
        (b"{", "body"),
        (b'"text"', "body"),
        (b'{"auth_data": {}, "payload": {}}', "auth_data"),
        (b'{"session_id": 5, "payload": {}}', "session_id"),
        (json.dumps({"auth_data": AUTH, "session_id": ["s"], "payload": {}}).encode(), "session_id"),
    ],
)
async def test_a_wrong_body_is_invalid(body: bytes, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        await access().admit(request(body))
    assert list(refused.value.fields) == [field]


@pytest.mark.parametrize("content_type", ["text/plain", "audio/wav", "multipart/form-data"])
async def test_a_body_of_another_type_is_not_read(content_type: str) -> None:
    upload = request(b"{", content_type)
    admission = await access().admit(upload)
    assert admission == Admission(UNSIGNED, dict(UNSIGNED_AUTH_DATA), None)
    assert await upload.read() == b"{"


async def test_a_request_without_a_body_is_admitted() -> None:
    admission = await access().admit(make_mocked_request("GET", "/"))
    assert admission == Admission(UNSIGNED, dict(UNSIGNED_AUTH_DATA), None)


async def test_a_suffix_of_json_is_json() -> None:
    assert (await admit(PAYLOAD, "application/ld+json")).payload == PAYLOAD


async def test_a_session_is_found_by_its_id_alone() -> None:
    authenticator = access()
    session = authenticator.sessions.create(dict(UNSIGNED_AUTH_DATA), SessionTerms())
    envelope = {"session_id": session.id, "auth_data": AUTH, "payload": PAYLOAD}
    admission = await authenticator.admit(request(json.dumps(envelope).encode()))
    assert admission.session is session
    for body, found in (({"session_id": session.id}, session), ({"session_id": "other"}, None)):
        assert await authenticator.session_in(request(json.dumps(body).encode())) is found


@pytest.mark.parametrize(
    ("body", "problem"), [({}, "missing parameter"), ({"session_id": 5}, "must be a string")]
)
async def test_a_session_route_needs_an_id(body: dict[str, Any], problem: str) -> None:
    with pytest.raises(Invalid) as refused:
        await access().session_in(request(json.dumps(body).encode()))
    assert refused.value.fields == {"session_id": problem}


def test_no_key_is_needed() -> None:
    authenticator = access()
    authenticator.use_key("any text")
    assert not authenticator.needs_key


# Bodies that are arriving


@asynccontextmanager
async def admitting(
    memory: Shares, room: SpoolRoom, incoming: IncomingRequest, floor_after_s: float = GUARD_S
) -> AsyncGenerator[asyncio.Task[Admission], None]:
    """Admit in a task inside the block."""
    bodies = BodyReader(64 * MIB, GUARD_S, memory, floor_after_s=floor_after_s)
    door = OpenAccess(Arrivals(bodies, room), Sessions(None, ManualClock()))
    task = asyncio.create_task(door.admit(incoming.request))
    try:
        with anyio.fail_after(GUARD_S):
            yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("size", [10, KEPT_BYTES, 3 * MIB])
async def test_a_body_that_arrives_in_parts_is_the_payload(size: int) -> None:
    payload = {"x": "y" * size}
    incoming = IncomingRequest(content_type="application/json")
    async with admitting(Shares(64 * MIB), SpoolRoom(64 * MIB), incoming) as task:
        body = json.dumps(payload).encode()
        for part in (body[:9], body[9:-5], body[-5:]):
            incoming.arrive(part, whole=False)
            await run_event_loop_turns()
        incoming.content.feed_eof()
        assert (await task).payload == payload


async def test_bodies_that_are_arriving_share_memory_and_disk_as_those_of_strangers() -> None:
    memory, room = Shares(MIB), SpoolRoom(4 * MIB)
    honest = IncomingRequest(content_type="application/json", client=Client("192.0.2.1"))
    greedy = IncomingRequest(content_type="application/json", client=Client("192.0.2.66"))
    async with admitting(memory, room, honest) as one, admitting(memory, room, greedy) as other:
        for incoming in (honest, greedy):
            incoming.arrive(b'{"x": "' + b"y" * 2 * KEPT_BYTES, whole=False)
        await until(lambda: room.shares.held_bytes >= 4 * KEPT_BYTES and not memory.held_bytes)
        greedy.arrive(b"y" * 4 * MIB, whole=False)
        with pytest.raises(Unavailable):
            await other
        honest.arrive(b'"}')
        assert (await one).payload == {"x": "y" * 2 * KEPT_BYTES}
        assert (memory.held_bytes, room.shares.held_bytes) == (0, 0)


async def test_a_body_that_trickles_is_refused() -> None:
    incoming = IncomingRequest(content_type="application/json")
    async with admitting(Shares(MIB), SpoolRoom(MIB), incoming, floor_after_s=0.01) as task:
        incoming.arrive(b'{"x": "', whole=False)
        with pytest.raises(BodyStalled):
            await task
