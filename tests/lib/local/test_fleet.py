"""What the engine makes of reports: states, restarts, averages, exact totals."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.local.fleet import Fleet, Totals
from lib.local.open_requests import OpenRequests
from lib.wire import WorkerStatus
from tests.manual_clock import ManualClock

READY = WorkerStatus(
    id=7,
    mtoken="",
    url="http://127.0.0.1:3000",
    loadtime=4.0,
    new_load=0.0,
    cur_load=0.0,
    rej_load=0.0,
    cur_perf=0.0,
    max_perf=10.0,
    error_msg="",
    num_requests_working=0,
    num_requests_received=0,
    working_request_idxs=(),
    additional_disk_usage=0.0,
    disk_usage=1.0,
)


@pytest.mark.parametrize(
    ("loadtime", "error_msg", "state"),
    [(0.0, "", "loading"), (4.0, "", "ready"), (0.0, "broken", "error"), (4.0, "broken", "error")],
)
def test_states(loadtime: float, error_msg: str, state: str) -> None:
    clock = ManualClock()
    worker = Fleet(clock, "local", 10).take_report(
        "local", replace(READY, loadtime=loadtime, error_msg=error_msg)
    )
    assert worker.state == state
    clock.advance(30.1)
    assert worker.state == "stopped"


def test_a_restart_starts_anew_and_a_recovery_does_not() -> None:
    clock = ManualClock(wall_s=100.0)
    fleet = Fleet(clock, "local", 10)
    seen: list[tuple[float, float]] = []
    for message in (
        replace(READY, loadtime=0.0),
        READY,
        replace(READY, error_msg="broken"),
        READY,
        replace(READY, loadtime=0.0),
        READY,
    ):
        worker = fleet.take_report("local", message)
        seen.append((worker.started_at, worker.loaded_at))
        clock.advance(1.0)
    assert seen == [
        (100.0, 0.0),
        (100.0, 101.0),
        (100.0, 101.0),
        (100.0, 101.0),
        (104.0, 0.0),
        (104.0, 105.0),
    ]


def test_the_rolling_average_forgets_in_a_minute() -> None:
    clock = ManualClock()
    fleet = Fleet(clock, "local", 10)
    assert fleet.take_report("local", replace(READY, cur_load=100.0)).cur_load_rolling_avg == 100.0
    for _ in range(60):
        clock.advance(1.0)
        fleet.take_report("local", READY)
    assert math.isclose(fleet.worker(7).cur_load_rolling_avg, 100.0 / math.e)


@given(st.lists(st.floats(0.0, 1e300)))
def test_totals_are_exact(loads: list[float]) -> None:
    totals = Totals()
    for load in loads:
        totals.add(replace(READY, new_load=load))
    assert totals.new_load == float(sum(map(Fraction, loads), Fraction(0)))
    assert totals.reports == len(loads)


def test_open_requests_are_bounded_and_numbers_unique() -> None:
    requests = OpenRequests(limit=3)
    assert [requests.open() for _ in range(5)] == [1, 2, 3, 4, 5]
    assert len(requests) == 3
    assert 2 not in requests
    requests.close(2)
    requests.close(4)
    assert requests.open(4) == 4
    assert requests.open() == 6


@given(st.lists(st.integers(0, 30)))
def test_no_number_is_given_twice(brought: list[int]) -> None:
    requests = OpenRequests()
    given_out: set[int] = set()
    seen: set[int] = set()
    for request_idx in brought:
        number = requests.open(request_idx)
        if request_idx:
            assert number == request_idx
        else:
            assert number not in given_out | seen
            given_out.add(number)
        seen.add(number)
