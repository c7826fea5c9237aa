"""The benchmark: rounds, the search for a concurrency, the time limit and failures, with a manual clock."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TypedDict

import pytest
from typing_extensions import Unpack

from lib.model.benchmark import Attempt, BenchmarkFailed, Measurement, measure
from lib.request.lanes import SlotQueue
from lib.runtime.clock import sleep
from tests.event_loop import run_event_loop_turns
from tests.manual_clock import ManualClock
from tests.slots import holding

# Durations are sums of powers of two, which are exact in floats.
STEP_S = 0.125


@dataclass
class FakeModel:
    """A model server with `slots` workers; each request takes `service_s` of the manual clock there.

    `results` are those of the first requests, in their order: a duration, the message of a failure, or an
    exception. Requests after those take `service_s` and succeed.
    """

    clock: ManualClock
    slots: int | None = None
    service_s: float = 1.0
    workload: float = 10.0
    always_fails: str = ""
    results: deque[float | str | Exception] = field(default_factory=deque["float | str | Exception"])
    sent: int = 0
    in_flight: int = 0
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        self.queue = SlotQueue(self.slots, self.clock)

    async def send(self) -> Attempt:
        self.sent += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self.answer(self.results.popleft() if self.results else self.service_s)
        finally:
            self.in_flight -= 1

    async def answer(self, result: float | str | Exception) -> Attempt:
        if isinstance(result, Exception):
            raise result
        if isinstance(result, str) or self.always_fails:
            return Attempt(False, self.workload, self.always_fails or str(result))
        async with holding(self.queue):
            await sleep(self.clock, result)
        return Attempt(True, self.workload, "200: fine")


class Options(TypedDict, total=False):
    runs: int
    concurrency: int | None
    max_concurrency: int | None
    time_limit_s: float
    warm_up: bool


def start(model: FakeModel, **options: Unpack[Options]) -> asyncio.Task[Measurement]:
    return asyncio.create_task(
        measure(
            model.send,
            runs=options.get("runs", 1),
            concurrency=options.get("concurrency"),
            max_concurrency=options.get("max_concurrency"),
            time_limit_s=options.get("time_limit_s", 300.0),
            clock=model.clock,
            warm_up=options.get("warm_up", True),
        )
    )


async def measured_with(model: FakeModel, **options: Unpack[Options]) -> Measurement:
    """Run `measure`, and advance the manual clock until it is done."""
    task = start(model, **options)
    await run_event_loop_turns()
    while not task.done():
        model.clock.advance(STEP_S)
        await run_event_loop_turns()
    assert model.in_flight == 0, "a request was left in flight"
    assert model.clock.pending == 0, "a timer was left"
    return task.result()


def results_of(*values: float | str | Exception) -> deque[float | str | Exception]:
    return deque(values)


async def test_a_round_lasts_until_its_last_answers_last_byte() -> None:
    model = FakeModel(ManualClock(), results=results_of(1.0, 1.0, 4.0))
    measured = await measured_with(model, concurrency=2)
    assert measured == Measurement(
        perf=20.0 / 4.0,
        concurrency=2,
        rounds=1,
        succeeded=2,
        failed=0,
        last_message="",
        timed_out=False,
    )


async def test_queued_requests_count_with_their_whole_duration() -> None:
    model = FakeModel(ManualClock(), slots=4, service_s=2.0, workload=100.0)
    measured = await measured_with(model, concurrency=16, runs=2)
    assert measured.perf == 4 * 100.0 / 2.0


async def test_the_best_round_counts() -> None:
    model = FakeModel(ManualClock(), results=results_of(8.0, 4.0, 1.0, 2.0))
    measured = await measured_with(model, concurrency=1, runs=3)
    assert (measured.perf, measured.rounds) == (10.0, 3)


@pytest.mark.parametrize("runs", [0, -3, 1])
async def test_there_is_at_least_one_round(runs: int) -> None:
    measured = await measured_with(FakeModel(ManualClock()), concurrency=3, runs=runs)
    assert (measured.rounds, measured.perf) == (1, 30.0)


async def test_failed_requests_count_as_time_but_not_as_workload() -> None:
    model = FakeModel(ManualClock(), results=results_of(1.0, "500: out of memory", 2.0, "503: busy", 2.0))
    measured = await measured_with(model, concurrency=4)
    assert measured.perf == 20.0 / 2.0
    assert (measured.succeeded, measured.failed, measured.last_message) == (2, 2, "503: busy")


async def test_a_failed_warm_up_does_not_count_but_its_message_is_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = FakeModel(ManualClock(), results=results_of("500: still compiling"))
    measured = await measured_with(model, concurrency=2)
    assert (measured.perf, measured.succeeded, measured.failed) == (20.0, 2, 0)
    assert measured.last_message == "500: still compiling"
    assert caplog.messages == ["benchmark: the warm-up failed: 500: still compiling"]


async def test_the_warm_up_can_be_left_out() -> None:
    model = FakeModel(ManualClock())
    assert (await measured_with(model, concurrency=2, warm_up=False)).perf == 20.0
    assert model.sent == 2


async def test_a_model_that_always_fails_gets_few_requests_and_its_message_is_reported() -> None:
    model = FakeModel(ManualClock(), always_fails="500: CUDA error")
    with pytest.raises(BenchmarkFailed, match=r"^no request of the benchmark succeeded: 500: CUDA error$"):
        await measured_with(model, concurrency=4, runs=8)
    assert model.sent == 1 + 4

    model = FakeModel(ManualClock(), always_fails="500: CUDA error")
    with pytest.raises(BenchmarkFailed):
        await measured_with(model, runs=8)
    assert model.sent == 1 + 1


async def test_a_model_that_fails_after_its_warm_up_still_gets_every_round() -> None:
    model = FakeModel(ManualClock(), results=results_of(1.0, "500: a", "500: b", 1.0, 1.0))
    measured = await measured_with(model, concurrency=2, runs=2)
    assert (measured.perf, measured.rounds, measured.failed) == (20.0, 2, 2)

    model = FakeModel(ManualClock(), results=results_of(1.0, *(["500: gone"] * 100)))
    with pytest.raises(BenchmarkFailed, match="500: gone"):
        await measured_with(model, concurrency=2, runs=3)
    assert model.sent == 1 + 6


# The search for a concurrency


async def test_the_concurrency_is_doubled_until_it_gains_nothing() -> None:
    model = FakeModel(ManualClock(), slots=8)
    measured = await measured_with(model, runs=3)
    assert (measured.concurrency, measured.perf) == (8, 80.0)
    assert model.most_in_flight == 16
    # Two rounds each at 1, 2, 4, 8 and 16, and three at the best.
    assert measured.rounds == 5 * 2 + 3


async def test_a_gain_below_five_per_cent_ends_the_search() -> None:
    # 4 is 3 % faster than 2: the best, but not enough to try 8.
    model = FakeModel(ManualClock(), results=results_of(1.0, *[16.0] * 2, *[16.0] * 4), service_s=31.0)
    measured = await measured_with(model)
    assert (measured.concurrency, model.most_in_flight) == (4, 4)
    assert measured.rounds == 3 * 2 + 1


async def test_concurrency_one_is_best_for_a_model_with_one_slot() -> None:
    model = FakeModel(ManualClock(), slots=1)
    measured = await measured_with(model)
    assert (measured.concurrency, measured.perf, model.most_in_flight) == (1, 10.0, 2)


@pytest.mark.parametrize(("most", "tried"), [(None, 256), (6, 6), (1, 1), (1000, 256)])
async def test_the_search_ends_at_the_maximum_concurrency(most: int | None, tried: int) -> None:
    model = FakeModel(ManualClock(), service_s=STEP_S)
    measured = await measured_with(model, max_concurrency=most)
    assert (measured.concurrency, model.most_in_flight) == (tried, tried)


@pytest.mark.parametrize(("fixed", "most", "sent"), [(8, 4, 4), (300, None, 300), (0, None, 1)])
async def test_a_fixed_concurrency_is_limited_to_the_maximum(fixed: int, most: int | None, sent: int) -> None:
    model = FakeModel(ManualClock())
    measured = await measured_with(model, concurrency=fixed, max_concurrency=most)
    assert (measured.concurrency, model.most_in_flight) == (sent, sent)


# The time limit


async def test_after_the_time_limit_completed_rounds_count() -> None:
    model = FakeModel(ManualClock(), service_s=2.0)
    measured = await measured_with(model, concurrency=2, runs=100, time_limit_s=7.0)
    assert (measured.perf, measured.rounds, measured.timed_out) == (10.0, 2, True)


async def test_after_the_time_limit_an_unfinished_first_round_counts() -> None:
    model = FakeModel(ManualClock(), results=results_of(1.0, 3.0, 100.0))
    measured = await measured_with(model, concurrency=2, time_limit_s=5.0)
    assert (measured.perf, measured.rounds, measured.succeeded) == (10.0 / 4.0, 0, 1)


async def test_after_the_time_limit_the_warm_up_counts_without_any_round() -> None:
    model = FakeModel(ManualClock(), service_s=4.0)
    measured = await measured_with(model, concurrency=2, time_limit_s=5.0)
    assert (measured.perf, measured.concurrency, measured.rounds, measured.succeeded) == (2.5, 1, 0, 0)


async def test_a_model_that_hangs_fails_the_benchmark_with_a_reason() -> None:
    model = FakeModel(ManualClock(), service_s=math.inf)
    with pytest.raises(BenchmarkFailed, match=r"^no request of the benchmark succeeded within 5 s$"):
        await measured_with(model, concurrency=2, time_limit_s=5.0)
    assert model.sent == 1


# Failures


@pytest.mark.parametrize("workload", [0.0, math.nan, math.inf, -1.0])
async def test_a_workload_of_zero_or_no_amount_is_reported(workload: float) -> None:
    with pytest.raises(BenchmarkFailed, match="the workload counted is 0"):
        await measured_with(FakeModel(ManualClock(), workload=workload), concurrency=2)


async def test_no_throughput_is_infinite() -> None:
    model = FakeModel(ManualClock(), service_s=0.0, workload=1e308)
    assert math.isfinite((await measured_with(model, concurrency=20)).perf)


@pytest.mark.parametrize("before", [[], [1.0], [1.0, 5.0, 5.0]])
async def test_an_unexpected_exception_is_raised_itself_and_ends_the_other_requests(
    before: list[float],
) -> None:
    model = FakeModel(ManualClock(), results=results_of(*before, ZeroDivisionError("author's")))
    with pytest.raises(ZeroDivisionError, match="author's"):
        await measured_with(model, concurrency=4)


async def test_a_cancelled_benchmark_leaves_nothing_in_flight() -> None:
    model = FakeModel(ManualClock())
    task = start(model, concurrency=4)
    await model.clock.wait_for_timers(2)
    model.clock.advance(1.0)
    await run_event_loop_turns()
    assert model.in_flight == 4
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (model.in_flight, model.clock.pending) == (0, 0)


async def test_progress_shows_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await measured_with(FakeModel(ManualClock(), service_s=2.0), concurrency=2, runs=3)
    assert caplog.messages == [
        "benchmark: warming up",
        "benchmark: round 1 of 3, concurrency 2: 10 workload/s, about 4 s left",
        "benchmark: round 2 of 3, concurrency 2: 10 workload/s, about 2 s left",
        "benchmark: round 3 of 3, concurrency 2: 10 workload/s, about 0 s left",
    ]


async def test_the_search_shows_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await measured_with(FakeModel(ManualClock(), slots=1), time_limit_s=100.0)
    assert caplog.messages[1:3] == [
        "benchmark: 10 workload/s at concurrency 1, at most 97 s left",
        "benchmark: 10 workload/s at concurrency 2, at most 93 s left",
    ]
