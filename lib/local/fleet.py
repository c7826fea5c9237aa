"""The local engine's workers: what each reported, what state that means, and which gets the next request.

Owns workers and the endpoints that they report to. Messages are read in messages.py. Loads are in workload
units, times in Unix seconds except where a name ends in `_s`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, get_args

from lib.runtime.clock import Clock
from lib.wire import WorkerStatus

WorkerState = Literal["loading", "ready", "error", "stopped"]

WORKER_STATES: tuple[WorkerState, ...] = get_args(WorkerState)

# Workers report every 10 s at the latest (protocol.md §3): three missed in a row, and it is gone.
SILENCE_S = 30.0
# The load that arrives is told by the reports of so many seconds: long enough for several of them, short
# enough for whoever watches a load rise.
ARRIVAL_S = 15.0
# How far back the rolling average of the load reaches: a report this old weighs 1/e of a new one.
AVERAGE_S = 60.0


@dataclass(frozen=True)
class ReceivedReport:
    """A report that was accepted, and when: `received_at` by wall time, `received_s` by the monotonic.

    `state` is what it made of its worker.
    """

    message: WorkerStatus
    endpoint: str
    received_at: float
    received_s: float
    state: WorkerState


class Totals:
    """Exact sums over every report accepted, as delivered: a report that came twice counts twice."""

    def __init__(self) -> None:
        self._new_load = self._rej_load = self._cur_perf = Fraction(0)
        self.reports = 0

    @property
    def new_load(self) -> float:
        return float(self._new_load)

    @property
    def rej_load(self) -> float:
        return float(self._rej_load)

    @property
    def cur_perf(self) -> float:
        return float(self._cur_perf)

    def add(self, message: WorkerStatus) -> None:
        self._new_load += Fraction(message.new_load)
        self._rej_load += Fraction(message.rej_load)
        self._cur_perf += Fraction(message.cur_perf)
        self.reports += 1


@dataclass
class WorkerRecord:
    """All that the engine knows of one worker; `reports` are the latest ones, the oldest first.

    `pending` is the cost of each request routed to it since its last report, by `request_idx`.
    `starts` counts the processes that it had. `loaded_at` is 0.0 until it says that it is loaded; a restart
    sets it back, and `started_at` anew.
    `retired` is one that was asked to end: it works on what it has, and gets nothing more. `lost` is one
    whose open requests were given up, because it is silent.
    """

    id: int
    clock: Clock
    reports: deque[ReceivedReport]
    totals: Totals = field(default_factory=Totals)
    pending: dict[int, float] = field(default_factory=dict[int, float])
    routed: int = 0
    retired: bool = False
    lost: bool = False
    starts: int = 0
    started_at: float = 0.0
    loaded_at: float = 0.0
    cur_load_rolling_avg: float = 0.0

    @property
    def last(self) -> WorkerStatus | None:
        """The last report accepted, if any."""
        return self.reports[-1].message if self.reports else None

    @property
    def endpoint(self) -> str:
        """The endpoint that its last report joined; "" if there was none."""
        return self.reports[-1].endpoint if self.reports else ""

    @property
    def silent(self) -> bool:
        """It never reported, or not for 30 s."""
        return not self.reports or self.clock.monotonic() - self.reports[-1].received_s > SILENCE_S

    @property
    def state(self) -> WorkerState:
        """The first of these that holds: stopped (silent or retired), error (it says so), loading, ready."""
        return "stopped" if self.silent or self.retired else self.reports[-1].state

    @property
    def perf(self) -> float:
        """What it measured, in workload units a second; 0.0 if it hasn't."""
        return self.last.max_perf if self.last else 0.0

    @property
    def arriving(self) -> float:
        """The workload a second that came to it lately, accepted or rejected."""
        since_s = self.clock.monotonic() - ARRIVAL_S
        recent = (r.message for r in self.reports if r.received_s > since_s)
        return math.fsum(message.new_load + message.rej_load for message in recent) / ARRIVAL_S

    @property
    def estimated_load(self) -> float:
        """The load it last reported, and the cost of what was routed to it since."""
        reported = max(0.0, self.last.cur_load) if self.last else 0.0
        return reported + math.fsum(self.pending.values())

    def take(self, endpoint: str, message: WorkerStatus) -> None:
        before, state = self.last, _state(message)
        report = ReceivedReport(
            message,
            endpoint,
            self.clock.wall(),
            self.clock.monotonic(),
            "stopped" if self.retired else state,
        )
        if before is None or _is_anew(before, message):
            self.starts += 1
            self.started_at, self.loaded_at = report.received_at, 0.0
        if message.loadtime > 0 and not self.loaded_at:
            self.loaded_at = report.received_at
        weight = 1.0
        if before is not None:
            weight = -math.expm1((self.reports[-1].received_s - report.received_s) / AVERAGE_S)
        self.cur_load_rolling_avg += weight * (message.cur_load - self.cur_load_rolling_avg)
        self.pending.clear()
        self.lost = False
        self.reports.append(report)
        self.totals.add(message)

    def to_json(self) -> dict[str, Any]:
        """An item of `/get_endpoint_workers/` (launch.md); `dlperf` and `reliability` are constants here."""
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
    """Every worker by its id. Of each at most `report_limit` reports are kept."""

    def __init__(self, clock: Clock, report_limit: int) -> None:
        self._clock = clock
        self._report_limit = report_limit
        self.workers: dict[int, WorkerRecord] = {}

    def worker(self, worker_id: int) -> WorkerRecord:
        """The record of a worker; for one that never reported an empty one, which is not kept."""
        return self.workers.get(worker_id) or WorkerRecord(
            worker_id, self._clock, deque(maxlen=self._report_limit)
        )

    def members(self, endpoint: str) -> list[WorkerRecord]:
        """The workers whose last report joined `endpoint`, stopped ones included."""
        return [worker for worker in self.workers.values() if worker.endpoint == endpoint]

    def take_report(self, endpoint: str, message: WorkerStatus) -> WorkerRecord:
        """Record a report. Its worker joins `endpoint`, and leaves the one it was in."""
        worker = self.workers[message.id] = self.worker(message.id)
        worker.take(endpoint, message)
        return worker

    def forget(self, endpoint: str) -> None:
        """No more is known of the workers of `endpoint`."""
        for worker in self.members(endpoint):
            del self.workers[worker.id]

    def pick(self, endpoint: str, avoid: Collection[str] = ()) -> WorkerRecord | None:
        """The ready worker of `endpoint` with the shortest queue in time; None if none is ready.

        Of equals the one that was routed to least for its speed; one without a measured speed comes last.
        Those whose URL is in `avoid` don't count.
        """
        ready = [
            worker
            for worker in self.members(endpoint)
            if worker.state == "ready" and worker.last and worker.last.url not in avoid
        ]
        return min(ready, key=_queue_time, default=None)

    def states(self, endpoint: str) -> dict[WorkerState, int]:
        """How many workers of `endpoint` are in each state, zeros included."""
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


def _is_anew(before: WorkerStatus, now: WorkerStatus) -> bool:
    """Whether a worker's process was started between two of its reports: what only grows is less."""
    was_loaded = before.loadtime > 0 and now.loadtime == 0
    return was_loaded or now.num_requests_received < before.num_requests_received
