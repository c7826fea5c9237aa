"""The engine's watch of its workers' addresses: killed and draining workers get no requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lib.local.engine import LocalEngine
from lib.local.fleet import WorkerRecord
from lib.local.messages import RouteQuery
from lib.local.worker_watch import CHECK_INTERVAL_S, WorkerWatch, watched_workers
from tests.fakes.reports import READY
from tests.guard import GUARD_S
from tests.manual_clock import ManualClock
from tests.system import engine_key


@dataclass
class ReadyzServer:
    """A worker's `/readyz`, which answers with `status` and `text`, or closes the connection for 0."""

    status: int = 200
    text: str = "ready"
    asked: int = 0
    closes: bool = False

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        if self.closes and request.transport is not None:
            request.transport.abort()
        return web.Response(status=self.status, text=self.text)


@dataclass
class Watched:
    """An engine, its one worker, and the watch of it."""

    engine: LocalEngine
    clock: ManualClock
    readyz: ReadyzServer
    server: TestServer
    watch: WorkerWatch

    @property
    def worker(self) -> WorkerRecord:
        return self.engine.worker(READY.id)

    @property
    def is_routed_to(self) -> bool:
        return "url" in self.engine.route(RouteQuery("local", 1.0, 0))

    def report(self) -> None:
        url = str(self.server.make_url("")).rstrip("/")
        self.engine.take_report("local", replace(READY, url=url))


@asynccontextmanager
async def watched() -> AsyncGenerator[Watched, None]:
    clock, readyz, app = ManualClock(), ReadyzServer(), web.Application()
    engine = LocalEngine(clock=clock, key=engine_key())
    app.router.add_get("/readyz", readyz.answer)
    server = TestServer(app, host="127.0.0.1")
    await server.start_server()
    tls = await asyncio.to_thread(engine.authority.trusting_context)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
        here = Watched(engine, clock, readyz, server, WorkerWatch(engine, http, tls))
        here.report()
        try:
            yield here
        finally:
            await server.close()


@pytest.mark.parametrize(
    ("status", "text", "state"),
    [
        (200, "ready", "ready"),
        (503, "draining", "stopped"),
        (503, "loading", "ready"),
        (503, "errored", "ready"),
        (200, "draining", "ready"),
        (404, "no such page", "ready"),
        (500, "\xff" * 1000, "ready"),
    ],
)
async def test_only_a_draining_answer_stops_a_worker(status: int, text: str, state: str) -> None:
    async with watched() as here:
        here.readyz.status, here.readyz.text = status, text
        await here.watch.ask(here.worker)
        assert here.worker.state == state
        assert here.is_routed_to == (state == "ready")
        here.readyz.status, here.readyz.text = 200, "ready"
        await here.watch.ask(here.worker)
        assert here.is_routed_to


async def test_a_killed_worker_is_stopped_at_once_and_its_requests_are_given_up() -> None:
    async with watched() as here:
        await here.watch.ask(here.worker)
        assert here.is_routed_to
        await here.server.close()
        await here.watch.ask(here.worker)
        assert (here.worker.state, here.worker.why) == ("stopped", "can't be reached: connection refused")
        assert not here.is_routed_to
        endpoint = here.engine.groups.endpoint_named("local")
        assert endpoint is not None
        assert here.engine.plan_of(endpoint).ready_capacity == 0.0
        assert [request.request_idx for request in here.engine.given_up] == [1]


async def test_a_worker_that_reports_after_it_closed_its_port_has_drained() -> None:
    async with watched() as here:
        await here.watch.ask(here.worker)
        await here.server.close()
        await here.watch.ask(here.worker, has_just_reported=True)
        assert (here.worker.state, here.worker.why) == ("stopped", "ended after it drained")


async def test_a_worker_whose_address_never_answered_is_judged_by_its_reports() -> None:
    async with watched() as here:
        await here.server.close()
        await here.watch.ask(here.worker)
        assert here.worker.state == "ready"


async def test_a_closed_connection_is_no_end() -> None:
    async with watched() as here:
        await here.watch.ask(here.worker)
        here.readyz.closes = True
        await here.watch.ask(here.worker)
        assert here.readyz.asked >= 2
        assert here.worker.state == "ready"


@pytest.mark.parametrize("url", ["http://no-such-host.invalid:1", "http://\ud800:1", "not a url"])
@pytest.mark.parametrize("end", ["drains", "refuses"])
async def test_reports_decide_on_a_new_address_that_cannot_be_asked(url: str, end: str) -> None:
    async with watched() as here:
        await here.watch.ask(here.worker)
        if end == "drains":
            here.readyz.status, here.readyz.text = 503, "draining"
        else:
            await here.server.close()
        await here.watch.ask(here.worker)
        assert here.worker.state == "stopped"
        here.engine.take_report("local", replace(READY, url=url))
        await here.watch.ask(here.worker, has_just_reported=True)
        assert here.is_routed_to


async def test_a_restart_ends_draining_also_at_the_same_address() -> None:
    async with watched() as here:
        here.readyz.status, here.readyz.text = 503, "draining"
        await here.watch.ask(here.worker)
        here.readyz.closes = True
        here.report()
        await here.watch.ask(here.worker, has_just_reported=True)
        assert here.worker.state == "stopped"
        here.engine.take_report("local", replace(here.worker.reports[-1].message, loadtime=0.0))
        here.report()
        await here.watch.ask(here.worker, has_just_reported=True)
        assert here.is_routed_to


async def test_a_worker_that_was_refused_once_is_back_with_its_next_report() -> None:
    async with watched() as here:
        here.engine.see(here.worker, unreachable="connection refused")
        here.readyz.closes = True
        await here.watch.ask(here.worker)
        assert here.worker.state == "stopped"
        here.report()
        await here.watch.ask(here.worker, has_just_reported=True)
        assert here.is_routed_to


async def test_a_restarted_worker_gets_requests_again() -> None:
    async with watched() as here, watched() as next_process:
        await here.watch.ask(here.worker)
        await here.server.close()
        await here.watch.ask(here.worker)
        here.server = next_process.server
        here.report()
        assert not here.is_routed_to
        await here.watch.ask(here.worker, has_just_reported=True)
        assert here.is_routed_to


async def test_workers_are_asked_once_a_second_and_after_their_reports() -> None:
    async with watched() as here:
        here.readyz.status, here.readyz.text = 503, "draining"
        async with watched_workers(here.engine):
            await here.engine.wait_for(lambda: here.worker.why == "draining", GUARD_S)
            here.readyz.status, here.readyz.text = 200, "ready"
            here.report()
            await here.engine.wait_for(lambda: here.worker.state == "ready", GUARD_S)
            await here.server.close()
            await here.clock.wait_for_timer(CHECK_INTERVAL_S)
            here.clock.advance(CHECK_INTERVAL_S)
            await here.engine.wait_for(lambda: here.worker.state == "stopped", GUARD_S)
        assert here.engine.listeners == []


async def test_what_is_raised_beside_the_watch_stays_as_it_is() -> None:
    with pytest.raises(ValueError, match="as it is"):
        async with watched_workers(LocalEngine(key=engine_key())):
            raise ValueError("as it is")
