"""The benchmark: the flow of requests, the search, the time limit and failures, with a manual clock."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TypedDict

import pytest
from typing_extensions import Unpack

from lib.model.benchmark import (
    FIRST_ANSWER_LIMIT_S,
    Attempt,
    BenchmarkFailed,
    FlowRequest,
    Measurement,
    first_answer_limit_s,
    measure,
)
from lib.model.flow import FAILURE_PAUSE_S
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
    exception. Requests after those take `service_s` and succeed. It notes `events` of progress within each,
    at equal distances, of `units` each.
    """

    clock: ManualClock
    slots: int | None = None
    service_s: float = 1.0
    workload: float = 10.0
    events: int = 0
    units: float = 1.0
    always_fails: str = ""
    results: deque[float | str | Exception] = field(default_factory=deque["float | str | Exception"])
    sent_s: list[float] = field(default_factory=list[float])
    in_flight: int = 0
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        self.queue = SlotQueue(self.slots, self.clock)

    @property
    def sent(self) -> int:
        return len(self.sent_s)

    async def send(self, job: FlowRequest) -> Attempt:
        self.sent_s.append(self.clock.monotonic())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self.answer(job, self.results.popleft() if self.results else self.service_s)
        finally:
            self.in_flight -= 1

    async def answer(self, job: FlowRequest, result: float | str | Exception) -> Attempt:
        if isinstance(result, Exception):
            raise result
        if isinstance(result, str) or self.always_fails:
            return Attempt(False, self.workload, self.always_fails or str(result))
        async with holding(self.queue):
            for _ in range(self.events):
                await sleep(self.clock, result / self.events)
                job.note(self.units)
            if not self.events:
                await sleep(self.clock, result)
        return Attempt(True, self.workload, "200: fine")


class Options(TypedDict, total=False):
    runs: int | None
    concurrency: int | None
    max_concurrency: int | None
    target_s: float
    time_limit_s: float
    warm_up: bool
    first_limit_s: float


def start(model: FakeModel, **options: Unpack[Options]) -> asyncio.Task[Measurement]:
    return asyncio.create_task(
        measure(
            model.send,
            runs=options.get("runs", 1),
            concurrency=options.get("concurrency"),
            max_concurrency=options.get("max_concurrency"),
            target_s=options.get("target_s", 20.0),
            time_limit_s=options.get("time_limit_s", 300.0),
            clock=model.clock,
            warm_up=options.get("warm_up", True),
            first_limit_s=options.get("first_limit_s", FIRST_ANSWER_LIMIT_S),
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


def near(value: float, part: float = 0.05) -> object:
    return pytest.approx(value, rel=part)


# A concurrency that the author gives


@pytest.mark.parametrize(("runs", "ended"), [(1, 4), (3, 12), (0, 4), (-3, 4)])
async def test_as_many_as_given_are_in_flight_until_enough_have_ended(runs: int, ended: int) -> None:
    model = FakeModel(ManualClock())
    measured = await measured_with(model, concurrency=4, runs=max(1, runs))
    assert (measured.perf, measured.concurrency, model.most_in_flight) == (40.0, 4, 4)
    assert measured.succeeded == 1 + ended  # and the warm-up
    assert (measured.failed, measured.last_message) == (0, "")
    assert not measured.is_cut
    assert not measured.is_unsure


async def test_each_that_ends_is_followed_by_the_next() -> None:
    model = FakeModel(ManualClock(), results=results_of(1.0, 1.0, 4.0))
    measured = await measured_with(model, concurrency=2, runs=4)
    # One slow request holds up no other: the warm-up ends at 1 s, then one goes on beside the slow one.
    assert [at - model.sent_s[0] for at in model.sent_s[:6]] == [0, 1, 1, 2, 3, 4]
    assert measured.concurrency == 2


async def test_queued_requests_count_with_their_whole_duration() -> None:
    model = FakeModel(ManualClock(), slots=4, service_s=2.0, workload=100.0)
    measured = await measured_with(model, concurrency=16, runs=2)
    assert measured.perf == near(4 * 100.0 / 2.0)


@pytest.mark.parametrize(("fixed", "most", "sent"), [(8, 4, 4), (300, None, 300), (0, None, 1)])
async def test_a_fixed_concurrency_is_limited_to_the_maximum(fixed: int, most: int | None, sent: int) -> None:
    model = FakeModel(ManualClock())
    measured = await measured_with(model, concurrency=fixed, max_concurrency=most)
    assert (measured.concurrency, model.most_in_flight) == (sent, sent)


async def test_without_runs_it_ends_when_the_result_is_known() -> None:
    measured = await measured_with(FakeModel(ManualClock()), concurrency=4, runs=None)
    assert measured.perf == 40.0
    assert measured.duration_s <= 8.0


async def test_progress_within_requests_counts_before_they_end() -> None:
    model = FakeModel(ManualClock(), service_s=16.0, events=64)
    measured = await measured_with(model, concurrency=8, runs=None, target_s=20.0)
    assert measured.perf == near(8 * 10.0 / 16.0)
    assert measured.duration_s < 16.0 + 8.0  # a second round of them has not ended
    assert measured.workload_per_unit == near(10.0 / 64)


async def test_a_long_warm_up_that_streams_is_not_waited_for() -> None:
    model = FakeModel(ManualClock(), service_s=16.0, events=64)
    await measured_with(model, runs=None, target_s=20.0)
    assert model.sent_s[1] - model.sent_s[0] == near(2.0 + 16 / 64)  # two seconds after its first event


async def test_answers_that_take_longer_than_the_target_are_measured_by_their_progress() -> None:
    """The number that is best is found in events/s; one that ends alone shows the workload of an event."""
    model = FakeModel(ManualClock(), service_s=64.0, events=512, slots=16, workload=1000.0)
    measured = await measured_with(model, runs=None, target_s=20.0)
    assert measured.perf == near(16 * 1000.0 / 64.0)
    assert measured.workload_per_unit == near(1000.0 / 512)
    assert measured.duration_s < 64.0 + 1.0
    assert measured.succeeded == 1
    assert not measured.is_unsure


async def test_answers_of_which_none_ends_within_the_limit_are_a_failure() -> None:
    model = FakeModel(ManualClock(), service_s=4096.0, events=4096)
    with pytest.raises(BenchmarkFailed, match="no request of the benchmark succeeded within 60 s"):
        await measured_with(model, runs=None, target_s=20.0, time_limit_s=60.0)


# Failures


async def test_failed_requests_count_as_time_but_not_as_workload() -> None:
    model = FakeModel(ManualClock(), results=results_of(1.0, "500: out of memory", 2.0, "503: busy", 2.0))
    measured = await measured_with(model, concurrency=4)
    assert (measured.failed, measured.last_message) == (2, "503: busy")
    assert measured.perf < 40.0


async def test_a_request_after_a_failed_one_waits() -> None:
    model = FakeModel(ManualClock(), results=results_of(1.0, "503: busy", "503: busy", 1.0))
    await measured_with(model, concurrency=1, runs=1)
    times = [at - model.sent_s[0] for at in model.sent_s]
    assert times[1:4] == [1.0, 1.0 + FAILURE_PAUSE_S, 1.0 + 2 * FAILURE_PAUSE_S]


async def test_a_failed_warm_up_does_not_count_but_its_message_is_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = FakeModel(ManualClock(), results=results_of("500: still compiling"))
    measured = await measured_with(model, concurrency=2)
    assert (measured.perf, measured.failed) == (near(20.0, 0.25), 1)
    assert measured.last_message == "500: still compiling"
    assert caplog.messages == ["benchmark: the warm-up failed: 500: still compiling"]


async def test_the_warm_up_can_be_left_out() -> None:
    model = FakeModel(ManualClock())
    assert (await measured_with(model, concurrency=2, warm_up=False)).perf == 20.0
    assert model.sent_s[:2] == [model.sent_s[0]] * 2


@pytest.mark.parametrize("concurrency", [4, None])
async def test_a_model_that_always_fails_gets_few_requests_and_its_message_is_reported(
    concurrency: int | None,
) -> None:
    model = FakeModel(ManualClock(), always_fails="500: CUDA error")
    with pytest.raises(BenchmarkFailed, match=r"^no request of the benchmark succeeded: 500: CUDA error$"):
        await measured_with(model, concurrency=concurrency, runs=8)
    assert model.sent <= 1 + 8


async def test_a_model_that_begins_to_fail_fails_the_benchmark() -> None:
    model = FakeModel(ManualClock(), results=results_of(1.0, *(["500: gone"] * 1000)))
    with pytest.raises(BenchmarkFailed, match=r"^the model server has begun to fail: 500: gone$"):
        await measured_with(model, concurrency=2, runs=3)
    assert model.sent < 100


@pytest.mark.parametrize("workload", [0.0, math.nan, math.inf, -1.0])
async def test_a_workload_of_zero_or_no_amount_is_reported(workload: float) -> None:
    with pytest.raises(BenchmarkFailed, match="the workload counted is 0"):
        await measured_with(FakeModel(ManualClock(), workload=workload), concurrency=2)
    with pytest.raises(BenchmarkFailed, match="the workload counted is 0"):
        await measured_with(FakeModel(ManualClock(), workload=workload))  # after a search


async def test_no_throughput_is_infinite() -> None:
    model = FakeModel(ManualClock(), service_s=0.0, workload=1e308)
    assert math.isfinite((await measured_with(model, concurrency=20)).perf)


@pytest.mark.parametrize("units", [0.0, -1.0, math.nan, math.inf, 1e300])
async def test_progress_of_no_amount_does_not_end_the_benchmark(units: float) -> None:
    model = FakeModel(ManualClock(), slots=2, events=8, units=units)
    assert (await measured_with(model, concurrency=2, runs=4)).perf == near(20.0)


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
    while model.in_flight < 4:
        model.clock.advance(STEP_S)
        await run_event_loop_turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (model.in_flight, model.clock.pending) == (0, 0)


# The search


@pytest.mark.parametrize("events", [0, 16])
@pytest.mark.parametrize("slots", [1, 3, 4, 8, 20, 64])
async def test_the_throughput_of_all_places_is_found(slots: int, events: int) -> None:
    model = FakeModel(ManualClock(), slots=slots, service_s=2.0, events=events)
    measured = await measured_with(model, runs=None)
    assert measured.perf == near(slots * 10.0 / 2.0, 0.1)
    assert measured.duration_s <= 40.0


@pytest.mark.parametrize(("most", "tried"), [(None, 256), (6, 6), (1, 1), (1000, 256)])
async def test_the_search_ends_at_the_maximum(most: int | None, tried: int) -> None:
    model = FakeModel(ManualClock(), service_s=0.5)
    measured = await measured_with(model, max_concurrency=most)
    assert (measured.concurrency, model.most_in_flight) == (tried, tried)


# The time limit, and long jobs


async def test_every_level_that_was_tried_is_told() -> None:
    measured = await measured_with(FakeModel(ManualClock(), slots=16), runs=None)
    tried = [level.concurrency for level in measured.levels]
    assert tried == sorted(set(tried))
    assert {1, 4, 16} <= set(tried)
    assert measured.perf in [level.perf for level in measured.levels]


async def test_the_time_limit_counts_from_the_first_answer() -> None:
    model = FakeModel(ManualClock(), service_s=8.0, results=results_of(400.0))
    measured = await measured_with(model, concurrency=2, runs=100, time_limit_s=60.0)
    assert (measured.is_cut, measured.duration_s) == (True, near(460.0))
    assert measured.perf == near(20.0 / 8.0)
    assert not measured.is_unsure


async def test_a_model_that_hangs_fails_the_benchmark_with_a_reason() -> None:
    model = FakeModel(ManualClock(), service_s=math.inf)
    task = start(model, concurrency=2, time_limit_s=5.0)
    await run_event_loop_turns()
    model.clock.advance(FIRST_ANSWER_LIMIT_S)
    with pytest.raises(BenchmarkFailed, match=r"^no request of the benchmark succeeded within 1800 s"):
        await task
    assert model.sent == 1


@pytest.mark.parametrize("first_s", [310.0, 1700.0])
async def test_a_cold_models_first_answer_may_take_longer_than_the_time_limit(first_s: float) -> None:
    model = FakeModel(ManualClock(), service_s=8.0, results=results_of(first_s))
    measured = await measured_with(model, concurrency=2, runs=4, time_limit_s=300.0)
    assert measured.perf == near(20.0 / 8.0)
    assert not measured.is_cut


async def test_a_longer_limit_of_calls_is_that_of_the_first_answer() -> None:
    limit_s = first_answer_limit_s(3600.0)
    model = FakeModel(ManualClock(), service_s=8.0, results=results_of(3000.0))
    measured = await measured_with(model, concurrency=2, runs=4, first_limit_s=limit_s)
    assert measured.perf == near(20.0 / 8.0)


def test_a_shorter_limit_of_calls_leaves_time_for_a_request_of_several_calls() -> None:
    assert first_answer_limit_s(60.0) == first_answer_limit_s(None) == FIRST_ANSWER_LIMIT_S


async def test_two_long_jobs_that_agree_are_enough() -> None:
    model = FakeModel(ManualClock(), slots=1, service_s=64.0, results=results_of(65.0))
    measured = await measured_with(model, runs=None, max_concurrency=1)
    assert measured.perf == near(10.0 / 64.0)
    assert (measured.succeeded, measured.is_unsure, measured.is_cut) == (2, False, False)


async def test_a_single_long_job_counts_but_is_unsure() -> None:
    model = FakeModel(ManualClock(), slots=1, service_s=200.0)
    measured = await measured_with(model, runs=None, max_concurrency=1, time_limit_s=100.0)
    assert measured.perf == near(10.0 / 200.0)
    assert (measured.succeeded, measured.is_unsure, measured.is_cut) == (1, True, True)


async def test_progress_shows_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await measured_with(FakeModel(ManualClock(), service_s=2.0), concurrency=2, runs=3)
    assert caplog.messages == [
        "benchmark: warming up",
        "benchmark: 10 workload/s (± 3 %) with 2 in flight, after 8 s",
    ]
