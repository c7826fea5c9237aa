"""The memory of verified bodies: limited together, and given back when their requests end."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.access.arriving import Arrivals
from lib.access.authenticator import Admission
from lib.access.body import BodyReader
from lib.access.body_memory import BodyMemory
from lib.access.envelope import PARSED_WHOLE_BYTES
from lib.access.open import OpenAccess
from lib.access.payload import PayloadReader
from lib.access.scanner import MAX_VALUES
from lib.access.spool import SpoolRoom
from lib.data_types import UNSIGNED_AUTH_DATA, AuthData
from lib.errors import BodyTooLarge, NoMemory, Refused
from lib.http.heads import parse_request
from lib.request.incoming import DirectRequest, free_body_memory
from lib.request.incoming import IncomingRequest as AnyRequest
from lib.request.sessions import Sessions
from lib.runtime.clock import SystemClock
from tests.fakes.incoming_request import IncomingRequest
from tests.guard import GUARD_S

KIB, MIB = 1024, 1024 * 1024
JSON = "application/json"
SMALL = PARSED_WHOLE_BYTES


def direct_request() -> DirectRequest:
    return DirectRequest(cast(Any, None), parse_request(b"POST / HTTP/1.1\r\nHost: a\r\n\r\n"))


def end(request: AnyRequest) -> None:
    if isinstance(request, DirectRequest):
        request.end()
    else:
        free_body_memory(request)


def admission(payload: dict[str, Any] | None = None) -> Admission:
    return Admission(AuthData.from_json_msg(UNSIGNED_AUTH_DATA), {}, payload)


async def test_one_body_of_the_largest_size_always_has_enough() -> None:
    memory = BodyMemory(1, MIB)
    request = direct_request()
    memory.keep(request, MIB, MAX_VALUES)
    with pytest.raises(NoMemory) as refused:
        memory.keep(direct_request(), SMALL + 1)
    assert refused.value.status == 503
    assert refused.value.headers() == {"Retry-After": "1"}
    assert refused.value.body()["state"] == "busy"
    end(request)
    memory.keep(direct_request(), MIB, MAX_VALUES)


async def test_a_small_body_is_not_counted() -> None:
    memory = BodyMemory(1, SMALL)
    for request in (direct_request(), IncomingRequest().request):
        memory.keep(request, SMALL, SMALL)
    assert memory.shares.held_bytes == 0


Step = tuple[int, int, int, bool]
STEPS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 4 * SMALL), st.integers(0, 2000), st.booleans()), max_size=40
)


@given(STEPS)
def test_in_any_order_it_holds_what_is_not_ended(steps: Sequence[Step]) -> None:
    """Requests 0 to 2 are direct, 3 to 5 aiohttp's; each grows, ends and begins anew."""

    async def example() -> None:
        memory = BodyMemory(20 * SMALL, SMALL)
        requests: list[AnyRequest] = [direct_request() for _ in range(3)]
        requests += [IncomingRequest().request for _ in range(3)]
        held = [0] * len(requests)
        for number, size_bytes, values, ends in steps:
            needed = 2 * size_bytes + 200 * values if size_bytes > SMALL else 0
            more = max(0, needed - held[number])
            try:
                memory.keep(requests[number], size_bytes, values)
                held[number] += more
            except NoMemory:
                assert sum(held) + more > memory.shares.limit_bytes
            if ends:
                end(requests[number])
                end(requests[number])
                held[number] = 0
            assert memory.shares.held_bytes == sum(held) <= memory.shares.limit_bytes
        for request in requests:
            end(request)
        assert memory.shares.held_bytes == 0

    asyncio.run(example())


def reader(limit_bytes: int, max_bytes: int = 256 * KIB) -> BodyReader:
    return BodyReader(max_bytes, GUARD_S, verified=BodyMemory(limit_bytes, max_bytes))


def payloads(bodies: BodyReader) -> PayloadReader:
    return PayloadReader(bodies, bodies, SpoolRoom(MIB))


@pytest.mark.parametrize("coding", [None, "gzip"])
async def test_a_payload_is_counted_with_its_values_until_its_request_ends(coding: str | None) -> None:
    bodies, content = reader(1), {"x": [1] * SMALL}
    body = json.dumps(content).encode()
    sent = body if coding is None else gzip.compress(body)
    incoming = IncomingRequest(coding, content_type=JSON)
    incoming.arrive(sent)
    assert await payloads(bodies).read_json(incoming.request, admission()) == content
    assert bodies.verified.shares.held_bytes == 2 * len(body) + 200 * (SMALL + 1)
    free_body_memory(incoming.request)
    assert bodies.verified.shares.held_bytes == 0


@pytest.mark.parametrize("length", [None, 200 * KIB])
async def test_a_body_is_refused_before_the_rest_is_read(length: int | None) -> None:
    """One without a length as soon as too much has come, one with a length when its first part has come."""
    bodies = reader(1)
    room = bodies.verified.shares.limit_bytes - 2 * 100 * KIB
    assert bodies.verified.shares.reserve(room)
    incoming = IncomingRequest(length=length, content_type=JSON)
    incoming.arrive(b" " * (101 * KIB if length is None else 1), whole=False)
    with pytest.raises(NoMemory):
        await payloads(bodies).read_json(incoming.request, admission())
    free_body_memory(incoming.request)
    assert bodies.verified.shares.held_bytes == room


async def test_a_length_beyond_the_limit_of_one_body_is_a_413() -> None:
    bodies = reader(1)
    incoming = IncomingRequest(length=2**40, content_type=JSON)
    with pytest.raises(BodyTooLarge):
        await payloads(bodies).read_json(incoming.arrive(b"x", whole=False), admission())
    assert bodies.verified.shares.held_bytes == 0


@pytest.mark.parametrize("parts", [1, 20])
async def test_without_an_engine_a_whole_body_is_counted_or_refused(parts: int) -> None:
    bodies, content = reader(1), {"x": [1] * SMALL}
    body = json.dumps(content).encode()
    door = OpenAccess(Arrivals(bodies, SpoolRoom(MIB)), Sessions(None, SystemClock()))

    async def admitted() -> tuple[AnyRequest, Admission]:
        incoming = IncomingRequest(content_type=JSON)
        step = len(body) // parts + 1
        incoming.arrive(*(body[i : i + step] for i in range(0, len(body), step)))
        return incoming.request, await door.admit(incoming.request)

    first, admission_ = await admitted()
    assert admission_.payload == content
    needed = 2 * len(body) + 200 * (SMALL + 1)
    assert bodies.verified.shares.held_bytes == needed
    assert bodies.verified.shares.reserve(bodies.verified.shares.limit_bytes - needed)
    second, refused = await admitted()
    assert (refused.payload, type(refused.failure)) == (None, NoMemory)
    with pytest.raises(Refused):
        await payloads(bodies).read_json(second, refused)
    before = bodies.verified.shares.held_bytes
    end(second)
    end(first)
    assert bodies.verified.shares.held_bytes == before - needed
