"""The plan, by the documented rules."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from lib.local.fleet import ARRIVAL_S, Fleet
from lib.local.groups import Scaling, Workergroup
from lib.local.plan import Plan, plan
from tests.fakes.reports import READY
from tests.manual_clock import ManualClock


def planned(perfs: list[float], load: float, scaling: Scaling, test_workers: int = 3) -> Plan:
    """The plan for ready workers of these speeds, 0.0 for one not measured, that get `load` a second."""
    fleet = Fleet(ManualClock(), 10)
    for i, perf in enumerate(perfs):
        new_load = load * ARRIVAL_S if i == 0 else 0.0
        fleet.take_report("local", replace(READY, id=i, max_perf=perf, new_load=new_load))
    return plan(fleet.members("local"), scaling, test_workers)


def test_capacity_for_the_load_and_its_headroom() -> None:
    told = planned([10.0, 20.0], 54.0, Scaling())
    assert told.target_capacity == 54.0 / 0.9
    assert told.cold_capacity == 2.5 * told.target_capacity
    assert (told.ready_capacity, told.worker_perf) == (30.0, 15.0)
    assert (told.workers_ready, told.workers_ready_wanted) == (2, 4)
    assert (told.workers_cold, told.workers_cold_wanted) == (2, 10)
    assert told.reason == "a load of 54 wants a capacity of 60: 4 of 15"


def test_a_floor_under_the_load_and_a_bound_on_the_workers() -> None:
    assert planned([10.0], 0.0, Scaling(min_load=90.0)).target_capacity == 100.0
    assert planned([10.0], 0.0, Scaling(min_load=0.0)).workers_ready_wanted == 0
    assert planned([10.0], 0.0, Scaling(min_load=0.0)).workers_cold_wanted == 5
    bounded = planned([1.0], 1e6, Scaling(max_workers=7))
    assert (bounded.workers_ready_wanted, bounded.workers_cold_wanted) == (7, 7)
    assert planned([1.0], 0.0, Scaling(cold_workers=9, max_workers=4)).workers_cold_wanted == 4


def test_workers_to_explore_while_none_is_measured() -> None:
    told = planned([0.0], 500.0, Scaling())
    assert (told.exploring, told.worker_perf, told.workers_ready_wanted) == (True, None, 3)
    assert "3 to explore" in told.reason
    assert planned([], 0.0, Scaling(max_workers=2), test_workers=4).workers_ready_wanted == 2
    assert not planned([0.0, 5.0], 0.0, Scaling()).exploring


def test_the_load_is_what_came_lately_rejected_or_not() -> None:
    clock = ManualClock()
    fleet = Fleet(clock, 10)
    fleet.take_report("local", replace(READY, new_load=30.0, rej_load=15.0))
    worker = fleet.worker(7)
    assert worker.arriving == 45.0 / ARRIVAL_S
    clock.advance(ARRIVAL_S)
    fleet.take_report("local", replace(READY, new_load=15.0))
    assert worker.arriving == 15.0 / ARRIVAL_S


def test_a_group_overrides_what_it_names() -> None:
    group = Workergroup(1, 1, 0.0, template_id=1, min_load=0.0, cold_mult=1.0)
    assert group.over(Scaling(target_util=0.5)) == Scaling(min_load=0.0, target_util=0.5, cold_mult=1.0)


@given(
    st.lists(st.floats(0.0, 1e300), max_size=5),
    st.floats(0.0, 1e300),
    st.floats(0.0, 1e12),
    st.floats(0.01, 1.0),
    st.integers(0, 100_000),
    st.integers(0, 100_000),
)
def test_whatever_is_reported_a_plan_is_finite_and_within_bounds(
    perfs: list[float], load: float, min_load: float, target_util: float, cold: int, most: int
) -> None:
    scaling = Scaling(min_load=min_load, target_util=target_util, cold_workers=cold, max_workers=most)
    told = planned(perfs, load, scaling)
    assert 0 <= told.workers_ready_wanted <= told.workers_cold_wanted <= most
    assert told.workers_cold_wanted >= min(cold, most)
    if not told.exploring and told.workers_ready_wanted < most:
        assert told.worker_perf is not None
        assert told.workers_ready_wanted * told.worker_perf >= told.target_capacity * (1 - 1e-9)
    assert math.isfinite(told.cold_capacity)
    json.dumps(told.to_json(), allow_nan=False)
