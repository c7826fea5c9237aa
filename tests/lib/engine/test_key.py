"""The engine's public key: from whichever address has it, and anew when it was rotated (lesson 11)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import anyio
import pytest
from aiohttp import web

from lib.engine.key import LAST_RETRY_S, MAX_KEY_BYTES, REFETCH_INTERVAL_S, REFETCH_LIMIT_S, EngineKey
from lib.runtime.settings import STATUS_ONLY_ADDR, Settings
from tests.manual_clock import ManualClock

PEM = "-----BEGIN PUBLIC KEY-----\nabc\n-----END PUBLIC KEY-----\n"


def _set_event() -> anyio.Event:
    event = anyio.Event()
    event.set()
    return event


@dataclass
class KeyServer:
    """Answers `/pubkey/` with what `answers` say in turn, the last one from then on; counts how often."""

    answers: Sequence[Callable[[web.Request], web.StreamResponse | None]]
    url: str = ""
    asked: int = 0
    asked_again: anyio.Event = field(default_factory=anyio.Event)
    held: anyio.Event = field(default_factory=_set_event)

    async def pubkey(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        self.asked_again.set()
        self.asked_again = anyio.Event()
        await self.held.wait()
        answer = self.answers[min(self.asked, len(self.answers)) - 1](request)
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
class Keys:
    key: EngineKey
    use: Callable[[str], None]
    clock: ManualClock
    found: list[str]


@asynccontextmanager
async def served(*servers: KeyServer) -> AsyncGenerator[Keys, None]:
    """The servers listening, and a key that is fetched from them in their order."""
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
                yield Keys(key, use, clock, found)
                tasks.cancel_scope.cancel()
        finally:
            for runner in runners:
                await runner.cleanup()


@pytest.mark.parametrize(
    "bad",
    [
        text("no", 500),
        text("<html>not a key</html>"),
        text(b"\xff\xfe"),
        text("-----BEGIN" + "x" * MAX_KEY_BYTES),
    ],
)
async def test_the_next_address_is_asked(bad: Callable[[web.Request], web.StreamResponse]) -> None:
    first, second = KeyServer([bad]), KeyServer([text(PEM)])
    async with served(first, second) as here:
        await here.key.fetch(here.use)
    assert here.found == [PEM]


async def test_it_is_fetched_until_there_is_one() -> None:
    server = KeyServer([text("no", 503)] * 5 + [text(PEM)])
    async with served(server) as here, anyio.create_task_group() as tasks:
        tasks.start_soon(here.key.fetch, here.use)
        for tries in range(1, 6):
            await here.clock.wait_for_timer(LAST_RETRY_S)
            assert server.asked == tries
            here.clock.advance(LAST_RETRY_S)
    assert here.found == [PEM]


async def test_a_key_that_comes_byte_by_byte_is_one() -> None:
    server = KeyServer([lambda request: Dripping()])
    async with served(server) as here:
        await here.key.fetch(here.use)
    assert (here.found, server.asked) == ([PEM], 1)


async def test_a_rotated_key_is_looked_for_once_a_minute_at_most() -> None:
    server = KeyServer([text(PEM)])
    async with served(server) as here:
        await here.key.fetch(here.use)
        for expected in (2, 3):
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(here.key.refetch)
            assert server.asked == expected
            here.clock.advance(REFETCH_INTERVAL_S - 0.01)
            await here.key.refetch()
            assert server.asked == expected
            here.clock.advance(0.01)


async def test_a_request_does_not_wait_for_ever_for_a_rotated_key() -> None:
    server = KeyServer([nothing])
    async with served(server) as here, anyio.create_task_group() as tasks:
        tasks.start_soon(here.key.refetch)
        tasks.start_soon(here.key.refetch)
        await server.asked_again.wait()
        here.clock.advance(REFETCH_LIMIT_S)
    assert server.asked == 1


async def test_a_client_that_leaves_does_not_call_the_look_off() -> None:
    server = KeyServer([text(PEM)], held=anyio.Event())
    async with served(server) as here:
        async with anyio.create_task_group() as clients:
            clients.start_soon(here.key.refetch)
            await server.asked_again.wait()
            clients.cancel_scope.cancel()
        async with anyio.create_task_group() as clients:
            clients.start_soon(here.key.refetch)  # shares the look that the other one asked for
            server.held.set()
        assert (here.found, server.asked) == ([PEM], 1)


def test_the_address_that_takes_status_reports_only_is_left_out() -> None:
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
