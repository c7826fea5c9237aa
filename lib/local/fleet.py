"""The local engine's workers: their reports, their states, and the choice of one for the next request.

Owns the workers and which endpoint each reports to. Does not own the parsing of messages (messages.py). Loads
are in workload units, rates in workload units per second. Times are Unix seconds; names that end in `_s` are
seconds of the monotonic clock or durations.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal, get_args

from lib.runtime.clock import Clock
from lib.wire import WorkerStatus

WorkerState = Literal["loading", "ready", "error", "stopped"]

WORKER_STATES: tuple[WorkerState, ...] = get_args(WorkerState)

# A worker without a report for this long, in seconds, is stopped. Workers report at least every 10 s
# (docs/protocol.md, "Worker status"), so three reports in a row are missing.
SILENCE_S = 30.0
# The arrival rate is the average over this many seconds: long enough for several reports, short enough to
# follow a rising load.
ARRIVAL_WINDOW_S = 15.0
# Time constant of the load's rolling average, in seconds: the weight of a report this old is 1/e.
AVERAGE_WINDOW_S = 60.0


@dataclass(frozen=True)
class ReceivedReport:
    """An accepted report. `received_at` is in Unix seconds, `received_s` by the monotonic clock.

    `state` is the worker's state after it.
    """

    message: WorkerStatus
    endpoint: str
    received_at: float
    received_s: float
    state: WorkerState


class Totals:
    """Exact sums over all reports accepted. A report that was received twice counts twice."""

    def __init__(self) -> None:
        self._new_load = self._rej_load = self._cur_perf = Fraction(0)
        self.reports = 0

    @property
    def new_load(self) -> float:
        """The workload accepted."""
        return float(self._new_load)

    @property
    def rej_load(self) -> float:
        """The workload rejected."""
        return float(self._rej_load)

    @property
    def cur_perf(self) -> float:
        """The workload served."""
        return float(self._cur_perf)

    def add(self, message: WorkerStatus) -> None:
        """Add the amounts of one report."""
        self._new_load += Fraction(message.new_load)
        self._rej_load += Fraction(message.rej_load)
        self._cur_perf += Fraction(message.cur_perf)
        self.reports += 1


@dataclass
class WorkerRecord:
    """Everything that the engine knows about one worker.

    Args:
        reports: the latest ones, oldest first.
        loopback_url: the URL of its loopback port, as its last report named it; "" if it did not.
        pending: the cost of each request routed to it since its last report, by `request_idx`.
        routed: the number of requests routed to it.
        retired: it is being stopped by the engine: it finishes its requests and gets no more.
        draining: it answers that it is stopping: it finishes its requests and gets no more.
        unreachable: the error of the latest connection to it, if that was refused; otherwise "".
        lost: it is silent and its open requests were given up.
        changed_at: Unix time of the latest change of its state that did not come from silence.
        starts: the number of processes seen under this id.
        started_at: Unix time of the first report of the current process.
        loaded_at: Unix time of the current process's first report as loaded; 0.0 before that.
    """

    id: int
    clock: Clock
    reports: deque[ReceivedReport]
    loopback_url: str = ""
    totals: Totals = field(default_factory=Totals)
    pending: dict[int, float] = field(default_factory=dict[int, float])
    routed: int = 0
    retired: bool = False
    draining: bool = False
    unreachable: str = ""
    lost: bool = False
    changed_at: float = 0.0
    starts: int = 0
    started_at: float = 0.0
    loaded_at: float = 0.0
    cur_load_rolling_avg: float = 0.0

    @property
    def last(self) -> WorkerStatus | None:
        """The last accepted report, if any."""
        return self.reports[-1].message if self.reports else None

    @property
    def endpoint(self) -> str:
        """The endpoint of its last report; "" without a report."""
        return self.reports[-1].endpoint if self.reports else ""

    @property
    def silent(self) -> bool:
        """Whether it has not reported for 30 s, or never."""
        return not self.reports or self.clock.monotonic() - self.reports[-1].received_s > SILENCE_S

    @property
    def state(self) -> WorkerState:
        """`stopped` if it is gone or about to go; otherwise the state by its last report."""
        return "stopped" if self.silent or self.halted else self.reports[-1].state

    @property
    def halted(self) -> bool:
        """Whether it gets no requests, although it has reported lately."""
        return self.retired or self.draining or bool(self.unreachable)

    @property
    def why(self) -> str:
        """The reason that it is not ready, in words; "" if it is ready, or loading without an error."""
        if self.retired:
            return "stopped by --autoscale"
        if self.draining:
            return "ended after it drained" if self.unreachable or self.silent else "draining"
        if self.unreachable:
            return f"can't be reached: {self.unreachable}"
        if self.silent:
            return f"no report for {SILENCE_S:g} s"
        return self.last.error_msg if self.last else ""

    @property
    def since(self) -> float:
        """Unix time of the latest change of its state."""
        if self.silent and not self.halted and self.reports:
            return self.reports[-1].received_at + SILENCE_S
        return self.changed_at

    @property
    def perf(self) -> float:
        """Its measured performance, in workload units per second; 0.0 if not measured."""
        return self.last.max_perf if self.last else 0.0

    @property
    def arrival_rate(self) -> float:
        """Workload per second that arrived in the last 15 s, accepted or rejected."""
        since_s = self.clock.monotonic() - ARRIVAL_WINDOW_S
        recent = (r.message for r in self.reports if r.received_s > since_s)
        return math.fsum(message.new_load + message.rej_load for message in recent) / ARRIVAL_WINDOW_S

    @property
    def estimated_load(self) -> float:
        """The load in its last report plus the cost of requests routed to it since."""
        reported = max(0.0, self.last.cur_load) if self.last else 0.0
        return reported + math.fsum(self.pending.values())

    def add_report(self, endpoint: str, message: WorkerStatus) -> None:
        """Update the record with a report received by `endpoint`."""
        before, state_before = self.last, self.state
        state = "stopped" if self.halted else _state(message)
        report = ReceivedReport(message, endpoint, self.clock.wall(), self.clock.monotonic(), state)
        if before is None or _was_restarted(before, message):
            self.starts += 1
            self.started_at, self.loaded_at = report.received_at, 0.0
        if message.loadtime > 0 and not self.loaded_at:
            self.loaded_at = report.received_at
        weight = 1.0
        if before is not None:
            weight = -math.expm1((self.reports[-1].received_s - report.received_s) / AVERAGE_WINDOW_S)
        self.cur_load_rolling_avg += weight * (message.cur_load - self.cur_load_rolling_avg)
        self.pending.clear()
        self.lost = False
        if before is None or state != state_before:
            self.changed_at = report.received_at
        self.reports.append(report)
        self.totals.add(message)

    def retire(self, retired: bool) -> None:
        """Set whether the engine stops it."""
        before, self.retired = self.state, retired
        self._note_change(before)

    def see(self, draining: bool, unreachable: str) -> None:
        """Update the record with what its address answered."""
        before, was_halted = self.state, self.halted
        self.draining, self.unreachable = draining, unreachable
        if was_halted and not self.halted:
            self.reports[-1] = replace(self.reports[-1], state=_state(self.reports[-1].message))
        self._note_change(before)

    def _note_change(self, before: WorkerState) -> None:
        if self.state != before:
            self.changed_at = self.clock.wall()

    def to_json(self) -> dict[str, Any]:
        """An item of `/get_endpoint_workers/`; here, `dlperf` and `reliability` are constants."""
        message, reliability = self.reports[-1].message, 1.0
        return {
            "id": self.id,
            "status": self.state,
            "cur_load": message.cur_load,
            "cur_load_rolling_avg": self.cur_load_rolling_avg,
            "new_load": message.new_load,
            "cur_perf": message.cur_perf,
            "perf": message.max_perf * reliability,
            "measured_perf": message.max_perf,
            "dlperf": 0.0,
            "reliability": reliability,
            "reqs_working": message.num_requests_working,
            "disk_usage": message.disk_usage,
            "loaded_at": self.loaded_at,
            "started_at": self.started_at,
            "url": message.url,
        }


class Fleet:
    """All workers by id. Keeps at most `report_limit` reports of each."""

    def __init__(self, clock: Clock, report_limit: int) -> None:
        self._clock = clock
        self._report_limit = report_limit
        self.workers: dict[int, WorkerRecord] = {}

    def worker(self, worker_id: int) -> WorkerRecord:
        """The record of a worker; an empty one, which is not kept, if it has never reported."""
        return self.workers.get(worker_id) or WorkerRecord(
            worker_id, self._clock, deque(maxlen=self._report_limit)
        )

    def members(self, endpoint: str) -> list[WorkerRecord]:
        """The workers of `endpoint` by their last report, including stopped ones."""
        return [worker for worker in self.workers.values() if worker.endpoint == endpoint]

    def take_report(self, endpoint: str, message: WorkerStatus, loopback_url: str = "") -> WorkerRecord:
        """Record a report and return its worker, which joins `endpoint` and leaves any other."""
        worker = self.workers[message.id] = self.worker(message.id)
        worker.loopback_url = loopback_url
        worker.add_report(endpoint, message)
        return worker

    def forget(self, endpoint: str) -> None:
        """Delete the records of all workers of `endpoint`."""
        for worker in self.members(endpoint):
            del self.workers[worker.id]

    def pick(self, endpoint: str, avoid: Collection[str] = ()) -> WorkerRecord | None:
        """The ready worker of `endpoint` with the shortest queue time; None if none is ready.

        Ties go to the worker with the fewest requests routed to it, relative to its performance. Workers
        without a measured performance come last. Workers whose URL is in `avoid` are not picked.
        """
        ready = [
            worker
            for worker in self.members(endpoint)
            if worker.state == "ready" and worker.last and worker.last.url not in avoid
        ]
        return min(ready, key=_queue_time, default=None)

    def states(self, endpoint: str) -> dict[WorkerState, int]:
        """The number of workers of `endpoint` in each state, including zeros."""
        counts = dict.fromkeys(WORKER_STATES, 0)
        for worker in self.members(endpoint):
            counts[worker.state] += 1
        return counts


def _queue_time(worker: WorkerRecord) -> tuple[bool, float, float, int]:
    speed = worker.perf or 1.0
    return (worker.perf <= 0, worker.estimated_load / speed, worker.routed / speed, worker.id)


def _state(message: WorkerStatus) -> WorkerState:
    if message.error_msg:
        return "error"
    return "ready" if message.loadtime > 0 else "loading"


def _was_restarted(before: WorkerStatus, now: WorkerStatus) -> bool:
    """Whether the process was restarted between two reports: a counter that only grows is lower."""
    was_loaded = before.loadtime > 0 and now.loadtime == 0
    return was_loaded or now.num_requests_received < before.num_requests_received
