"""What an autoscaler that follows the documented rules would want now (launch.md), for one endpoint.

Owns the arithmetic, and its explanation in a sentence. Capacities and loads are in workload units a second.
Nothing here starts or stops anything: autoscale.py does, by the target capacity alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lib.local.fleet import WorkerRecord
from lib.local.groups import Scaling


@dataclass(frozen=True)
class Plan:
    """The fleet as it is, and as it should be.

    `load` is the workload that arrives, accepted or rejected. `target_capacity` is what should be ready for
    it, `cold_capacity` what should be ready or stopped. `worker_perf` is what one worker does, on average
    over those measured; it is None while none is, and `exploring` then says that workers are wanted to be
    measured. `workers_ready` are those ready now, `workers_cold` those ready or stopped.
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
        """Why so many workers are wanted."""
        if self.worker_perf is None:
            return f"no worker has been measured yet: {self.workers_ready_wanted} to explore"
        wanted = f"{self.workers_ready_wanted} of {self.worker_perf:.4g}"
        return f"a load of {self.load:.4g} wants a capacity of {self.target_capacity:.4g}: {wanted}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "reason": self.reason}


def plan(workers: Sequence[WorkerRecord], scaling: Scaling, test_workers: int) -> Plan:
    """The plan for the workers of an endpoint, those that are stopped included."""
    load = math.fsum(worker.arriving for worker in workers)
    target = max(load, scaling.min_load) / scaling.target_util
    ready = [worker for worker in workers if worker.state == "ready"]
    cold = sum(worker.state in ("ready", "stopped") for worker in workers)
    measured = [worker.perf for worker in workers if worker.perf > 0]
    if measured:
        perf = math.fsum(measured) / len(measured)
        ready_wanted = _workers(target, perf, scaling.max_workers)
        by_capacity = _workers(target * scaling.cold_mult, perf, scaling.max_workers)
        cold_wanted = max(scaling.cold_workers, by_capacity, ready_wanted)
    else:
        perf = None
        ready_wanted = min(scaling.max_workers, test_workers)
        cold_wanted = max(scaling.cold_workers, ready_wanted)
    return Plan(
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


def _workers(capacity: float, perf: float, most: int) -> int:
    """How many workers of `perf` have `capacity`; `most` where it takes as many, or more."""
    if capacity / perf >= most:
        return most
    return max(math.ceil(capacity / perf), 1 if capacity > 0 else 0)  # the least share of one takes one
