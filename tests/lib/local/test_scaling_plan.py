"""The scaling plan follows the documented rules."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from lib.local.fleet import ARRIVAL_WINDOW_S, Fleet
from lib.local.groups import Scaling, Workergroup
from lib.local.scaling_plan import ScalingPlan, scaling_plan
from tests.fakes.reports import READY
from tests.manual_clock import ManualClock


def plan_for(perfs: list[float], load: float, scaling: Scaling, test_workers: int = 3) -> ScalingPlan:
    """The plan for ready workers with these performances (0.0: not measured) and an arriving `load`/s."""
    fleet = Fleet(ManualClock(), 10)
    for i, perf in enumerate(perfs):
        new_load = load * ARRIVAL_WINDOW_S if i == 0 else 0.0
        fleet.take_report("local", replace(READY, id=i, max_perf=perf, new_load=new_load))
    return scaling_plan(fleet.members("local"), scaling, test_workers)


def test_capacity_for_the_load_and_its_headroom() -> None:
    plan = plan_for([10.0, 20.0], 54.0, Scaling())
    assert plan.target_capacity == 54.0 / 0.9
    assert plan.cold_capacity == 2.5 * plan.target_capacity
    assert (plan.ready_capacity, plan.worker_perf) == (30.0, 15.0)
    assert (plan.workers_ready, plan.workers_ready_wanted) == (2, 4)
    assert (plan.workers_cold, plan.workers_cold_wanted) == (2, 10)
    assert plan.reason == "load 54/s needs capacity 60/s: 4 workers x 15/s"


def test_a_minimum_load_and_a_maximum_of_workers() -> None:
    assert plan_for([10.0], 0.0, Scaling(min_load=90.0)).target_capacity == 100.0
    assert plan_for([10.0], 0.0, Scaling(min_load=0.0)).workers_ready_wanted == 0
    assert plan_for([10.0], 0.0, Scaling(min_load=0.0)).workers_cold_wanted == 5
    bounded = plan_for([1.0], 1e6, Scaling(max_workers=7))
    assert (bounded.workers_ready_wanted, bounded.workers_cold_wanted) == (7, 7)
    assert plan_for([1.0], 0.0, Scaling(cold_workers=9, max_workers=4)).workers_cold_wanted == 4


def test_workers_to_explore_while_none_is_measured() -> None:
    plan = plan_for([0.0], 500.0, Scaling())
    assert (plan.exploring, plan.worker_perf, plan.workers_ready_wanted) == (True, None, 3)
    assert "3 wanted for measurement" in plan.reason
    assert plan_for([], 0.0, Scaling(max_workers=2), test_workers=4).workers_ready_wanted == 2
    assert not plan_for([0.0, 5.0], 0.0, Scaling()).exploring


def test_the_load_is_the_recent_arrivals_accepted_or_rejected() -> None:
    clock = ManualClock()
    fleet = Fleet(clock, 10)
    fleet.take_report("local", replace(READY, new_load=30.0, rej_load=15.0))
    worker = fleet.worker(7)
    assert worker.arrival_rate == 45.0 / ARRIVAL_WINDOW_S
    clock.advance(ARRIVAL_WINDOW_S)
    fleet.take_report("local", replace(READY, new_load=15.0))
    assert worker.arrival_rate == 15.0 / ARRIVAL_WINDOW_S


def test_a_group_overrides_what_it_names() -> None:
    group = Workergroup(1, 1, 0.0, template_id=1, min_load=0.0, cold_mult=1.0)
    assert group.override(Scaling(target_util=0.5)) == Scaling(min_load=0.0, target_util=0.5, cold_mult=1.0)


@given(
    st.lists(st.floats(0.0, 1e300), max_size=5),
    st.floats(0.0, 1e300),
    st.floats(0.0, 1e12),
    st.floats(0.01, 1.0),
    st.integers(0, 100_000),
    st.integers(0, 100_000),
)
def test_any_report_makes_a_finite_plan_within_bounds(
    perfs: list[float], load: float, min_load: float, target_util: float, cold: int, most: int
) -> None:
    scaling = Scaling(min_load=min_load, target_util=target_util, cold_workers=cold, max_workers=most)
    plan = plan_for(perfs, load, scaling)
    assert 0 <= plan.workers_ready_wanted <= plan.workers_cold_wanted <= most
    assert plan.workers_cold_wanted >= min(cold, most)
    if not plan.exploring and plan.workers_ready_wanted < most:
        assert plan.worker_perf is not None
        assert plan.workers_ready_wanted * plan.worker_perf >= plan.target_capacity * (1 - 1e-9)
    assert math.isfinite(plan.cold_capacity)
    json.dumps(plan.to_json(), allow_nan=False)
