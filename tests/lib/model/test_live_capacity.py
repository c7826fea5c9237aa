"""The capacity that requests show, and what it makes of the reported `max_perf`, on a clock of the test."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.metrics import MAX_WORKLOAD, Outcome
from lib.model.live_capacity import (
    HORIZON_S,
    MOST_MOVED,
    SHOWN_FROM_S,
    STEP_S,
    WINDOW_REQUESTS,
    WINDOW_S,
    CapacityMover,
)
from lib.model.readiness import Cause
from tests.event_loop import run_event_loop_turns as turns
from tests.fakes.fleet import WatchedWorker, WorkedRequest
from tests.manual_clock import ManualClock

PERF = 100.0


class Driven(WatchedWorker):
    """A worker whose requests begin and end as the test says. A new one has no queue."""

    clock: ManualClock

    def __init__(self, best: int | None = 4, slots: int | None = None, perf: float = PERF) -> None:
        super().__init__(ManualClock(), perf, best, slots)

    def begin(self, workload: float = 10.0) -> WorkedRequest:
        request = self.accept(workload)
        assert self.lane.queue.try_acquire()
        self.start(request)
        return request

    def serve(
        self,
        seconds: float,
        at_once: int = 4,
        each_s: float = 1.0,
        workload: float = 10.0,
        outcome: Outcome = Outcome.SERVED,
        status: int = 200,
    ) -> None:
        """Keep `at_once` requests in flight for `seconds`, each for `each_s`, one ending after the other."""
        step_s = each_s / at_once
        running = [self.begin(workload)]
        for _ in range(round(seconds / step_s)):
            self.clock.advance(step_s)
            if len(running) == at_once:
                self.end(running.pop(0), outcome, status)
            running.append(self.begin(workload))
        for request in running:
            self.end(request, Outcome.CANCELLED)

    @property
    def shown(self) -> float | None:
        observation = self.live.observation
        return None if observation is None else observation.workload_per_second


# The measurement


@pytest.mark.parametrize("each_s", [0.02, 1.0, 20.0])
def test_while_as_many_as_the_best_are_in_flight_they_show_the_capacity(each_s: float) -> None:
    worker = Driven(best=4)
    worker.serve(120.0, at_once=6, each_s=each_s, workload=10.0 * each_s)
    assert worker.shown == pytest.approx(60.0, rel=0.01)
    observation = worker.live.observation
    assert observation is not None
    assert observation.is_enough
    assert WINDOW_S <= observation.saturated_s <= WINDOW_S + 2 * max(1.0, each_s)
    assert observation.at == worker.clock.wall()


def test_with_fewer_in_flight_nothing_is_shown() -> None:
    worker = Driven(best=4)
    worker.serve(200.0, at_once=3)
    assert worker.shown is None
    assert worker.live.saturated_s == 0


def test_without_a_known_best_and_without_a_queue_nothing_is_shown() -> None:
    worker = Driven(best=None)
    worker.serve(200.0, at_once=300)
    assert worker.shown is None


async def test_while_requests_wait_for_slots_they_show_the_capacity_without_their_waits() -> None:
    worker = Driven(best=None, slots=2)

    async def client() -> None:
        while True:
            request = worker.accept(10.0)
            if not worker.lane.queue.try_acquire():
                await worker.lane.queue.wait(None)
            worker.start(request)
            done = asyncio.Event()
            worker.clock.call_later(2.0, done.set)
            await done.wait()
            worker.end(request)

    clients = [asyncio.ensure_future(client()) for _ in range(9)]
    await turns(3)
    for _ in range(120):
        worker.clock.advance(1.0)
        await turns(8)
    assert worker.shown == pytest.approx(2 * 10.0 / 2.0)
    for each in clients:
        each.cancel()
    await asyncio.gather(*clients, return_exceptions=True)


def test_a_minute_of_one_long_job_after_the_other_needs_four_of_them() -> None:
    worker = Driven(best=1, slots=1)
    for jobs in range(1, 6):
        worker.serve(121.0, at_once=1, each_s=120.0, workload=600.0)
        observation = worker.live.observation
        assert observation is not None
        assert observation.workload_per_second == pytest.approx(5.0)
        assert observation.is_enough is (jobs >= WINDOW_REQUESTS)


def test_what_is_shown_follows_the_server_within_a_minute_of_saturation() -> None:
    worker = Driven()
    worker.serve(100.0, each_s=1.0)
    assert worker.shown == pytest.approx(40.0, rel=0.02)
    worker.serve(WINDOW_S + 5, each_s=2.5)
    assert worker.shown == pytest.approx(16.0, rel=0.02)


def test_saturated_time_is_gathered_over_pauses_and_forgotten_when_it_is_old() -> None:
    worker = Driven()
    worker.serve(SHOWN_FROM_S / 2 + 1)
    assert worker.shown is None
    worker.clock.advance(100.0)
    worker.serve(SHOWN_FROM_S / 2 + 1)
    assert worker.shown == pytest.approx(40.0, rel=0.1)
    assert worker.live.observation is not None
    saturated_at = worker.clock.wall()
    worker.clock.advance(HORIZON_S - 150)
    observation = worker.live.observation
    assert observation is not None
    assert observation.at == pytest.approx(saturated_at, abs=1.0)
    assert not observation.is_enough
    worker.clock.advance(200.0)
    assert worker.shown is None


def test_a_request_counts_for_the_part_of_it_that_was_in_saturated_time() -> None:
    worker = Driven(best=4)
    early = worker.begin(workload=400.0)
    worker.clock.advance(20.0)
    others = [worker.begin(0.0) for _ in range(3)]
    worker.clock.advance(20.0)
    worker.end(early)
    assert worker.live.saturated_s == 20.0
    assert worker.shown == pytest.approx(4 * 400.0 / 40.0)  # four as fast as this one
    for request in others:
        worker.end(request)


# Failures, and what clients do


def test_requests_that_fail_or_get_4xx_take_time_and_make_no_workload() -> None:
    expected = {(Outcome.ERRORED, 502): 20.0, (Outcome.SERVED, 422): 20.0, (Outcome.CANCELLED, 499): 40.0}
    for (outcome, status), perf in expected.items():
        worker = Driven()
        running = [worker.begin() for _ in range(4)]
        for number in range(4 * 120):
            worker.clock.advance(0.25)
            first = running.pop(0)
            if number % 2:
                worker.end(first)
            else:
                worker.end(first, outcome, status)
            running.append(worker.begin())
        assert worker.shown == pytest.approx(perf, rel=0.02), outcome


def test_requests_that_fail_at_once_in_great_numbers_change_nothing() -> None:
    worker = Driven()
    running = [worker.begin() for _ in range(4)]
    for _ in range(4 * 120):
        worker.clock.advance(0.25)
        worker.end(running.pop(0))
        for _ in range(100):
            worker.end(worker.begin(), Outcome.ERRORED, 502)
        running.append(worker.begin())
    assert worker.shown == pytest.approx(40.0, rel=0.02)


def test_where_all_requests_fail_the_capacity_is_zero() -> None:
    worker = Driven()
    worker.serve(100.0, outcome=Outcome.ERRORED, status=504)
    assert worker.shown == 0.0


def test_requests_without_workload_alone_show_nothing() -> None:
    worker = Driven()
    worker.serve(200.0, workload=0.0)
    assert worker.shown is None


def test_one_huge_request_is_forgotten_after_a_minute_of_saturation() -> None:
    worker = Driven()
    worker.serve(30.0)
    worker.serve(2.0, workload=MAX_WORKLOAD)
    assert (worker.shown or 0.0) > 1e9
    worker.serve(WINDOW_S + 5)
    assert worker.shown == pytest.approx(40.0, rel=0.02)


def test_a_worker_that_is_errored_or_drains_shows_what_it_did_before() -> None:
    for stop in ("error", "drain"):
        worker = Driven()
        worker.serve(100.0)
        if stop == "error":
            worker.readiness.set_error(Cause.HEALTH, "no answer")
        else:
            worker.readiness.drain()
        worker.clock.advance(2.0)
        before_s = worker.live.saturated_s
        worker.serve(100.0, outcome=Outcome.ERRORED, status=504)
        assert worker.live.saturated_s == before_s
        assert worker.shown == pytest.approx(40.0, rel=0.02)


def test_a_new_result_of_the_benchmark_makes_what_was_seen_before_void() -> None:
    worker = Driven()
    worker.serve(100.0)
    worker.readiness.set_max_perf(70.0, "measured anew")
    worker.clock.advance(2.0)
    assert worker.shown is None


EVENTS = st.tuples(
    st.sampled_from(
        ["begin"] * 4 + ["wait"] * 3 + ["end"] * 2 + ["fail", "cancel", "read", "error", "recover", "recover"]
    ),
    st.floats(0, 100),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(EVENTS, max_size=300) | st.lists(EVENTS, min_size=30, max_size=300))
def test_whatever_happens_it_shows_a_finite_number_and_forgets_all_that_ended(
    events: Sequence[tuple[str, float]],
) -> None:
    worker = Driven(best=2)
    running: list[WorkedRequest] = []
    outcomes = {"end": Outcome.SERVED, "fail": Outcome.ERRORED, "cancel": Outcome.CANCELLED}
    for event, number in events:
        if event == "begin":
            running.append(worker.begin(number))
        elif event in outcomes and running:
            worker.end(running.pop(int(number) % len(running)), outcomes[event])
        elif event == "wait":
            worker.clock.advance(number)
        elif event == "error":
            worker.readiness.set_error(Cause.HEALTH, "no answer")
        elif event == "recover":
            worker.readiness.clear_error(Cause.HEALTH, "answers")
        shown = worker.shown
        assert shown is None or 0 <= shown < math.inf
    for request in running:
        worker.end(request)
    saturated_s = worker.live.saturated_s
    worker.clock.advance(100.0)
    assert worker.live.saturated_s == saturated_s


# The reported max_perf


class Moved:
    """The mover of `worker`'s `max_perf`, which runs as a task."""

    def __init__(self, worker: Driven) -> None:
        self._worker = worker
        self._task = asyncio.ensure_future(CapacityMover(worker.live, worker.readiness).keep())

    async def __aenter__(self) -> Moved:
        await self._worker.clock.wait_for_timers()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def serve(self, seconds: float, each_s: float = 1.0, workload: float = 10.0) -> list[float]:
        """Saturate the worker for `seconds`, with 4 requests in flight; return `max_perf` after each step."""
        worker, reported = self._worker, list[float]()
        running = [worker.begin(workload)]
        for number in range(round(4 * seconds / each_s)):
            worker.clock.advance(each_s / 4)
            await turns(4)
            if len(running) == 4:
                worker.end(running.pop(0))
            running.append(worker.begin(workload))
            if number % round(4 * STEP_S / each_s) == 0:
                reported.append(worker.readiness.max_perf)
        for request in running:
            worker.end(request, Outcome.CANCELLED)
        return reported

    async def rest(self, seconds: float) -> list[float]:
        """Let `seconds` pass without requests; return `max_perf` after each step."""
        reported: list[float] = []
        for _ in range(round(seconds / STEP_S)):
            self._worker.clock.advance(STEP_S)
            await turns(4)
            reported.append(self._worker.readiness.max_perf)
        return reported


@pytest.mark.parametrize(
    ("each_s", "expected"), [(1.0, 40.0), (0.25, 160.0), (0.05, PERF * MOST_MOVED), (8.0, PERF / MOST_MOVED)]
)
async def test_max_perf_follows_in_small_steps_after_a_minute_and_within_limits(
    each_s: float, expected: float
) -> None:
    worker = Driven()
    async with Moved(worker) as moved:
        assert set(await moved.serve(WINDOW_S - 5, each_s)) == {PERF}
        reported = await moved.serve(900.0, each_s)
        assert worker.readiness.max_perf == pytest.approx(expected, rel=0.03)
        changes = [
            (after / before - 1) * (1 if expected > PERF else -1) for before, after in pairwise(reported)
        ]
        assert all(-0.01 < change < 0.07 for change in changes)
        assert worker.readiness.benchmark_perf == PERF


async def test_without_evidence_it_returns_to_the_benchmarks_slowly() -> None:
    worker = Driven()
    async with Moved(worker) as moved:
        await moved.serve(900.0)
        low = worker.readiness.max_perf
        after_a_minute = (await moved.rest(60.0))[-1]
        assert low < after_a_minute < low * 1.05
        reported = await moved.rest(4 * 3600.0)
        assert reported == sorted(reported)
        assert reported[-1] == pytest.approx(PERF, rel=0.01)


async def test_a_new_result_of_the_benchmark_sets_it_anew() -> None:
    worker = Driven()
    async with Moved(worker) as moved:
        await moved.serve(900.0)
        worker.readiness.set_max_perf(70.0, "measured anew")
        assert worker.readiness.max_perf == 70.0
        assert set(await moved.rest(60.0)) == {70.0}
        await moved.serve(WINDOW_S - 10)
        assert worker.readiness.max_perf == pytest.approx(70.0)


async def test_a_worker_that_is_errored_keeps_it() -> None:
    worker = Driven()
    async with Moved(worker) as moved:
        await moved.serve(900.0)
        low = worker.readiness.max_perf
        worker.readiness.set_error(Cause.HEALTH, "no answer")
        assert set(await moved.rest(3600.0)) == {low}


async def test_one_huge_request_moves_it_by_less_than_the_limit_and_not_for_long() -> None:
    worker = Driven()
    async with Moved(worker) as moved:
        await moved.serve(900.0, each_s=0.4)  # 100 workload/s, as measured
        huge = worker.begin(MAX_WORKLOAD)
        await moved.serve(1.2, each_s=0.4)
        worker.end(huge)
        reported = await moved.serve(600.0, each_s=0.4)
        assert PERF < max(reported) < PERF * 2
        assert reported[-1] == pytest.approx(PERF, rel=0.05)


async def test_a_clock_that_jumps_moves_it_by_no_more_than_a_step_and_is_forgotten() -> None:
    worker = Driven()
    async with Moved(worker) as moved:
        await moved.serve(900.0, each_s=0.4)
        running = [worker.begin() for _ in range(4)]
        worker.clock.advance(0.1)
        before = worker.readiness.max_perf
        assert worker.live.saturated_s > 0
        worker.clock.jump(7200.0)
        for request in running:
            worker.end(request)
        worker.clock.advance(0.1)
        await turns(4)
        assert worker.readiness.max_perf > before * 0.93
        reported = await moved.serve(WINDOW_S + 600.0, each_s=0.4)
        assert min(reported) > PERF / 2
        assert reported[-1] == pytest.approx(PERF, rel=0.05)


async def test_a_worker_without_capacity_is_left_as_it_is() -> None:
    worker = Driven(perf=0.0)
    async with Moved(worker) as moved:
        await moved.serve(200.0)
        assert worker.readiness.max_perf == 0.0


def test_the_estimate_is_right_for_servers_of_random_requests() -> None:
    for seed in range(20):
        generator = random.Random(seed)
        worker = Driven(best=8)
        speed = generator.uniform(1.0, 50.0)  # of each request, in workload/s
        ends: list[tuple[float, WorkedRequest]] = []
        until_s = worker.clock.monotonic() + 200.0
        while worker.clock.monotonic() < until_s:
            while len(ends) < 8 + generator.randrange(3):
                work = generator.uniform(0.1, 100.0)
                ends.append((worker.clock.monotonic() + work / speed, worker.begin(work)))
            ends.sort(key=lambda end: end[0])
            at_s, first = ends.pop(0)
            worker.clock.advance(max(0.0, at_s - worker.clock.monotonic()))
            worker.end(first)
        assert 8 * speed * 0.97 < (worker.shown or 0.0) < 11 * speed
