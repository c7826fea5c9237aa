"""Durations of requests, in the record of the slowest and in histograms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lib.metrics import Outcome
from lib.request.timings import BOUNDS_S, MAX_TIMINGS, Histogram, Timing, Timings
from tests.manual_clock import ManualClock
from tests.system import System, with_worker_task


def timing(total_s: float, outcome: Outcome = Outcome.SERVED, first_byte_s: float | None = 0.1) -> Timing:
    return Timing("id", "POST", "/x", "POST /x", 200, outcome, 1.0, 0.0, first_byte_s, total_s, 0.0)


# The durations on both sides of each bound too.
DURATIONS = st.floats(0, 1e6) | st.sampled_from(
    [value for bound in BOUNDS_S for value in (math.nextafter(bound, 0), bound, math.nextafter(bound, 1e9))]
)


@given(st.lists(DURATIONS, max_size=50))
def test_a_histogram_counts_each_duration_once(durations: list[float]) -> None:
    histogram = Histogram()
    histogram.add(durations[:10])
    histogram.add(durations[10:])
    assert sum(histogram.counts) == len(durations)
    for i, bound in enumerate(BOUNDS_S):
        assert sum(histogram.counts[: i + 1]) == sum(d <= bound for d in durations)


def test_the_slowest_are_found_among_the_latest() -> None:
    timings = Timings(ManualClock())
    timings.add(timing(1000.0))
    for i in range(MAX_TIMINGS):
        timings.add(timing(float(i % 7)))
    assert [t.total_s for t in timings.slowest(3)] == [6.0, 6.0, 6.0]
    assert sum(timings.durations["POST /x"].total_s.counts) == MAX_TIMINGS + 1


def test_rejected_requests_and_missing_first_bytes_are_in_no_histogram() -> None:
    timings = Timings(ManualClock())
    timings.add(timing(0.001, outcome=Outcome.REJECTED))
    timings.add(timing(2.0, outcome=Outcome.CANCELLED, first_byte_s=None))
    durations = timings.durations["POST /x"]
    assert sum(durations.total_s.counts) == sum(durations.queue_s.counts) == 1
    assert sum(durations.first_byte_s.counts) == 0
    assert timings.answers.by_route_and_status == {("POST /x", 200): 2}
    assert [t.outcome for t in timings.slowest(9)] == [Outcome.CANCELLED, Outcome.REJECTED]


async def slowest(system: System) -> list[dict[str, Any]]:
    async with system.http.get(system.loopback_url + "/status") as answer:
        return (await answer.json())["slowest"]


async def test_the_first_byte_of_a_stream_comes_before_its_end(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        async with system.post("/stream", 3.0) as answer:
            system.model.step()
            await answer.content.readany()
            assert not await slowest(system)
            system.model.release()
            await answer.read()
        await system.reported(served=3.0)
        (timing,) = await slowest(system)
        assert (timing["route"], timing["status"], timing["outcome"]) == ("POST /stream", 200, "served")
        assert 0 <= timing["queue_s"] <= timing["first_byte_s"] < timing["total_s"]


async def test_an_answer_that_is_not_streamed_has_a_first_byte_too(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        for path in ("/echo", "/raising", "/missing"):
            await system.call(path, 1.0)
        await system.reported(served=2.0)  # a 404 is no work
        timings = await slowest(system)
        assert {t["route"] for t in timings} == {"POST /echo", "POST /raising", "POST /missing"}
        assert all(t["first_byte_s"] <= t["total_s"] for t in timings)


async def test_an_unauthenticated_request_is_not_in_the_record(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        async with system.http.post(system.url + "/echo", json={"auth_data": {}, "payload": {}}) as answer:
            assert answer.status == 422
        assert await slowest(system) == []
