"""Workers and open requests by their reports: states, restarts, averages, exact totals."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.local.fleet import Fleet, Totals
from lib.local.open_requests import OpenRequests
from tests.fakes.reports import READY
from tests.manual_clock import ManualClock


@pytest.mark.parametrize(
    ("loadtime", "error_msg", "state"),
    [(0.0, "", "loading"), (4.0, "", "ready"), (0.0, "broken", "error"), (4.0, "broken", "error")],
)
def test_states(loadtime: float, error_msg: str, state: str) -> None:
    clock = ManualClock()
    worker = Fleet(clock, 10).take_report("local", replace(READY, loadtime=loadtime, error_msg=error_msg))
    assert worker.state == state
    clock.advance(30.1)
    assert worker.state == "stopped"


def test_a_restart_resets_the_times_and_a_recovery_does_not() -> None:
    clock = ManualClock(wall_s=100.0)
    fleet = Fleet(clock, 10)
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


def test_the_rolling_average_decays_in_a_minute() -> None:
    clock = ManualClock()
    fleet = Fleet(clock, 10)
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
    assert [requests.open(0.0) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert len(requests) == 3
    assert 2 not in requests
    requests.close(2)
    requests.close(4)
    assert requests.open(0.0, 4) == 4
    assert requests.open(0.0) == 6


# 0 lets the engine choose; small numbers are those that it would choose itself.
@given(st.lists(st.just(0) | st.integers(0, 9) | st.integers(0, 30), max_size=30))
def test_no_number_is_used_twice(chosen: list[int]) -> None:
    requests = OpenRequests()
    given_out: set[int] = set()
    seen: set[int] = set()
    for request_idx in chosen:
        number = requests.open(0.0, request_idx)
        if request_idx:
            assert number == request_idx
        else:
            assert number not in given_out | seen
            given_out.add(number)
        seen.add(number)


def test_requests_of_a_gone_worker_are_closed() -> None:
    requests = OpenRequests()
    for worker_id in (7, 8, 7):
        requests.route(requests.open(0.0), worker_id, 0.0)
    assert requests.close_routed_to(7) == [1, 3]
    assert requests.worker_id(2) == 8
    assert requests.close_routed_to(7) == []


def test_abandoned_requests_are_closed_after_120_s() -> None:
    requests = OpenRequests()
    for _ in range(3):
        requests.open(0.0)
    requests.route(2, 7, 0.0)
    requests.open(20.0, 3)
    assert requests.close_abandoned(119.0, lambda _worker_id, _idx: False) == []
    assert requests.close_abandoned(120.0, lambda worker_id, idx: (worker_id, idx) == (7, 2)) == [1]
    assert (1 in requests, 2 in requests, 3 in requests) == (False, True, True)
    assert requests.close_abandoned(140.0, lambda _worker_id, _idx: True) == [3]
    assert requests.close_abandoned(239.0, lambda _worker_id, _idx: False) == []
    assert requests.close_abandoned(240.0, lambda _worker_id, _idx: False) == [2]


def test_the_routing_of_a_request_is_kept_after_its_end() -> None:
    requests = OpenRequests()
    number = requests.open(10.0, endpoint="local", cost=5.0)
    assert requests.waiting == 1
    requests.open(12.0, number)
    requests.route(number, 7, 12.0)
    requests.open(15.0, number)
    requests.route(number, 8, 15.0)
    assert requests.waiting == 0
    requests.close(number)
    routing = requests.routing(number)
    assert routing is not None
    assert (routing.endpoint, routing.cost, routing.worker_id) == ("local", 5.0, 8)
    assert (routing.waited_s, routing.times_routed) == (5.0, 2)
    assert requests.routing(99) is None


@pytest.mark.parametrize(
    "restarted", [{"loadtime": 0.0, "num_requests_received": 9}, {"num_requests_received": 8}]
)
def test_lower_counters_mean_another_process(restarted: dict[str, float]) -> None:
    fleet = Fleet(ManualClock(), 10)
    fleet.take_report("local", replace(READY, num_requests_received=9))
    fleet.take_report("local", replace(READY, num_requests_received=9))
    assert fleet.worker(7).starts == 1
    fleet.take_report("local", replace(READY, **restarted))  # type: ignore[arg-type] # ints and floats
    assert fleet.worker(7).starts == 2


def test_a_retired_worker_gets_no_requests_but_its_reports_count() -> None:
    fleet = Fleet(ManualClock(), 10)
    worker = fleet.take_report("local", READY)
    worker.retire(True)
    fleet.take_report("local", replace(READY, cur_perf=3.0))
    assert (worker.state, fleet.pick("local"), worker.totals.cur_perf) == ("stopped", None, 3.0)
    assert [report.state for report in worker.reports] == ["ready", "stopped"]
    assert worker.why == "stopped by --autoscale"


def test_a_draining_worker_gets_no_requests_whatever_it_reports() -> None:
    fleet = Fleet(ManualClock(), 10)
    worker = fleet.take_report("local", READY)
    worker.see(draining=True, unreachable="")
    assert (worker.state, worker.why, fleet.pick("local")) == ("stopped", "draining", None)
    fleet.take_report("local", READY)
    assert (worker.state, fleet.pick("local")) == ("stopped", None)
    worker.see(draining=True, unreachable="connection refused")
    assert worker.why == "ended after it drained"
    fleet.take_report("local", READY)
    worker.see(draining=False, unreachable="")
    assert (worker.state, worker.why, fleet.pick("local")) == ("ready", "", worker)


def test_an_unreachable_worker_is_stopped_until_it_is_reached() -> None:
    clock = ManualClock()
    fleet = Fleet(clock, 10)
    worker = fleet.take_report("local", READY)
    clock.advance(5.0)
    worker.see(draining=False, unreachable="connection refused")
    assert (worker.state, worker.why) == ("stopped", "can't be reached: connection refused")
    assert (fleet.pick("local"), worker.since) == (None, clock.wall())
    fleet.take_report("local", READY)
    clock.advance(5.0)
    worker.see(draining=False, unreachable="")
    assert (worker.state, worker.why, worker.since) == ("ready", "", clock.wall())


def test_a_state_lasts_since_its_first_report_or_the_end_of_the_limit() -> None:
    clock = ManualClock(wall_s=100.0)
    fleet = Fleet(clock, 10)
    seen: list[tuple[str, float, str]] = []
    for message in (replace(READY, loadtime=0.0), READY, READY, replace(READY, error_msg="broken")):
        worker = fleet.take_report("local", message)
        seen.append((worker.state, worker.since, worker.why))
        clock.advance(10.0)
    clock.advance(50.0)
    seen.append((worker.state, worker.since, worker.why))
    assert seen == [
        ("loading", 100.0, ""),
        ("ready", 110.0, ""),
        ("ready", 110.0, ""),
        ("error", 130.0, "broken"),
        ("stopped", 160.0, "no report for 30 s"),
    ]
