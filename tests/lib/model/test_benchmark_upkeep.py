"""A saved result is verified, and one that was cut measured anew, without traffic; in virtual time."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from lib.metrics import Ledger, Outcome
from lib.model.benchmark import Attempt, FlowRequest
from lib.model.benchmark_keeper import IDLE_TO_MEASURE_S, IDLE_TO_VERIFY_S, BenchmarkKeeper
from lib.model.benchmark_request import BenchmarkRequest
from lib.model.benchmark_store import FILE_NAME
from lib.model.connection import ModelServer
from lib.model.readiness import Cause, Readiness, State
from lib.runtime.clock import sleep
from tests.fakes.worker import Job as Payload
from tests.fakes.worker import JobHandler
from tests.virtual_time import VirtualClock, in_virtual_time

SERVICE_S = 0.5
WORKLOAD = 10.0


@dataclass(frozen=True)
class TimedRequest(BenchmarkRequest):
    """A request of the benchmark that takes `service_s[0]` seconds of the clock, and reaches no server."""

    clock: VirtualClock
    service_s: list[float]
    sent_s: list[float] = field(default_factory=list[float])

    async def send(self, job: FlowRequest) -> Attempt:
        self.sent_s.append(self.clock.monotonic())
        await sleep(self.clock, self.service_s[0])
        return Attempt(True, WORKLOAD, "200: fine")


@dataclass(frozen=True)
class Kept:
    """A keeper that runs, with the requests that it sends."""

    clock: VirtualClock
    request: TimedRequest
    readiness: Readiness
    ledger: Ledger
    keeper: BenchmarkKeeper

    async def ready(self) -> None:
        await self.readiness.until(lambda: self.readiness.state is State.READY)

    async def sent_after(self, seconds: float) -> int:
        """The number of requests that are sent within the next `seconds`."""
        before = len(self.request.sent_s)
        await sleep(self.clock, seconds)
        return len(self.request.sent_s) - before


@asynccontextmanager
async def kept(
    clock: VirtualClock, directory: Path, service_s: float = SERVICE_S
) -> AsyncGenerator[Kept, None]:
    handler = JobHandler(path="/echo", benchmark_concurrency=2)
    handler.make_benchmark_payload = lambda: Payload(WORKLOAD)
    readiness, ledger = Readiness((), False, clock), Ledger(clock)
    async with ModelServer("http://127.0.0.1:1") as server, anyio.create_task_group() as tasks:
        request = TimedRequest(handler, server, lambda payload: WORKLOAD, clock, [service_s])
        keeper = BenchmarkKeeper(request, readiness, ledger, None, "", directory, 20.0, 300.0, clock)
        tasks.start_soon(keeper.keep)
        yield Kept(clock, request, readiness, ledger, keeper)
        tasks.cancel_scope.cancel()


async def measured(clock: VirtualClock, directory: Path, **changes: Any) -> None:
    """Measure once, and save the result with `changes`."""
    async with kept(clock, directory) as here:
        await here.ready()
    file = directory / FILE_NAME
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def saved(directory: Path) -> dict[str, Any]:
    return json.loads((directory / FILE_NAME).read_text())


def run(function: Callable[..., Any], tmp_path: Path) -> None:
    in_virtual_time(partial(function, tmp_path))


async def confirmed(directory: Path, clock: VirtualClock) -> None:
    await measured(clock, directory)
    async with kept(clock, directory) as here:
        await here.ready()
        assert here.keeper.is_saved
        assert await here.sent_after(IDLE_TO_VERIFY_S - 0.1) == 0
        assert await here.sent_after(5.0) > 0
        assert await here.sent_after(600.0) == 0
        assert here.readiness.max_perf == pytest.approx(2 * WORKLOAD / SERVICE_S)


def test_a_saved_result_is_verified_once_without_traffic(tmp_path: Path) -> None:
    run(confirmed, tmp_path)


async def corrected(directory: Path, clock: VirtualClock) -> None:
    await measured(clock, directory)
    async with kept(clock, directory, service_s=1.0) as here:  # throttled since then
        await here.ready()
        assert here.readiness.max_perf == pytest.approx(2 * WORKLOAD / SERVICE_S)
        await here.sent_after(120.0)
        assert here.readiness.max_perf == pytest.approx(2 * WORKLOAD / 1.0)
        assert here.readiness.state is State.READY
        assert not here.keeper.is_saved
    assert saved(directory)["perf"] == pytest.approx(2 * WORKLOAD / 1.0)


def test_a_saved_result_that_is_off_is_measured_anew(tmp_path: Path) -> None:
    run(corrected, tmp_path)


async def measured_anew(directory: Path, clock: VirtualClock) -> None:
    await measured(clock, directory, is_cut=True, perf=1.0, concurrency=None)
    async with kept(clock, directory) as here:
        await here.ready()
        assert here.readiness.max_perf == 1.0
        assert await here.sent_after(IDLE_TO_MEASURE_S - 0.1) == 0
        assert await here.sent_after(120.0) > 0
        assert here.readiness.max_perf == pytest.approx(2 * WORKLOAD / SERVICE_S)
        assert await here.sent_after(600.0) == 0
    assert not saved(directory)["is_cut"]


def test_a_result_that_was_cut_is_measured_anew_without_traffic(tmp_path: Path) -> None:
    run(measured_anew, tmp_path)


async def interrupted(directory: Path, clock: VirtualClock) -> None:
    await measured(clock, directory, is_cut=True, perf=1.0, concurrency=None)
    async with kept(clock, directory) as here:
        await here.ready()
        await here.sent_after(IDLE_TO_MEASURE_S + 1.2)
        entry = here.ledger.open()
        entry.accept()
        assert await here.sent_after(60.0) == 0  # as long as the request takes
        entry.set_outcome(Outcome.SERVED)
        assert here.readiness.max_perf == 1.0
        assert await here.sent_after(IDLE_TO_MEASURE_S - 0.1) == 0
        assert await here.sent_after(120.0) > 0
        assert here.readiness.max_perf == pytest.approx(2 * WORKLOAD / SERVICE_S)


def test_the_first_request_ends_it_and_it_begins_again_after_the_next_pause(tmp_path: Path) -> None:
    run(interrupted, tmp_path)


async def cancelled(resets: bool, directory: Path, clock: VirtualClock) -> None:
    await measured(clock, directory)
    async with kept(clock, directory) as here:
        await here.ready()
        await here.sent_after(IDLE_TO_VERIFY_S / 2)
        assert len(here.ledger.listeners) == 1
        if resets:
            here.ledger.listeners.clear()
    assert here.ledger.listeners == []


@pytest.mark.parametrize("resets", [False, True])
def test_a_worker_that_stops_leaves_no_listener(tmp_path: Path, resets: bool) -> None:
    """Its engine may have reset the listeners before."""
    run(partial(cancelled, resets), tmp_path)


async def not_while_errored(directory: Path, clock: VirtualClock) -> None:
    await measured(clock, directory)
    async with kept(clock, directory) as here:
        await here.ready()
        here.readiness.set_error(Cause.HEALTH, "no answer")
        assert await here.sent_after(120.0) == 0
        here.readiness.clear_error(Cause.HEALTH, "answers again")
        assert await here.sent_after(120.0) > 0


def test_nothing_is_sent_to_a_model_server_with_an_error(tmp_path: Path) -> None:
    run(not_while_errored, tmp_path)
