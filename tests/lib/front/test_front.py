"""lib.front.front: the limits of all connections of a port together, and its end."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import tracemalloc
from contextlib import AsyncExitStack

import anyio
import pytest

from lib.front.connection import MAX_HEAD_BYTES, FrontConnection
from lib.front.front import CONNECTION_BYTES, LINGER_LIMIT_S, MAX_HEADS, MAX_REFUSED
from lib.http.shares import Shares
from lib.request.incoming import REQUEST_BYTES
from tests.event_loop import run_event_loop_turns, until
from tests.fakes.front_server import front_server
from tests.fakes.raw_client import RawClient, connected
from tests.guard import GUARD_S
from tests.lib.front.test_connection import both_carriers, chunked, post

HALF = b"POST /direct/echo HTTP/1.1\r\n"


async def from_address(stack: AsyncExitStack, port: int, address: str) -> RawClient:
    """A client that connects from `address`, one of the loopback network's."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    stack.callback(writer.transport.abort)
    return RawClient(reader, writer)


async def closed(clients: list[RawClient]) -> list[int]:
    """The positions of the closed ones among `clients`."""
    await run_event_loop_turns()
    positions: list[int] = []
    for position, client in enumerate(clients):
        try:
            with anyio.fail_after(0):
                await client.exactly(1)
        except asyncio.IncompleteReadError:
            positions.append(position)
        except TimeoutError:
            pass
    return positions


# Numbers of connections


async def test_the_connection_that_was_idle_longest_makes_room_for_a_new_one() -> None:
    async with front_server(max_waiting=3) as server, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(server.url)) for _ in range(3)]
        await clients[0].send(post("/direct/echo", b"a"))  # it is idle anew
        await clients[0].answer()
        clients.append(await stack.enter_async_context(connected(server.url)))
        assert await closed(clients) == [1]
        clients.append(await stack.enter_async_context(connected(server.url)))
        assert await closed(clients) == [1, 2]


@both_carriers
async def test_beyond_the_limit_idle_connections_and_half_heads_make_room_and_requests_do_not(
    carrier: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with front_server(max_connections=3) as server, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(server.url)) for _ in range(3)]
        await clients[0].send(HALF)
        await clients[1].send(post(f"{carrier}/held", b"a"))
        await server.until(lambda: len(server.begun) == 1)
        clients.append(await stack.enter_async_context(connected(server.url)))
        assert await closed(clients) == [2]  # it was idle
        await clients[3].send(post(f"{carrier}/held", b"b"))
        await server.until(lambda: len(server.begun) == 2)
        clients.append(await stack.enter_async_context(connected(server.url)))
        assert await closed(clients) == [0, 2]  # it had half a head
        await clients[4].send(post(f"{carrier}/held", b"c"))
        await server.until(lambda: len(server.begun) == 3)

        refused = [await stack.enter_async_context(connected(server.url)) for _ in range(MAX_REFUSED)]
        for client in refused:
            head, body = await client.answer()
            assert (head.status, head.headers["retry-after"]) == (503, "1")
            assert json.loads(body)["state"] == "no files"
        more = await stack.enter_async_context(connected(server.url))
        assert await more.rest() == b""  # one more would not be kept for a moment either
        told = [r for r in caplog.records if r.levelname == "WARNING"]
        assert [r.getMessage()[:24] for r in told] == ["3 connections are in use"]

        server.release()
        for client, body in ((clients[1], b"a"), (clients[3], b"b"), (clients[4], b"c")):
            assert (await client.answer())[1] == body
        clients.append(await stack.enter_async_context(connected(server.url)))
        await clients[-1].send(post(f"{carrier}/echo", b"d"))
        assert (await clients[-1].answer())[1] == b"d"


async def test_many_connections_at_once_do_not_pass_the_limit() -> None:
    async with front_server(max_waiting=3) as server, AsyncExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(40)]
        for each in sockets:  # the event loop doesn't run meanwhile
            each.connect(("127.0.0.1", server.port))
        await run_event_loop_turns(100)
        still_open = 0
        for each in sockets:
            each.setblocking(False)
            try:
                assert each.recv(1) == b""
            except BlockingIOError:
                still_open += 1
        assert still_open == 3


async def test_strangers_of_one_address_make_room_for_others() -> None:
    shares = Shares(4 * CONNECTION_BYTES)
    async with front_server(shares=shares) as server, AsyncExitStack() as stack:
        greedy = [await from_address(stack, server.port, "127.0.0.66") for _ in range(3)]
        other = await from_address(stack, server.port, "127.0.0.7")
        assert await closed([*greedy, other]) == []  # nobody is limited before the budget is used up
        another = await from_address(stack, server.port, "127.0.0.8")
        await until(lambda: shares.evicted == 1)
        assert await closed([*greedy, other, another]) == [0]
        for client in (other, another):
            await client.send(post("/direct/echo", b"a"))
            assert (await client.answer())[0].status == 200


async def test_strangers_make_room_when_descriptors_become_few() -> None:
    async with front_server(max_connections=3) as server, AsyncExitStack() as stack:
        greedy = [await from_address(stack, server.port, "127.0.0.66") for _ in range(3)]
        other = await from_address(stack, server.port, "127.0.0.7")
        assert await closed([*greedy, other]) == [0]


async def test_a_half_body_that_gives_way_is_a_503() -> None:
    shares = Shares(REQUEST_BYTES + 4 * CONNECTION_BYTES)
    async with front_server(shares=shares) as server, AsyncExitStack() as stack:
        greedy = await from_address(stack, server.port, "127.0.0.66")
        await greedy.send(post("/direct/echo", bytes(100_000))[:-1000])
        await server.until(lambda: server.begun)
        clients = [await from_address(stack, server.port, f"127.0.0.{n}") for n in range(2, 6)]
        head, _ = await greedy.answer()
        assert (head.status, head.headers["connection"]) == (503, "close")
        assert shares.evicted == 1
        assert await closed(clients) == []


async def test_a_half_head_that_gives_way_is_closed() -> None:
    shares = Shares(MAX_HEAD_BYTES + 2 * CONNECTION_BYTES)
    async with front_server(shares=shares) as server, AsyncExitStack() as stack:
        greedy = await from_address(stack, server.port, "127.0.0.66")
        await greedy.send(HALF)
        await until(lambda: shares.held_bytes > MAX_HEAD_BYTES)
        clients = [await from_address(stack, server.port, f"127.0.0.{n}") for n in range(2, 4)]
        assert await greedy.rest() == b""
        assert await closed(clients) == []
        assert shares.held_bytes == 2 * CONNECTION_BYTES


async def test_all_that_a_request_holds_is_given_back() -> None:
    shares = Shares(2**20)
    async with front_server(shares=shares) as server, connected(server.url) as client:
        for _ in range(2):
            body = bytes(100_000)
            await client.send(HALF)
            await until(lambda: shares.held_bytes > MAX_HEAD_BYTES)
            await client.send(post("/direct/echo", body)[len(HALF) :][:-1])
            await client.send(body[-1:])
            assert (await client.answer())[1] == body
            await until(lambda: shares.held_bytes == CONNECTION_BYTES)
    assert shares.held_bytes == 0


@pytest.mark.parametrize("path", ["/direct/echo", "/http/echo"])
async def test_a_client_that_reads_none_of_its_answers_gets_no_more_of_them(path: str) -> None:
    """Requests are pipelined, and their answers are not read: they must not pile up in memory."""
    async with front_server() as server, AsyncExitStack() as stack:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        stack.callback(writer.transport.abort)
        request = post(path, bytes(16_000))
        served = 0
        for _ in range(3000):  # 48 MB
            writer.write(request)
            await run_event_loop_turns(20)
            if writer.transport.get_write_buffer_size() > 2**20 and served == len(server.ended):
                break
            served = len(server.ended)
        assert len(server.ended) < 2500
        assert reader is not None


async def test_connections_with_half_a_head_stay_where_idle_ones_can_go() -> None:
    async with front_server(max_waiting=3, max_heads=2) as server, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(server.url)) for _ in range(3)]
        await clients[0].send(HALF)
        await run_event_loop_turns()
        clients.append(await stack.enter_async_context(connected(server.url)))
        assert await closed(clients) == [1]


async def test_the_address_with_most_half_heads_loses_its_oldest() -> None:
    async with front_server(max_heads=4) as server, AsyncExitStack() as stack:
        clients: list[RawClient] = []
        for address in ("127.0.0.2", "127.0.0.3", "127.0.0.3", "127.0.0.4", "127.0.0.5"):
            clients.append(await from_address(stack, server.port, address))
            await clients[-1].send(HALF)
            await run_event_loop_turns()
        assert await closed(clients) == [1]
        for client in (clients[0], clients[4]):
            await client.send(b"Host: w\r\nContent-Length: 0\r\n\r\n")
            assert (await client.answer())[0].status == 200


@both_carriers
async def test_connections_with_a_request_are_not_counted(carrier: str) -> None:
    async with front_server(max_waiting=2, max_heads=1) as server, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(server.url)) for _ in range(2)]
        for client in clients:
            await client.send(post(f"{carrier}/held", b"a"))
        await server.until(lambda: len(server.begun) == 2)
        clients += [await stack.enter_async_context(connected(server.url)) for _ in range(2)]
        assert await closed(clients) == []
        server.release()
        assert [(await client.answer())[1] for client in clients[:2]] == [b"a", b"a"]
        assert await closed(clients) == [2, 3]  # those that answered came back as idle ones


# Memory


async def test_half_heads_hold_little_memory() -> None:
    async with front_server() as server, AsyncExitStack() as stack:
        half = HALF + b"X: " + b"x" * 30_000
        gc.collect()
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        before, _ = tracemalloc.get_traced_memory()
        sockets = [stack.enter_context(socket.socket()) for _ in range(300)]
        for each in sockets:
            each.connect(("127.0.0.1", server.port))
            each.sendall(half)
            await run_event_loop_turns(4)
        await run_event_loop_turns(50)
        held, _ = tracemalloc.get_traced_memory()
        assert held - before < 300 * (len(half) + 8 * 1024)
        assert held - before > 300 * len(half)  # they have arrived
    assert MAX_HEADS * MAX_HEAD_BYTES <= 16 * 2**20


# The end


async def test_closing_ends_idle_and_half_requests_at_once_and_lets_others_finish() -> None:
    async with front_server() as server, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(server.url)) for _ in range(5)]
        idle, half, *busy, awaited = clients
        await half.send(HALF)
        for client, carrier in zip(busy, ("/direct", "/http"), strict=True):
            await client.send(post(f"{carrier}/held", b"a") + post(f"{carrier}/echo", b"pipelined"))
        await awaited.send(post("/direct/early", b"abc")[:-1])
        await server.until(lambda: len(server.begun) == 2)
        await run_event_loop_turns()
        closing = asyncio.create_task(server.front.close())
        assert await idle.rest() == b""
        assert await half.rest() == b""
        assert (await awaited.answer())[0].status == 413
        server.release()
        for client in busy:
            assert (await client.answer())[1] == b"a"
            assert await client.rest() == b""
        await awaited.send(b"c")
        await awaited.rest()
        with anyio.fail_after(GUARD_S):
            await closing
        assert "/direct/echo" not in server.begun


@both_carriers
async def test_closing_aborts_requests_that_do_not_finish(carrier: str) -> None:
    async with front_server() as server, connected(server.url) as client:
        await client.send(post(f"{carrier}/held"))
        await server.until(lambda: server.begun)
        with anyio.fail_after(GUARD_S):
            await server.front.close()
        assert await client.rest() == b""
        assert server.cancelled == [f"{carrier}/held"]


@both_carriers
async def test_nothing_is_left_after_closing(carrier: str) -> None:
    tasks_before = asyncio.all_tasks()
    async with front_server() as server, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(server.url)) for _ in range(5)]
        await clients[1].send(HALF)
        await clients[2].send(post(f"{carrier}/held", b"a"))
        await clients[3].send(post(f"{carrier}/early", b"a" * 100_000)[:-1])
        await clients[4].send(chunked(f"{carrier}/echo", b"wrong"))
        await run_event_loop_turns(50)
        server.front.abort()
        with anyio.fail_after(GUARD_S):
            await server.front.close()
        assert server.clock.pending == 0
    await until(lambda: asyncio.all_tasks() == tasks_before)
    gc.collect()
    assert [o for o in gc.get_objects() if isinstance(o, FrontConnection)] == []


async def test_a_refused_client_has_time_to_read() -> None:
    """The rest of what it sends is read and dropped; it would reset the connection otherwise."""
    async with front_server() as server, connected(server.url) as client:
        await client.send(b"\x00\r\n\r\n" + b"x" * 2**20)
        assert (await client.answer())[0].status == 400
        await client.send(b"x" * 2**20)
        assert await client.rest() == b""
        await server.clock.wait_for_timer(LINGER_LIMIT_S)
        server.clock.advance(LINGER_LIMIT_S)


async def test_a_get_that_gives_way_is_answered_and_then_closed() -> None:
    shares = Shares(CONNECTION_BYTES + 1)
    async with front_server(shares=shares) as server, connected(server.url) as client:
        await client.send(b"GET /http/echo HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.answer())[0].status == 200
        assert await client.rest() == b""
        await until(lambda: shares.held_bytes == 0)


async def test_verified_clients_give_way_after_all_strangers() -> None:
    async with front_server(max_connections=3) as server, AsyncExitStack() as stack:
        known = await stack.enter_async_context(connected(server.url))
        await known.send(post("/direct/held", b"a"))
        await server.until(lambda: len(server.begun) == 1)
        server.release()
        assert (await known.answer())[1] == b"a"
        strangers = [await stack.enter_async_context(connected(server.url)) for _ in range(2)]
        strangers.append(await stack.enter_async_context(connected(server.url)))
        assert await closed([known, *strangers]) == [1]
