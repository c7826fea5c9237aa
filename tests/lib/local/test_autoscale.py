"""Workers started and stopped by the plan, on a clock moved by hand and with workers that are none."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.lowlevel
import pytest

from lib.local.autoscale import LOOK_S, PATIENCE_S, Autoscaler
from lib.local.engine import Autoscale, LocalEngine
from lib.local.processes import Child, python_module
from lib.local.serving import serve_engine
from tests.fakes.reports import READY
from tests.manual_clock import ManualClock
from tests.system import engine_key


class Stage:
    """An engine with an autoscaler of at most 3 workers beside it; `told` is what it said."""

    def __init__(self, failing: Path | None = None) -> None:
        self.clock = ManualClock()
        self.engine = LocalEngine(clock=self.clock, key=engine_key())
        self.running: list[int] = []
        self.told: list[str] = []
        self.failing = failing
        self.scaler = Autoscaler(self.engine, "local", 3, self.launch, self.told.append)

    @asynccontextmanager
    async def launch(self, worker_id: int) -> AsyncGenerator[Sequence[Child], None]:
        self.running.append(worker_id)
        try:
            if self.failing:
                log = self.failing / "worker.log"
                async with python_module("worker", "platform", "--wrong", environ={}, log=log) as child:
                    await child.process.wait()
                    yield [child]
            else:
                yield []
        finally:
            self.running.remove(worker_id)

    async def pass_time(self, seconds: float = LOOK_S) -> None:
        """As long, the workers reporting what they last did every second."""
        for _ in range(round(seconds / LOOK_S)):
            for worker_id in self.running:
                if (last := self.engine.worker(worker_id).last) is not None:
                    self.engine.take_report("local", last)
            self.clock.advance(LOOK_S)
            await anyio.wait_all_tasks_blocked()

    def report(self, worker_id: int, load: float, **told: Any) -> None:
        """A worker of 100 a second, ready, to which so much comes every second from now on."""
        message = replace(READY, id=worker_id, max_perf=100.0, new_load=load, **told)
        self.engine.take_report("local", message)


@asynccontextmanager
async def stage(failing: Path | None = None) -> AsyncGenerator[Stage, None]:
    here = Stage(failing)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(here.scaler.run)
        await here.clock.wait_for_timers()
        await anyio.wait_all_tasks_blocked()
        yield here
        tasks.cancel_scope.cancel()
    assert here.running == []


async def test_one_worker_is_enough_until_the_load_passes_it() -> None:
    async with stage() as here:
        assert here.running == [101]
        await here.pass_time(60.0)
        assert here.running == [101]
        here.report(101, 50.0)
        await here.pass_time(20.0)
        assert here.running == [101]
        here.report(101, 150.0)
        await here.pass_time(20.0)
        assert here.running == [101, 102]
        for worker_id in (101, 102):
            here.report(worker_id, 1000.0)
        await here.pass_time(20.0)
        assert here.running == [101, 102, 103]
        assert here.engine.autoscale == Autoscale("local", 3, 3, 3)
        assert "starting worker 102: a load of" in here.told[1]
        logs = here.engine.log_of(here.engine.groups.endpoint(1)).to_json()
        assert "starting worker 103" in logs["info0"]


async def test_those_that_are_too_many_are_stopped_after_a_while_the_newest_first() -> None:
    async with stage() as here:
        here.report(101, 1000.0)
        await here.pass_time(5.0)
        assert here.running == [101, 102, 103]
        for worker_id in (101, 102, 103):
            here.report(worker_id, 40.0)
        await here.pass_time(PATIENCE_S)  # for the first of which what came before still counts
        assert here.running == [101, 102, 103]
        await here.pass_time(16.0)
        assert here.running == [101, 102]
        assert here.engine.worker(103).state == "stopped"
        assert here.engine.fleet.states("local")["ready"] == 2
        here.report(101, 0.0)
        here.report(102, 0.0)
        await here.pass_time(60.0)
        assert here.running == [101]
        here.report(101, 1000.0)
        await here.pass_time(5.0)
        assert here.running == [101, 102, 103]
        here.report(103, 0.0)
        assert here.engine.worker(103).state == "ready"


async def test_a_short_pause_stops_nobody() -> None:
    async with stage() as here:
        here.report(101, 150.0)
        await here.pass_time(20.0)
        assert here.running == [101, 102]
        here.report(101, 0.0)
        await here.pass_time(15.0)
        here.report(101, 150.0)
        await here.pass_time(60.0)
        assert here.running == [101, 102]
        assert not [line for line in here.told if "stopping" in line]


async def test_workers_of_others_count() -> None:
    async with stage() as here:
        here.report(7, 50.0)
        for _ in range(60):
            here.report(7, 50.0)
            await here.pass_time()
        assert here.running == []
        for _ in range(20):
            here.report(7, 150.0)
            await here.pass_time()
        assert here.running == [101]


async def test_a_failing_worker_is_left_alone_longer_each_time(tmp_path: Path) -> None:
    async with stage(tmp_path) as here:
        failures: list[float] = []
        with anyio.fail_after(30.0):
            while len(failures) < 4:
                count = len([line for line in here.told if "again in" in line])
                if count > len(failures):
                    failures.append(here.clock.monotonic())
                here.clock.advance(LOOK_S if not here.running else 0.0)
                await anyio.lowlevel.checkpoint()
        pauses = [line.split("again in ")[1].split(" s")[0] for line in here.told if "again in" in line]
        assert pauses[:4] == ["1", "2", "4", "8"]
        assert "No module" not in here.told[1]
        assert "ended with exit status" in here.told[1]
        here.failing = None


async def test_an_endpoint_that_was_removed_is_left_alone() -> None:
    async with stage() as here:
        here.report(101, 1000.0)
        here.engine.remove_endpoint(here.engine.groups.endpoint(1))
        await here.pass_time(5.0)
        assert here.running == [101]


async def test_over_http_the_plan_shows_it() -> None:
    async with (
        stage() as here,
        serve_engine(here.engine) as url,
        aiohttp.ClientSession() as http,
        http.get(url + "/local/plan") as answer,
    ):
        (plan,) = (await answer.json())["plans"]
        assert plan["autoscale"] == {"endpoint": "local", "most": 3, "running": 1, "wanted": 1}


@pytest.mark.parametrize("most", [1, 2])
async def test_never_more_than_asked_for(most: int) -> None:
    here = Stage()
    here.scaler = Autoscaler(here.engine, "local", most, here.launch, here.told.append)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(here.scaler.run)
        await here.clock.wait_for_timers()
        here.report(101, 1e6)
        await here.pass_time(30.0)
        assert len(here.running) == most
        tasks.cancel_scope.cancel()
