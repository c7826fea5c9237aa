"""Mutated requests: whatever a client sends, it gets HTTP, and the same however its bytes are cut."""

from __future__ import annotations

import asyncio

import anyio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.endurance.fuzz_front import PIECES, Change, changed, cut, valid_requests
from tests.event_loop import run_event_loop_turns
from tests.fakes.front_server import FrontServer, WholeAnswer, answers_in, front_server
from tests.guard import GUARD_S

POSITIONS = st.floats(0.0, 1.0)
CHANGES = st.builds(
    Change, POSITIONS, st.sampled_from([0, 1, 2, 10]), st.sampled_from(PIECES) | st.binary(max_size=2)
)


def streams(*paths: str) -> st.SearchStrategy[bytes]:
    """A few requests to `paths`, changed."""
    requests = st.sampled_from(valid_requests(paths, b"0123456789"))
    return st.builds(
        changed, st.lists(requests, min_size=1, max_size=3).map(b"".join), st.lists(CHANGES, max_size=3)
    )


class Collector(asyncio.Protocol):
    """A client that keeps what it has received, also if its connection is reset then."""

    def __init__(self) -> None:
        self.received = b""
        self.lost = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.received += data

    def eof_received(self) -> None:
        self.lost.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


async def answered(server: FrontServer, parts: list[bytes]) -> list[WholeAnswer]:
    """The answers to what `parts` are together; then the client closes its half, and the server all."""
    transport, client = await asyncio.get_running_loop().create_connection(
        Collector, "127.0.0.1", server.port
    )
    for part in parts:
        if not transport.is_closing():
            transport.write(part)
        await run_event_loop_turns(3)
    begun, still = -1, 0
    while still < 20:  # turns of the event loop in which no request has begun or ended
        still = still + 1 if begun == (begun := len(server.begun) + len(server.ended)) else 0
        await asyncio.sleep(0)
    if not transport.is_closing():
        transport.write_eof()
    with anyio.fail_after(GUARD_S):
        await client.lost.wait()
    transport.abort()
    answers, behind = answers_in(client.received, is_closed=True)
    assert behind == b""
    return answers


@settings(max_examples=200)
@given(streams("/direct/echo", "/http/echo"), st.lists(POSITIONS, max_size=5))
async def test_mutated_requests_get_the_same_answers_in_any_parts(
    stream: bytes, positions: list[float]
) -> None:
    async with front_server() as server:
        whole = await answered(server, [stream])
        in_parts = await answered(server, list(cut(stream, positions)))
    assert [(a.status, a.body) for a in in_parts] == [(a.status, a.body) for a in whole]
    for answer in whole:
        is_json = answer.headers.get("content-type", "").startswith("application/json")
        assert answer.status == 200 or is_json


# Its second request is answered, and found to be broken before the end of that answer was noted.
BROKEN_AFTER_ITS_ANSWER = (
    b"GET /direct/early?a=b HTTP/1.1\r\nHost: w\r\nAccept: */*\r\n\r\n"
    b"POST /http/early HTTP/1.1\r\nHost: w\r\nContent-Type: application/json\r\nX-Request-Id: a\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n5;x\r\n0\r\n1234\r\n5\r\n56789\r\n0\r\nA: b\r\n\r\n"
    b"POST /direct/early HTTP/1.1\r\nHost: w\r\nContent-Type: application/json\r\nX-Request-Id: a\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n5;x\r\n01234\r\n5\r\n56789\r\n0\r\nA: b\r\n\r\n"
)


@settings(max_examples=200)
@example(BROKEN_AFTER_ITS_ANSWER, [0.5])
@given(streams("/direct/early", "/http/early", "/direct/echo"), st.lists(POSITIONS, max_size=5))
async def test_mutated_requests_that_are_answered_early_get_http(
    stream: bytes, positions: list[float]
) -> None:
    async with front_server() as server:
        await answered(server, list(cut(stream, positions)))
