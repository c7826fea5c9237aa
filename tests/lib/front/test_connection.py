"""lib.front.connection: one connection's requests, on real sockets, by both carriers."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import socket
import weakref
from contextlib import AsyncExitStack, closing

import aiohttp
import anyio
import pytest

from lib.front.connection import MAX_HEAD_BYTES, MAX_PIPELINED_BYTES, FrontConnection
from lib.front.front import BODY_AWAIT_S, HEAD_LIMIT_S, IDLE_LIMIT_S, LINGER_LIMIT_S
from tests.event_loop import run_event_loop_turns, until
from tests.fakes.front_server import FrontServer, WholeAnswer, answers_in, front_server
from tests.fakes.raw_client import RawClient, connected
from tests.guard import GUARD_S

CARRIERS = ["/direct", "/http"]
both_carriers = pytest.mark.parametrize("carrier", CARRIERS)


def post(path: str, body: bytes = b"", *fields: bytes, version: bytes = b"1.1") -> bytes:
    """A POST of `body` with its length, unless a field of `fields` is its framing."""
    framing = [] if any(f.startswith(b"Transfer") for f in fields) else [b"Content-Length: %d" % len(body)]
    lines = [b"POST %s HTTP/%s" % (path.encode(), version), b"Host: w", *framing, *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(path: str, body: bytes) -> bytes:
    """A POST with a chunked body, which `body` is as it goes over the wire."""
    return post(path, body, b"Transfer-Encoding: chunked")


async def exchanged(server: FrontServer, data: bytes) -> list[WholeAnswer]:
    """The answers to `data`, after which the client reads until the connection is closed."""
    async with connected(server.url) as client:
        await client.send(data)
        answers, behind = answers_in(await client.rest(), is_closed=True)
    assert behind == b""
    return answers


async def assert_open(client: RawClient, carrier: str = "/direct") -> None:
    """Check that the connection serves another request."""
    await client.send(post(f"{carrier}/echo", b"next"))
    assert (await client.answer())[1] == b"next"


def assert_refusal(answer: WholeAnswer, status: int) -> None:
    assert answer.status == status
    assert answer.headers["content-type"].startswith("application/json")
    assert list(json.loads(answer.body)) == ["error"]
    assert answer.headers["connection"] == "close"
    assert "date" in answer.headers


# Heads


@both_carriers
async def test_a_request_may_arrive_byte_by_byte(carrier: str) -> None:
    async with front_server() as server, connected(server.url) as client:
        for data in (
            post(f"{carrier}/echo", b"abc"),
            chunked(f"{carrier}/echo", b"2;x\r\nab\r\n1\r\nc\r\n0\r\n\r\n"),
        ):
            for byte in b"\r\n" + data:
                await client.send(bytes([byte]))
                await run_event_loop_turns(3)
            assert (await client.answer())[1] == b"abc"


async def test_a_head_of_more_than_32_kib_is_a_431() -> None:
    async with front_server() as server:
        head = post("/http/echo", b"", b"X: " + b"x" * MAX_HEAD_BYTES)
        for data in (head, head[:-4], head[:-4] + b"y" * 10_000):
            (answer,) = await exchanged(server, data)
            assert_refusal(answer, 431)
        largest = head.replace(b"x" * (len(head) - MAX_HEAD_BYTES), b"", 1)
        assert len(largest) == MAX_HEAD_BYTES
        async with connected(server.url) as client:
            for other in (
                largest,
                largest.replace(b"/http/echo HTTP/1.1\r\nHost: w", b"/direct/echo HTTP/1.1\r\nHost:"),
            ):
                await client.send(other)
                assert (await client.head()).status == 200


async def test_a_target_or_a_number_of_fields_that_only_aiohttp_would_refuse() -> None:
    async with front_server() as server, connected(server.url) as client:
        many = [b"X-%d: y" % number for number in range(1000)]
        for request in (
            post("/http/echo?" + "x" * 20_000, b"a"),
            post("/http/echo", b"a", b"X: " + b"y" * 20_000),
            post("/http/echo", b"a", *many),
        ):
            await client.send(request)
            assert (await client.answer())[1] == b"a"


async def test_a_head_that_takes_more_than_10_s_is_a_408(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lib.access")
    async with front_server() as server, connected(server.url) as client:
        await client.send(b"POST /direct/echo HTTP/1.1\r\n")
        await server.clock.wait_for_timer(HEAD_LIMIT_S)
        server.clock.advance(HEAD_LIMIT_S - 1)
        await client.send(b"Host: w\r\n")
        await run_event_loop_turns()
        server.clock.advance(1)
        (answer,), behind = answers_in(await client.rest(), is_closed=True)
        assert_refusal(answer, 408)
        assert behind == b""
    lines = [r.getMessage() for r in caplog.records]
    assert lines == ["- - - 408 refused: the request's head took longer than 10 s"]


async def test_a_refused_head_is_not_refused_again_by_its_time_limit() -> None:
    async with front_server() as server, connected(server.url) as client:
        await client.send(b"POST /direct/echo HTTP/1.1\r\n")
        await server.clock.wait_for_timer(HEAD_LIMIT_S)
        server.clock.advance(5)
        await client.send(b"no colon\r\n\r\n")
        (answer,), behind = answers_in(await client.rest(), is_closed=True)
        assert_refusal(answer, 400)
        assert behind == b""
        server.clock.advance(IDLE_LIMIT_S)


@both_carriers
async def test_a_connection_is_closed_after_75_s_without_a_request(carrier: str) -> None:
    async with front_server() as server, connected(server.url) as client:
        server.clock.advance(IDLE_LIMIT_S - 1)
        await assert_open(client, carrier)
        await run_event_loop_turns()
        server.clock.advance(IDLE_LIMIT_S - 1)
        await client.send(post(f"{carrier}/held", b"a"))
        await server.until(lambda: f"{carrier}/held" in server.begun)
        server.clock.advance(10 * IDLE_LIMIT_S)  # it is not idle
        server.release()
        assert (await client.answer())[1] == b"a"
        await run_event_loop_turns()
        server.clock.advance(IDLE_LIMIT_S)
        assert await client.rest() == b""


REFUSED = [
    (400, b"POST /direct/echo HTTP/1.1\r\nsecret colon\r\n\r\n"),
    (400, b"POST /direct/echo HTTP/1.1\r\nContent-Length: 0\r\n\r\n"),
    (400, b"POST /direct/echo HTTP/1.1\nHost: secret\n\n"),
    (400, b"\x16\x03\x01secret\r\n\r\n"),
    (400, post("/http/echo", b"", b"Content-Length: 5")),
    (400, post("/http/echo", b"", b"Host: secret")),
    (400, post("/http/echo", b"", b"Sec-WebSocket-Key1: secret")),
    (400, post("http://[secret/http/echo", b"")),
    (405, b"SECRET /http/echo HTTP/1.1\r\nHost: w\r\n\r\n"),
    (405, b"CONNECT secret:80 HTTP/1.1\r\nHost: w\r\n\r\n"),
    (417, post("/http/echo", b"", b"Expect: secret")),
    (417, post("/direct/echo", b"", b"Expect: secret")),
    (501, post("/http/echo", b"", b"Transfer-Encoding: gzip, chunked")),
    (501, post("/direct/echo", b"", b"Transfer-Encoding: gzip, chunked")),
    (501, post("/direct/echo", b"", b"Transfer-Encoding: chunked", version=b"1.0")),
]


@pytest.mark.parametrize(("status", "request_"), REFUSED)
async def test_errors_of_the_http_layer_are_json_and_echo_nothing(status: int, request_: bytes) -> None:
    async with front_server() as server:
        for before in (b"", post("/direct/echo", b"good"), post("/http/echo", b"good")):
            async with connected(server.url) as client:
                await client.send(before + request_ + b"secret")
                received = await client.rest()
            answers, behind = answers_in(received, is_closed=True)
            assert [a.body for a in answers[:-1]] == ([b"good"] if before else [])
            assert_refusal(answers[-1], status)
            assert behind == b""
            assert b"secret" not in received.lower()
        assert len(server.begun) == 2


# Several requests


@pytest.mark.parametrize("order", list(itertools.product(CARRIERS, repeat=3)))
async def test_pipelined_requests_are_answered_in_their_order(order: tuple[str, ...]) -> None:
    for is_whole in (True, False):
        async with front_server() as server, connected(server.url) as client:
            data = b"".join(
                post(f"{carrier}/held", b"%d" % n) + chunked(f"{carrier}/echo", b"2\r\n-%d\r\n0\r\n\r\n" % n)
                for n, carrier in enumerate(order)
            )
            if is_whole:
                await client.send(data)
            else:
                for position in range(0, len(data), 23):
                    await client.send(data[position : position + 23])
                    await run_event_loop_turns(2)
            await server.until(lambda: server.begun)
            server.release()
            bodies = [(await client.answer())[1] for _ in range(6)]
            assert bodies == [body for n in range(3) for body in (b"%d" % n, b"-%d" % n)]
            paths = [f"{carrier}/{name}" for carrier in order for name in ("held", "echo")]
            assert server.begun == paths


@both_carriers
async def test_a_request_is_not_begun_before_the_one_in_front_of_it_has_ended(carrier: str) -> None:
    async with front_server() as server, connected(server.url) as client:
        await client.send(post(f"{carrier}/held") + post("/direct/echo") + post("/http/echo"))
        await server.until(lambda: server.begun)
        await run_event_loop_turns(50)
        assert server.begun == [f"{carrier}/held"]


@both_carriers
async def test_pipelined_bytes_are_not_read_without_limit(carrier: str) -> None:
    async with front_server() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            writer.write(post(f"{carrier}/held", b"first"))
            await server.until(lambda: server.begun)
            count = 64 * 2**20 // MAX_PIPELINED_BYTES
            writer.write(post("/direct/echo", b"x" * MAX_PIPELINED_BYTES) * count)
            left, still = -1, 0
            while still < 300:  # turns of the event loop
                left, before = writer.transport.get_write_buffer_size(), left
                still = still + 1 if left == before else 0
                await asyncio.sleep(0)
            assert left > 32 * 2**20
            server.release()
            received = 0
            with anyio.fail_after(GUARD_S):
                while received < count * MAX_PIPELINED_BYTES:  # all are served
                    received += len(await reader.read(2**20))
        finally:
            writer.transport.abort()


@both_carriers
async def test_a_client_that_leaves_with_much_sent_ahead_is_noticed_after_its_answer(
    carrier: str,
) -> None:
    """Until then its connection is not read: its request goes on, and at most a few of the next are begun."""
    async with front_server() as server:
        with closing(socket.create_connection(("127.0.0.1", server.port))) as client:
            client.sendall(post(f"{carrier}/held", b"first"))
            await server.until(lambda: server.begun)
            client.setblocking(False)
            ahead = post(f"{carrier}/held", b"x" * 1000) * (2 * MAX_PIPELINED_BYTES // 1000)
            with anyio.fail_after(GUARD_S):
                await asyncio.get_running_loop().sock_sendall(client, ahead)
        await run_event_loop_turns(50)
        assert (server.begun, server.ended) == ([f"{carrier}/held"], [])
        server.release()
        await server.until(lambda: len(server.ended) == len(server.begun))
        gc.collect()
        await until(lambda: not any(isinstance(o, FrontConnection) for o in gc.get_objects()))
        assert len(server.begun) < 2 * MAX_PIPELINED_BYTES // 1000


@both_carriers
async def test_pipelined_requests_leave_other_clients_their_turn(carrier: str) -> None:
    async with front_server() as server, AsyncExitStack() as stack:
        many, one = (stack.enter_context(socket.socket()) for _ in range(2))
        for each in (many, one):
            each.connect(("127.0.0.1", server.port))
        await run_event_loop_turns(20)
        many.sendall(post(f"{carrier}/early") * 200 + b"\r\n")
        one.sendall(post(f"{carrier}/echo"))
        await server.until(lambda: len(server.ended) == 201)
        assert server.begun.index(f"{carrier}/echo") < 20


@both_carriers
async def test_garbage_after_a_good_request_is_a_400_after_its_answer(carrier: str) -> None:
    async with front_server() as server:
        good, bad = await exchanged(server, post(f"{carrier}/echo", b"good") + b"\x00garbage\r\n\r\n")
        assert (good.status, good.body) == (200, b"good")
        assert_refusal(bad, 400)


async def test_empty_lines_before_a_request_are_skipped() -> None:
    async with front_server() as server, connected(server.url) as client:
        for carrier in CARRIERS:
            await client.send(b"\r\n\r\n" + post(f"{carrier}/echo", b"a") + b"\r\n")
            assert (await client.answer())[1] == b"a"


# Bodies


@both_carriers
async def test_chunked_bodies(carrier: str) -> None:
    async with front_server() as server, connected(server.url) as client:
        for coded in (
            b"3\r\nabc\r\n0\r\n\r\n",
            b'1;n="v"\r\na\r\n02 ; x\r\nbc\r\n000\r\nA: b\r\n\r\n',
            b"1;\xff=\x80\r\na\r\n2\r\nbc\r\n0;z\r\n\r\n",
        ):
            await client.send(chunked(f"{carrier}/echo", coded))
            assert (await client.answer())[1] == b"abc"
        large = b"%x\r\n%s\r\n0\r\n\r\n" % (2**20, b"x" * 2**20)
        await client.send(chunked(f"{carrier}/echo", large))
        assert (await client.answer())[1] == b"x" * 2**20
        await client.send(chunked(f"{carrier}/echo", b"0\r\n\r\n"))
        assert (await client.answer())[1] == b""


@both_carriers
@pytest.mark.parametrize("bad", [b"x\r\n", b"zz", b"1\r\nabc", b"1\nabc", b"0\r\nbad trailer\r\n"])
async def test_a_malformed_chunk_is_a_400_at_once(carrier: str, bad: bytes) -> None:
    async with front_server() as server:
        for coded in (bad, b"2\r\nab\r\n" + bad):
            (answer,) = await exchanged(server, chunked(f"{carrier}/echo", coded))
            assert answer.status == 400
            assert answer.headers["connection"] == "close"
            async with connected(server.url) as client:
                begun = len(server.begun)
                await client.send(chunked(f"{carrier}/echo", b""))
                await server.until(lambda: len(server.begun) > begun)  # noqa: B023
                await client.send(coded + b"0")
                (answer,), behind = answers_in(await client.rest(), is_closed=True)
                assert (answer.status, behind) == (400, b"")


async def test_a_malformed_chunk_cuts_an_answer_of_aiohttps_that_has_begun() -> None:
    async with front_server() as server, connected(server.url) as client:
        await client.send(chunked("/http/begun", b"1\r\na\r\n"))
        assert (await client.head()).status == 200
        assert await client.chunk() == b"a"
        await client.send(b"wrong\r\n")
        assert await client.rest() == b""
        assert server.cancelled == ["/http/begun"]


@both_carriers
async def test_a_malformed_rest_of_a_body_is_not_answered_twice(carrier: str) -> None:
    async with front_server() as server, connected(server.url) as client:
        await client.send(chunked(f"{carrier}/early", b"5\r\n"))
        assert (await client.answer())[0].status == 413
        await client.send(b"abcdexx" + post("/direct/echo"))
        assert await client.rest() == b""
        assert server.begun == [f"{carrier}/early"]


@both_carriers
async def test_expect_100_continue(carrier: str) -> None:
    async with front_server() as server, connected(server.url) as client:
        whole = post(f"{carrier}/echo", b"abc", b"EXPECT: 100-continue", b"X: y")
        await client.send(whole[:-3])
        assert (await client.head()).status == 100
        await client.send(b"abc")
        assert (await client.answer())[1] == b"abc"
        await assert_open(client, carrier)


@both_carriers
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_an_early_answer_keeps_the_connection_if_the_client_sends_the_rest(
    carrier: str, framing: str
) -> None:
    body = b"x" * 2**20  # more than is buffered of it
    async with front_server() as server, connected(server.url) as client:
        if framing == "length":
            whole = post(f"{carrier}/early", body)
        else:
            whole = chunked(f"{carrier}/early", b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        await client.send(whole[: len(whole) // 2])
        assert (await client.answer())[0].status == 413
        await client.send(whole[len(whole) // 2 :])
        await assert_open(client, carrier)
        for other in CARRIERS:  # all at once
            await client.send(whole + post(f"{other}/echo", b"next"))
            assert (await client.answer())[0].status == 413
            assert (await client.answer())[1] == b"next"


@both_carriers
async def test_an_unread_body_does_not_stop_the_connection(carrier: str) -> None:
    """A body whose reader never reads pauses the connection; the next request must be read all the same."""
    async with front_server() as server, connected(server.url) as client:
        await client.send(post(f"{carrier}/held", b"x" * 2**20)[:-1])
        await server.until(lambda: server.begun)
        await run_event_loop_turns(50)
        await client.send(b"x")
        server.release()
        assert len((await client.answer())[1]) == 2**20
        await assert_open(client)
        await assert_open(client, "/http")


async def test_a_client_that_does_not_send_the_rest_is_closed_after_its_early_answer() -> None:
    async with front_server() as server, connected(server.url) as client:
        await client.send(post("/direct/early", b"x" * 100_000)[:-1])
        assert (await client.answer())[0].status == 413
        await server.clock.wait_for_timer(LINGER_LIMIT_S)
        server.clock.advance(LINGER_LIMIT_S)
        assert await client.rest() == b""


async def test_a_short_body_is_awaited_for_a_while() -> None:
    async with front_server() as server, connected(server.url) as client:
        await client.send(post("/direct/early", b"abc")[:-1])
        await server.clock.wait_for_timer(BODY_AWAIT_S)
        assert server.begun == []
        server.clock.advance(BODY_AWAIT_S)
        assert (await client.answer())[0].status == 413
        await client.send(b"c")
        await assert_open(client)


# The end of a connection


@both_carriers
async def test_connection_close_and_http_1_0(carrier: str) -> None:
    async with front_server() as server:
        for request_ in (
            post(f"{carrier}/echo", b"a", b"Connection: close"),
            post(f"{carrier}/echo", b"a", version=b"1.0"),
            post(f"{carrier}/echo", b"", b"Connection: close"),
        ):
            (answer,) = await exchanged(server, request_ + post(f"{carrier}/echo", b"not served"))
            assert answer.status == 200
            assert answer.headers.get("connection") == "close" or b"1.0" in request_
        assert len(server.begun) == 3
        async with connected(server.url) as client:
            for _ in range(2):
                await client.send(post(f"{carrier}/echo", b"a", b"Connection: keep-alive", version=b"1.0"))
                assert (await client.answer())[1] == b"a"


async def test_bytes_behind_a_request_that_closes_do_not_reset_the_connection() -> None:
    async with front_server() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            writer.write(post("/direct/echo", b"a" * 50_000, b"Connection: close") + b"x" * 200_000)
            await server.until(lambda: server.ended)
            writer.write(b"x" * 200_000)
            with anyio.fail_after(GUARD_S):
                received = await reader.read()  # raises ConnectionResetError
            assert received.endswith(b"a" * 50_000)
        finally:
            writer.transport.abort()


@both_carriers
async def test_nothing_is_served_behind_a_request_that_closes(carrier: str) -> None:
    async with front_server() as server, connected(server.url) as client:
        await client.send(post(f"{carrier}/early", b"x" * 100, b"Connection: close")[:-1])
        if carrier == "/direct":
            await server.clock.wait_for_timer(BODY_AWAIT_S)
            server.clock.advance(BODY_AWAIT_S)
        assert (await client.answer())[0].status == 413
        await client.send(b"x" + post("/direct/echo") + post("/http/echo"))
        assert await client.rest() == b""
        assert server.begun == [f"{carrier}/early"]


@both_carriers
async def test_a_get_without_a_body_closes_if_it_asks_for_it(carrier: str) -> None:
    async with front_server() as server:
        head = b"GET /http/echo HTTP/1.%d\r\nHost: w\r\nConnection: %s\r\n\r\n"
        assert len(await exchanged(server, head % (1, b"close"))) == 1
        async with connected(server.url) as client:
            for _ in range(2):
                await client.send(head % (0, b"keep-alive"))
                assert (await client.head()).status == 200


@both_carriers
@pytest.mark.parametrize("leaves", ["half_close", "leave"])
@pytest.mark.parametrize("when", ["body", "work", "answer"])
async def test_a_client_that_leaves_cancels_its_request(carrier: str, leaves: str, when: str) -> None:
    async with front_server() as server, connected(server.url) as client:
        path = f"{carrier}/{ {'body': 'echo', 'work': 'held', 'answer': 'flood'}[when] }"
        whole = post(path, b"x" * 70_000)
        await client.send(whole[:-1] if when == "body" else whole)
        await server.until(lambda: server.begun)
        if when == "answer":
            assert (await client.head()).status == 200
        getattr(client, leaves)()
        if when == "answer" and leaves == "half_close":
            await client.rest()  # what was sent before is delivered
        await server.until(lambda: server.ended)
        if when == "work":  # otherwise reading or writing may have failed before
            assert server.cancelled == [path]


@both_carriers
async def test_a_client_that_reads_nothing_is_dropped(carrier: str) -> None:
    async with front_server() as server, connected(server.url, limit=1024) as client:
        await client.send(post(f"{carrier}/flood"))
        await server.until(lambda: server.begun)
        await stuck(server)
        for _ in range(6):
            server.clock.advance(15.0)
            await run_event_loop_turns()
        await server.until(lambda: server.cancelled == [f"{carrier}/flood"])


@both_carriers
async def test_a_slow_reader_that_makes_progress_is_not_dropped(carrier: str) -> None:
    async with front_server() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(post(f"{carrier}/flood"))
        await server.until(lambda: server.begun)
        try:
            for _ in range(12):
                await stuck(server)
                server.clock.advance(45.0)
                with anyio.fail_after(GUARD_S):
                    await reader.readexactly(2 * 2**20)
                await stuck(server)
            assert server.cancelled == []
        finally:
            writer.transport.abort()
        await server.until(lambda: server.cancelled)


async def stuck(server: FrontServer) -> None:
    """Return once the flood is blocked: turns of the event loop send nothing more."""
    flooded, still = -1, 0
    while still < 50:
        still = still + 1 if server.flooded_bytes == flooded and flooded > 0 else 0
        flooded = server.flooded_bytes
        await asyncio.sleep(0)


# Upgrades


async def test_a_websocket_works_and_has_no_limit_of_idleness() -> None:
    async with front_server() as server, aiohttp.ClientSession() as http:
        async with http.ws_connect(f"{server.url}/http/socket") as socket:
            await socket.send_str("a")
            assert await socket.receive_str(timeout=GUARD_S) == "a!"
            server.clock.advance(10 * IDLE_LIMIT_S)
            await run_event_loop_turns()
            await socket.send_str("b" * 100_000)
            assert await socket.receive_str(timeout=GUARD_S) == "b" * 100_000 + "!"
        await server.until(lambda: server.ended == ["/http/socket"])


UPGRADE = (
    b"Connection: Upgrade",
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==",
    b"Sec-WebSocket-Version: 13",
)
HELLO = b"\x81\x82\x00\x00\x00\x00hi"


async def test_frames_behind_the_request_for_a_websocket_are_read() -> None:
    async with front_server() as server, connected(server.url) as client:
        head = post("/http/socket", b"", *UPGRADE, b"Upgrade: websocket").replace(b"POST", b"GET")
        await client.send(head + HELLO)
        assert (await client.head()).status == 101
        assert await client.exactly(5) == b"\x81\x03hi!"


@both_carriers
@pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
@pytest.mark.parametrize("body", [b"", b"abc"])
async def test_an_upgrade_that_is_not_accepted_changes_nothing(
    carrier: str, protocol: bytes, body: bytes
) -> None:
    """The front reads the rest as requests, one at a time."""
    async with front_server() as server, connected(server.url) as client:
        first = post(f"{carrier}/held", body, *UPGRADE, b"Upgrade: " + protocol)
        await client.send(first + post("/direct/echo", b"1") + post("/http/echo", b"2"))
        await server.until(lambda: server.begun)
        await run_event_loop_turns(50)
        assert server.begun == [f"{carrier}/held"]
        server.release()
        assert [(await client.answer())[1] for _ in range(3)] == [body, b"1", b"2"]


# Afterwards


@both_carriers
async def test_nothing_is_left_of_a_connection(carrier: str) -> None:
    async with front_server() as server:
        for path in ("echo", "early", "held", "begun"):
            async with connected(server.url) as client:
                begun = len(server.begun)
                await client.send(post(f"{carrier}/{path}", b"x" * 100_000))
                await server.until(lambda: len(server.begun) > begun)  # noqa: B023
        async with connected(server.url) as client:
            await client.send(chunked(f"{carrier}/echo", b"wrong"))
            await client.rest()
        async with connected(server.url) as client:
            await client.send(b"POST /half")
            await run_event_loop_turns()
        await until(lambda: len(server.ended) == len(server.begun))
        await run_event_loop_turns(50)
        gc.collect()
        left = [weakref.ref(o) for o in gc.get_objects() if isinstance(o, FrontConnection)]
        assert left == []
