"""The scaling plan of an endpoint: how many workers the documented scaling rules ask for.

Owns the arithmetic (docs/local-engine.md, "The scaling plan and autoscaling") and its explanation in a
sentence. Does not own the start and stop of workers: autoscale.py does that, by the target capacity alone.
Capacities and loads are in workload units per second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lib.local.fleet import WorkerRecord
from lib.local.groups import Scaling


@dataclass(frozen=True)
class ScalingPlan:
    """The workers of an endpoint as they are, and as they should be.

    Args:
        load: the workload per second that arrives, accepted or rejected.
        target_capacity: the capacity that should be ready for it.
        cold_capacity: the capacity that should be ready or stopped.
        ready_capacity: the capacity that is ready.
        worker_perf: the mean performance of the measured workers; None if none is measured.
        exploring: no worker is measured yet; workers are wanted to measure one.
        workers_ready: the number of workers that are ready.
        workers_cold: the number of workers that are ready or stopped.
        workers_ready_wanted: the number that should be ready.
        workers_cold_wanted: the number that should be ready or stopped.
    """

    load: float
    target_capacity: float
    cold_capacity: float
    ready_capacity: float
    worker_perf: float | None
    exploring: bool
    workers_ready: int
    workers_cold: int
    workers_ready_wanted: int
    workers_cold_wanted: int

    @property
    def reason(self) -> str:
        """A sentence that explains the number of workers wanted."""
        if self.worker_perf is None:
            return f"no worker is measured yet: {self.workers_ready_wanted} wanted for measurement"
        noun = "worker" if self.workers_ready_wanted == 1 else "workers"
        workers = f"{self.workers_ready_wanted} {noun} x {self.worker_perf:.4g}/s"
        return f"load {self.load:.4g}/s needs capacity {self.target_capacity:.4g}/s: {workers}"

    def to_json(self) -> dict[str, Any]:
        """The fields and the reason, as in the answer of `GET /local/plan`."""
        return {**asdict(self), "reason": self.reason}


def scaling_plan(workers: Sequence[WorkerRecord], scaling: Scaling, test_workers: int) -> ScalingPlan:
    """The plan for the workers of an endpoint, including stopped ones."""
    load = math.fsum(worker.arrival_rate for worker in workers)
    target = max(load, scaling.min_load) / scaling.target_util
    ready = [worker for worker in workers if worker.state == "ready"]
    cold = sum(worker.state in ("ready", "stopped") for worker in workers)
    measured = [worker.perf for worker in workers if worker.perf > 0]
    if measured:
        perf = math.fsum(measured) / len(measured)
        ready_wanted = _workers_for(target, perf, scaling.max_workers)
        by_capacity = _workers_for(target * scaling.cold_mult, perf, scaling.max_workers)
        cold_wanted = max(scaling.cold_workers, by_capacity, ready_wanted)
    else:
        perf = None
        ready_wanted = min(scaling.max_workers, test_workers)
        cold_wanted = max(scaling.cold_workers, ready_wanted)
    return ScalingPlan(
        load=load,
        target_capacity=target,
        cold_capacity=target * scaling.cold_mult,
        ready_capacity=math.fsum(worker.perf for worker in ready),
        worker_perf=perf,
        exploring=perf is None,
        workers_ready=len(ready),
        workers_cold=cold,
        workers_ready_wanted=ready_wanted,
        workers_cold_wanted=min(scaling.max_workers, cold_wanted),
    )


def _workers_for(capacity: float, perf: float, most: int) -> int:
    """The number of workers with performance `perf` that provide `capacity`, at most `most`."""
    if capacity / perf >= most:
        return most
    return max(math.ceil(capacity / perf), 1 if capacity > 0 else 0)  # any capacity above zero needs a worker
