"""A fleet with a GPU that is throttled for a while, in virtual time, with and without `LIVE_CAPACITY`.

Four workers with the real queue, ledger and live capacity are routed to by the local engine's rule. After ten
minutes the first one's GPU has two fifths of its speed, forty minutes later all of it again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

import anyio
import pytest

from tests.fakes.batching_model import BatchingModel, JobModel
from tests.fakes.fleet import FleetWorker, VirtualFleet
from tests.virtual_time import VirtualClock, in_virtual_time

pytestmark = [pytest.mark.long, pytest.mark.one_python, pytest.mark.usefixtures("untraced")]

WORKERS = 4
BATCH = 16
SPEED = 0.4
TRUE_SHARE = SPEED / (WORKERS - 1 + SPEED)
# In minutes.
THROTTLED_AT, RECOVERS_AT, ENDS_AT = 10, 50, 90
BEFORE = slice(2, THROTTLED_AT)
SETTLED = slice(THROTTLED_AT + 10, RECOVERS_AT)
RECOVERED = slice(RECOVERS_AT + 20, ENDS_AT)


class Scenario(NamedTuple):
    """A load on the fleet: `clients` that ask again and again, or a `load`, as a part of its capacity."""

    kind: str
    load: float = 0.0
    clients: int = 0
    slots: int | None = BATCH


OVERLOADS = {
    "overload": Scenario("batching", clients=8 * BATCH),
    "overload of servers with queues of their own": Scenario("batching", clients=8 * BATCH, slots=None),
}
MODERATE = {
    "jobs, half the capacity": Scenario("jobs", load=0.5, slots=1),
    "jobs, four fifths of the capacity": Scenario("jobs", load=0.8, slots=1),
    "batches, four fifths of the capacity": Scenario("batching", load=0.8),
}


def batching(clock: VirtualClock, seed: int) -> tuple[BatchingModel, Callable[[float], None]]:
    """A text server, and the function that sets its speed."""
    model = BatchingModel(
        clock=clock, base_s=0.2, each_s=0.02, most=BATCH, noise=0.1, throttle_at_s=0.0, seed=seed
    )
    return model, lambda speed: setattr(model, "throttle_factor", 1 / speed)


def jobs(clock: VirtualClock, seed: int) -> tuple[JobModel, Callable[[float], None]]:
    """A server of one job at a time, and the function that sets its speed."""
    model = JobModel(clock=clock, mean_s=3.0, jitter=0.1, workload=40.0, seed=seed)
    return model, lambda speed: setattr(model, "mean_s", 3.0 / speed)


async def generate(model: BatchingModel, workload: float) -> None:
    await model.generate(int(workload))


async def run_job(model: JobModel, workload: float) -> None:
    await model.run()


def draw(generator: random.Random, is_job: bool) -> float:
    return 40.0 if is_job else generator.randint(20, 60)


async def throttled(scenario: Scenario, is_moving: bool, clock: VirtualClock) -> VirtualFleet:
    """Run the scenario; return the fleet, with a record of each minute."""
    workers: list[FleetWorker] = []
    set_speed: list[Callable[[float], None]] = []
    capacity = 0.0
    for number in range(WORKERS):
        if scenario.kind == "jobs":
            job_model, setter = jobs(clock, number)
            work, capacity, best = partial(run_job, job_model), job_model.capacity(), 1
        else:
            model, setter = batching(clock, number)
            work, capacity, best = partial(generate, model), model.capacity(40), BATCH
        set_speed.append(setter)
        workers.append(FleetWorker(number, work, clock, capacity, best, scenario.slots))
    drawn = partial(draw, is_job=scenario.kind == "jobs")
    async with anyio.create_task_group() as group:
        fleet = VirtualFleet(workers, clock, group, is_moving)
        for _ in range(scenario.clients):
            group.start_soon(fleet.ask, drawn)
        if scenario.load:
            group.start_soon(fleet.arrive, scenario.load * WORKERS * capacity / 40, drawn)
        for minute in range(ENDS_AT):
            if minute in (THROTTLED_AT, RECOVERS_AT):
                set_speed[0](SPEED if minute == THROTTLED_AT else 1.0)
            await fleet.minute()
        group.cancel_scope.cancel()
        return fleet
    raise AssertionError("unreachable")


def ran(scenario: Scenario, is_moving: bool) -> VirtualFleet:
    return in_virtual_time(partial(throttled, scenario, is_moving))


def reported(fleet: VirtualFleet, minutes: slice) -> list[float]:
    """The first worker's `max_perf` at the end of each minute, as a part of its benchmark's."""
    worker = fleet.workers[0]
    return [minute.max_perf / worker.readiness.benchmark_perf for minute in worker.minutes[minutes]]


def wait_s(worker: FleetWorker, minutes: slice) -> float:
    return fmean(wait for minute in worker.minutes[minutes] for wait in minute.waits_s)


@pytest.mark.parametrize("scenario", OVERLOADS.values(), ids=OVERLOADS)
def test_under_overload_a_throttled_gpu_gets_its_true_share(scenario: Scenario) -> None:
    fixed, moved = ran(scenario, False), ran(scenario, True)
    assert set(reported(fixed, slice(0, ENDS_AT))) == {1.0}
    assert fmean(fixed.shares(SETTLED)) == pytest.approx(1 / WORKERS, abs=0.02)
    shares = moved.shares(SETTLED)
    assert max(shares) - min(shares) < 0.03
    assert fmean(shares) == pytest.approx(TRUE_SHARE, abs=0.02)
    assert reported(moved, SETTLED) == pytest.approx([SPEED] * len(shares), abs=0.05)
    if scenario.slots is not None:
        assert wait_s(moved.workers[0], SETTLED) < 0.2 * wait_s(fixed.workers[0], SETTLED)
    for minutes in (BEFORE, RECOVERED):
        assert moved.shares(minutes) == pytest.approx([1 / WORKERS] * len(moved.shares(minutes)), abs=0.02)
        assert reported(moved, minutes) == pytest.approx([1.0] * len(moved.shares(minutes)), abs=0.05)


@pytest.mark.parametrize("scenario", MODERATE.values(), ids=MODERATE)
def test_under_a_moderate_load_its_queue_is_shorter_and_nothing_oscillates(scenario: Scenario) -> None:
    fixed, moved = ran(scenario, False), ran(scenario, True)
    assert fmean(moved.shares(SETTLED)) < 0.75 * fmean(fixed.shares(SETTLED))
    assert wait_s(moved.workers[0], SETTLED) < 0.5 * wait_s(fixed.workers[0], SETTLED)
    waits = [fmean(wait_s(worker, SETTLED) for worker in fleet.workers) for fleet in (fixed, moved)]
    assert waits[1] < waits[0]
    perfs = reported(moved, SETTLED)
    if scenario.kind == "jobs":  # with one at a time, each that is at work says how fast the GPU is
        assert perfs == pytest.approx([SPEED] * len(perfs), abs=0.07)
        assert reported(moved, RECOVERED) == pytest.approx([1.0] * len(reported(moved, RECOVERED)), abs=0.05)
    else:  # it is saturated seldom: drifts back, and falls again when it is
        assert max(moved.shares(SETTLED)) - min(moved.shares(SETTLED)) < 0.06
        assert max(abs(after - before) for before, after in pairwise(perfs)) < 0.1
        assert max(perfs) < 0.8
        assert reported(moved, RECOVERED)[-1] > max(perfs)
