"""The autoscaler on a manual clock; no worker processes are started."""

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

from lib.local.autoscale import CHECK_INTERVAL_S, SCALE_DOWN_DELAY_S, Autoscaler
from lib.local.engine import AutoscaleStatus, LocalEngine
from lib.local.processes import Child, python_module
from lib.local.serving import serve_engine
from tests.fakes.reports import READY
from tests.guard import GUARD_S
from tests.manual_clock import ManualClock
from tests.system import engine_key


class AutoscaleScenario:
    """An engine and an autoscaler of at most 3 workers; `lines` are the lines it printed."""

    def __init__(self, failing: Path | None = None) -> None:
        self.clock = ManualClock()
        self.engine = LocalEngine(clock=self.clock, key=engine_key())
        self.running: list[int] = []
        self.lines: list[str] = []
        self.failing = failing
        self.scaler = Autoscaler(self.engine, "local", 3, self.launch, self.lines.append)

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

    async def pass_time(self, seconds: float = CHECK_INTERVAL_S) -> None:
        """Advance the clock; each second, every running worker repeats its last report."""
        for _ in range(round(seconds / CHECK_INTERVAL_S)):
            for worker_id in self.running:
                if (last := self.engine.worker(worker_id).last) is not None:
                    self.engine.take_report("local", last)
            self.clock.advance(CHECK_INTERVAL_S)
            await anyio.wait_all_tasks_blocked()

    def report(self, worker_id: int, load: float, **fields: Any) -> None:
        """Report a ready worker with a performance of 100/s, and an arriving `load` per second."""
        message = replace(READY, id=worker_id, max_perf=100.0, new_load=load, **fields)
        self.engine.take_report("local", message)


@asynccontextmanager
async def running_scenario(failing: Path | None = None) -> AsyncGenerator[AutoscaleScenario, None]:
    """A scenario whose autoscaler runs; with `failing`, a folder for logs, its workers fail at once."""
    scenario = AutoscaleScenario(failing)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scenario.scaler.run)
        await scenario.clock.wait_for_timers()
        await anyio.wait_all_tasks_blocked()
        yield scenario
        tasks.cancel_scope.cancel()
    assert scenario.running == []


async def test_more_workers_are_started_as_the_load_grows() -> None:
    async with running_scenario() as scenario:
        assert scenario.running == [101]
        await scenario.pass_time(60.0)
        assert scenario.running == [101]
        scenario.report(101, 50.0)
        await scenario.pass_time(20.0)
        assert scenario.running == [101]
        scenario.report(101, 150.0)
        await scenario.pass_time(20.0)
        assert scenario.running == [101, 102]
        for worker_id in (101, 102):
            scenario.report(worker_id, 1000.0)
        await scenario.pass_time(20.0)
        assert scenario.running == [101, 102, 103]
        assert scenario.engine.autoscale == AutoscaleStatus("local", 3, 3, 3)
        assert "starting worker 102: load" in scenario.lines[1]
        logs = scenario.engine.log_of(scenario.engine.groups.endpoint(1)).to_json()
        assert "starting worker 103" in logs["info0"]


async def test_surplus_workers_are_stopped_after_a_delay_newest_first() -> None:
    async with running_scenario() as scenario:
        scenario.report(101, 1000.0)
        await scenario.pass_time(5.0)
        assert scenario.running == [101, 102, 103]
        for worker_id in (101, 102, 103):
            scenario.report(worker_id, 40.0)
        await scenario.pass_time(SCALE_DOWN_DELAY_S)  # the earlier load still counts at first
        assert scenario.running == [101, 102, 103]
        await scenario.pass_time(16.0)
        assert scenario.running == [101, 102]
        assert scenario.engine.worker(103).state == "stopped"
        assert scenario.engine.fleet.states("local")["ready"] == 2
        scenario.report(101, 0.0)
        scenario.report(102, 0.0)
        await scenario.pass_time(60.0)
        assert scenario.running == [101]
        scenario.report(101, 1000.0)
        await scenario.pass_time(5.0)
        assert scenario.running == [101, 102, 103]
        scenario.report(103, 0.0)
        assert scenario.engine.worker(103).state == "ready"


async def test_a_short_pause_stops_no_worker() -> None:
    async with running_scenario() as scenario:
        scenario.report(101, 150.0)
        await scenario.pass_time(20.0)
        assert scenario.running == [101, 102]
        scenario.report(101, 0.0)
        await scenario.pass_time(15.0)
        scenario.report(101, 150.0)
        await scenario.pass_time(60.0)
        assert scenario.running == [101, 102]
        assert not [line for line in scenario.lines if "stopping" in line]


async def test_workers_started_elsewhere_count() -> None:
    async with running_scenario() as scenario:
        scenario.report(7, 50.0)
        for _ in range(60):
            scenario.report(7, 50.0)
            await scenario.pass_time()
        assert scenario.running == []
        for _ in range(20):
            scenario.report(7, 150.0)
            await scenario.pass_time()
        assert scenario.running == [101]


async def test_the_delay_doubles_with_each_failure(tmp_path: Path) -> None:
    async with running_scenario(tmp_path) as scenario:
        failures: list[float] = []
        with anyio.fail_after(GUARD_S):
            while len(failures) < 4:
                count = len([line for line in scenario.lines if "next start in" in line])
                if count > len(failures):
                    failures.append(scenario.clock.monotonic())
                scenario.clock.advance(CHECK_INTERVAL_S if not scenario.running else 0.0)
                await anyio.lowlevel.checkpoint()
        pauses = [
            line.split("next start in ")[1].split(" s")[0]
            for line in scenario.lines
            if "next start in" in line
        ]
        assert pauses[:4] == ["1", "2", "4", "8"]
        assert "No module" not in scenario.lines[1]
        assert "ended with exit status" in scenario.lines[1]
        scenario.failing = None


async def test_a_removed_endpoint_is_ignored() -> None:
    async with running_scenario() as scenario:
        scenario.report(101, 1000.0)
        scenario.engine.remove_endpoint(scenario.engine.groups.endpoint(1))
        await scenario.pass_time(5.0)
        assert scenario.running == [101]


async def test_the_plan_over_http_has_its_state() -> None:
    async with (
        running_scenario() as scenario,
        serve_engine(scenario.engine) as url,
        aiohttp.ClientSession() as http,
        http.get(url + "/local/plan") as answer,
    ):
        (plan,) = (await answer.json())["plans"]
        assert plan["autoscale"] == {"endpoint": "local", "most": 3, "running": 1, "wanted": 1}


@pytest.mark.parametrize("most", [1, 2])
async def test_never_more_workers_than_the_maximum(most: int) -> None:
    scenario = AutoscaleScenario()
    scenario.scaler = Autoscaler(scenario.engine, "local", most, scenario.launch, scenario.lines.append)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scenario.scaler.run)
        await scenario.clock.wait_for_timers()
        scenario.report(101, 1e6)
        await scenario.pass_time(30.0)
        assert len(scenario.running) == most
        tasks.cancel_scope.cancel()
