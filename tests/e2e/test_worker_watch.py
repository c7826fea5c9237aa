"""What the local engine does with a worker process that drains, is killed and is started again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import anyio

from lib.local.faults import Fault
from lib.local.messages import RouteQuery
from lib.local.worker_watch import WorkerWatch
from tests.e2e.test_life import with_calls
from tests.fakes.worker import Setup
from tests.guard import GUARD_S
from tests.system import CONTAINER_ID, System, restarted, with_worker_process

SETUP = Setup(health="/health")


@asynccontextmanager
async def watched(system: System) -> AsyncGenerator[None, None]:
    """Watch the system's worker, from when its address has answered once."""
    tls = await asyncio.to_thread(system.engine.authority.trusting_context)
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as http, anyio.create_task_group() as tasks:
        watch = WorkerWatch(system.engine, http, tls)
        await watch.ask(system.engine.worker(CONTAINER_ID))
        tasks.start_soon(watch.run)
        yield
        tasks.cancel_scope.cancel()


def is_routed(system: System) -> bool:
    return "url" in system.engine.route(RouteQuery(system.engine.endpoint, 1.0, 0))


async def until_stopped(system: System, why: str) -> None:
    worker = system.engine.worker(CONTAINER_ID)
    await system.engine.wait_for(lambda: worker.why == why, GUARD_S)
    assert worker.state == "stopped"
    assert not is_routed(system)


async def test_a_worker_that_drains_is_not_routed_to(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path, SETUP) as system, watched(system):
        assert system.worker is not None
        assert is_routed(system)
        async with with_calls(system, "/held") as answers:
            await system.model.until(lambda: system.model.working == 1)
            system.worker.terminate()
            await until_stopped(system, "draining")
            system.model.release()
        assert answers["/held"][0] == 200
        await until_stopped(system, "ended after it drained")


async def test_an_idle_worker_that_is_stopped_has_drained(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path, SETUP) as system, watched(system):
        assert system.worker is not None
        system.worker.terminate()
        await until_stopped(system, "ended after it drained")


async def test_a_killed_worker_is_stopped_at_once_until_it_is_started_again(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path, SETUP) as system, watched(system):
        assert system.worker is not None
        assert is_routed(system)
        system.engine.faults.reports = Fault(refuse=True)  # one may be on its way
        system.worker.process.kill()
        await until_stopped(system, "can't be reached: connection refused")
        assert len(system.engine.given_up) == 1
        system.engine.faults.clear()
        async with restarted(system, tmp_path, SETUP):
            await system.engine.wait_for(lambda: is_routed(system), GUARD_S)
