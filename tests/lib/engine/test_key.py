"""The engine's public key: fetched from any address that has it, and again after a rotation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import anyio
import pytest
from aiohttp import web

from lib.engine.key import (
    LAST_RETRY_S,
    LOOK_AGAIN_S,
    MAX_KEY_BYTES,
    REFETCH_INTERVAL_S,
    REFETCH_LIMIT_S,
    EngineKey,
)
from lib.runtime.settings import STATUS_ONLY_ADDR, Settings
from tests.event_loop import run_event_loop_turns, until
from tests.manual_clock import ManualClock

PEM = "-----BEGIN PUBLIC KEY-----\nabc\n-----END PUBLIC KEY-----\n"


def _set_event() -> anyio.Event:
    event = anyio.Event()
    event.set()
    return event


@dataclass
class KeyServer:
    """Answers `/pubkey/` with each of `answers` in turn, then with the last one; counts requests."""

    answers: Sequence[Callable[[web.Request], web.StreamResponse | None]]
    url: str = ""
    requests: int = 0
    requested: anyio.Event = field(default_factory=anyio.Event)
    held: anyio.Event = field(default_factory=_set_event)

    async def pubkey(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        self.requested.set()
        self.requested = anyio.Event()
        await self.held.wait()
        answer = self.answers[min(self.requests, len(self.answers)) - 1](request)
        if answer is None:
            await anyio.sleep_forever()
        assert answer is not None
        return answer


def text(body: str | bytes, status: int = 200) -> Callable[[web.Request], web.StreamResponse]:
    return lambda request: web.Response(body=body, status=status)


def nothing(request: web.Request) -> None:
    return None


class Dripping(web.StreamResponse):
    """The key, one byte at a time."""

    async def write_eof(self, data: bytes = b"") -> None:
        for byte in PEM.encode():
            await self.write(bytes([byte]))
            await anyio.lowlevel.checkpoint()
        await super().write_eof(data)


@dataclass
class RunningKey:
    http: aiohttp.ClientSession
    key: EngineKey
    use: Callable[[str], None]
    clock: ManualClock
    found: list[str]


@asynccontextmanager
async def running_key(*servers: KeyServer) -> AsyncGenerator[RunningKey, None]:
    """Run the servers, and a key that is fetched from them in their order."""
    clock, found = ManualClock(), list[str]()

    def use(pem: str) -> None:
        if not pem.startswith("-----BEGIN"):
            raise ValueError("not a key")
        found.append(pem)

    runners: list[web.AppRunner] = []
    async with aiohttp.ClientSession() as http:
        try:
            for server in servers:
                app = web.Application()
                app.router.add_get("/pubkey/", server.pubkey)
                runners.append(runner := web.AppRunner(app, access_log=None, handler_cancellation=True))
                await runner.setup()
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            key = EngineKey(http, [s.url for s in servers], clock)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(key.refetch_on_request, use)
                yield RunningKey(http, key, use, clock, found)
                tasks.cancel_scope.cancel()
        finally:
            for runner in runners:
                await runner.cleanup()


@pytest.mark.parametrize(
    "bad",
    [
        text("no", 500),
        text(PEM.replace("abc", "of an error"), 500),
        text("<html>not a key</html>"),
        text(b"\xff\xfe"),
        text("-----BEGIN" + "x" * MAX_KEY_BYTES),
    ],
)
async def test_the_next_address_is_tried(bad: Callable[[web.Request], web.StreamResponse]) -> None:
    first, second = KeyServer([bad]), KeyServer([text(PEM)])
    async with running_key(first, second) as running:
        await running.key.fetch(running.use)
    assert running.found == [PEM]


async def test_it_is_fetched_with_retries() -> None:
    server = KeyServer([text("no", 503)] * 5 + [text(PEM)])
    async with running_key(server) as running, anyio.create_task_group() as tasks:
        tasks.start_soon(running.key.fetch, running.use)
        for tries in range(1, 6):
            await running.clock.wait_for_timer(LAST_RETRY_S)
            assert server.requests == tries
            running.clock.advance(LAST_RETRY_S)
    assert running.found == [PEM]


async def test_retries_have_growing_delays() -> None:
    server = KeyServer([text("no", 503)])
    async with running_key(server) as running, anyio.create_task_group() as tasks:
        tasks.start_soon(running.key.fetch, running.use)
        for tries, most_s in enumerate((0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0), start=1):
            await running.clock.wait_for_timer(LAST_RETRY_S)
            running.clock.advance(most_s / 2 - 0.01)
            assert (server.requests, running.clock.pending) == (tries, 1)
            running.clock.advance(most_s / 2 + 0.01)
        tasks.cancel_scope.cancel()


async def test_the_key_is_followed_through_a_rotation() -> None:
    rotated = PEM.replace("abc", "def")
    server = KeyServer([text("no", 503), text(PEM), text(rotated)])
    async with running_key(server) as running, anyio.create_task_group() as tasks:
        key = EngineKey(running.http, [server.url], running.clock)
        tasks.start_soon(key.follow, running.use)
        await running.clock.wait_for_timer(LAST_RETRY_S)
        running.clock.advance(LAST_RETRY_S)
        await key.refetch()
        tasks.cancel_scope.cancel()
    assert running.found == [PEM, rotated]


async def test_a_key_of_the_greatest_size_is_accepted() -> None:
    largest = PEM + " " * (MAX_KEY_BYTES - len(PEM))
    async with running_key(KeyServer([text(largest)])) as running:
        await running.key.fetch(running.use)
    assert running.found == [largest]


async def test_a_key_may_arrive_byte_by_byte() -> None:
    server = KeyServer([lambda request: Dripping()])
    async with running_key(server) as running:
        await running.key.fetch(running.use)
    assert (running.found, server.requests) == ([PEM], 1)


async def test_a_rotated_key_is_fetched_once_a_minute_at_most() -> None:
    server = KeyServer([text(PEM)])
    async with running_key(server) as running:
        await running.key.fetch(running.use)
        for expected in (2, 3):
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(running.key.refetch)
            assert server.requests == expected
            running.clock.advance(REFETCH_INTERVAL_S - 0.01)
            await running.key.refetch()
            assert server.requests == expected
            running.clock.advance(0.01)


@pytest.mark.parametrize(("after_s", "is_fetched"), [(-0.01, False), (0.0, True), (0.01, True)])
async def test_a_minute_after_a_fetch_a_request_waits_for_the_next(after_s: float, is_fetched: bool) -> None:
    server = KeyServer([text(PEM)])
    async with running_key(server) as running:
        await running.key.refetch()
        running.clock.advance(REFETCH_INTERVAL_S + after_s)
        await running.key.refetch()
        assert server.requests == 1 + is_fetched


async def test_a_fetch_for_a_stranger_does_not_delay_the_next_by_a_minute() -> None:
    server = KeyServer([text(PEM)])
    async with running_key(server) as running:
        await running.key.refetch()  # a stranger's, shortly before the rotation
        for requests in (1, 2):
            for _ in range(100):
                await running.key.refetch()
            running.clock.advance(LOOK_AGAIN_S - 0.01)
            await run_event_loop_turns()
            assert server.requests == requests
            server.requested = anyio.Event()
            running.clock.advance(0.01)
            await server.requested.wait()
            assert server.requests == requests + 1
            await until(lambda count=requests + 1: len(running.found) == count)
        running.clock.advance(REFETCH_INTERVAL_S)  # without refused signatures, none is due
        await run_event_loop_turns()
        assert server.requests == 3


async def test_a_request_waits_a_limited_time_for_a_rotated_key() -> None:
    server = KeyServer([nothing])
    async with running_key(server) as running, anyio.create_task_group() as tasks:
        tasks.start_soon(running.key.refetch)
        tasks.start_soon(running.key.refetch)
        await server.requested.wait()
        running.clock.advance(REFETCH_LIMIT_S)
    assert server.requests == 1


async def test_a_client_that_leaves_does_not_cancel_the_fetch() -> None:
    server = KeyServer([text(PEM)], held=anyio.Event())
    async with running_key(server) as running:
        async with anyio.create_task_group() as clients:
            clients.start_soon(running.key.refetch)
            await server.requested.wait()
            clients.cancel_scope.cancel()
        async with anyio.create_task_group() as clients:
            clients.start_soon(running.key.refetch)  # shares the fetch that the other one requested
            server.held.set()
        assert (running.found, server.requests) == ([PEM], 1)


def test_the_address_for_status_reports_only_is_left_out() -> None:
    settings = Settings.from_env(
        {
            "CONTAINER_ID": "1",
            "PUBLIC_IPADDR": "1.2.3.4",
            "VAST_TCP_PORT_3000": "3000",
            "REPORT_ADDR": f"{STATUS_ONLY_ADDR}/, http://one/e/x/ ,http://two",
        }
    )
    assert settings.report_addrs == (STATUS_ONLY_ADDR, "http://one/e/x", "http://two")
    assert settings.key_addrs == ("http://one/e/x", "http://two")
