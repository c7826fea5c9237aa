"""A fleet of workers in virtual time: real queues, ledgers, live capacities and routing, without HTTP.

The engine's part is the local engine's: each request goes to the worker with the shortest queue time, by its
last report and what was sent to it since.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, cast

from anyio.abc import TaskGroup

from lib.local.fleet import Fleet
from lib.metrics import Entry, Ledger, Outcome
from lib.model.live_capacity import CapacityMover, LiveCapacity
from lib.model.readiness import Readiness
from lib.request.lanes import Lane, Lanes
from lib.runtime.clock import Clock, sleep
from lib.wire import WorkerStatus
from tests.fakes.plain_handler import PlainHandler
from tests.virtual_time import VirtualClock

ENDPOINT = "fleet"
REPORT_S = 1.0

# Works on a request with this workload, at the model server.
Work = Callable[[float], Awaitable[object]]
# Draws the workload of a request.
Draw = Callable[[random.Random], float]


@dataclass(eq=False)
class WorkedRequest:
    """The part of an exchange that `LiveCapacity` reads."""

    lane: Lane
    entry: Entry
    started_s: float | None = None
    ended_s: float | None = None
    status: int = 200

    @property
    def workload(self) -> float:
        return self.entry.workload

    @property
    def outcome(self) -> Outcome | None:
        return self.entry.outcome


class WatchedWorker:
    """A worker's queue with at most `slots` requests at the model server, its ledger and its live capacity.

    Its benchmark said `perf`, of `best` requests at once.
    """

    def __init__(self, clock: Clock, perf: float, best: int | None, slots: int | None) -> None:
        self.clock = clock
        self.best = best
        self.ledger = Ledger(clock)
        lanes = Lanes(clock, lambda: 1.0, is_parallel=True)
        self.lane = lanes.add(PlainHandler(max_concurrency=slots))
        self.readiness = Readiness((), False, clock)
        self.readiness.set_max_perf(perf, "benchmark")
        self.live = LiveCapacity(self.readiness, lambda: self.best, lanes.is_waiting, clock)

    def accept(self, workload: float) -> WorkedRequest:
        request = WorkedRequest(self.lane, self.ledger.open())
        request.entry.set_workload(workload)
        request.entry.accept()
        return request

    def start(self, request: WorkedRequest) -> None:
        """Note that `request`, which has its slot, is sent to the model server."""
        request.started_s = self.clock.monotonic()
        self.live.started(cast(Any, request))

    def end(self, request: WorkedRequest, outcome: Outcome = Outcome.SERVED, status: int = 200) -> None:
        self.lane.queue.release()
        request.ended_s, request.status = self.clock.monotonic(), status
        request.entry.set_outcome(outcome)
        self.live.ended(cast(Any, request))


@dataclass
class Minute:
    """A worker's minute: the loads it reported, its requests' waits for slots, and `max_perf` at its end."""

    loads: list[float] = field(default_factory=list[float])
    waits_s: list[float] = field(default_factory=list[float])
    max_perf: float = 0.0


class FleetWorker(WatchedWorker):
    """A watched worker that serves requests by `work`, and keeps a record of its minutes."""

    def __init__(
        self, number: int, work: Work, clock: VirtualClock, perf: float, best: int | None, slots: int | None
    ) -> None:
        super().__init__(clock, perf, best, slots)
        self.number = number
        self.minutes = [Minute()]
        self._work = work

    async def serve(self, workload: float) -> None:
        began_s, request = self.clock.monotonic(), self.accept(workload)
        if not self.lane.queue.try_acquire():
            await self.lane.queue.wait(None)
        self.start(request)
        self.minutes[-1].waits_s.append(self.clock.monotonic() - began_s)
        await self._work(workload)
        self.end(request)

    def report(self) -> WorkerStatus:
        snapshot = self.ledger.snapshot()
        self.ledger.acknowledge(snapshot)
        self.minutes[-1].loads.append(snapshot.cur_load)
        return WorkerStatus(
            id=self.number,
            mtoken="",
            url=f"http://{self.number}",
            loadtime=1.0,
            new_load=snapshot.new_load,
            cur_load=snapshot.cur_load,
            rej_load=0.0,
            cur_perf=snapshot.cur_perf,
            max_perf=self.readiness.max_perf,
            error_msg="",
            num_requests_working=snapshot.working,
            num_requests_received=snapshot.received,
            working_request_idxs=(),
            additional_disk_usage=0.0,
            disk_usage=0.0,
        )


class VirtualFleet:
    """Workers, and the requests that they are sent. `is_moving`: their `max_perf` follows what they show."""

    def __init__(
        self, workers: Sequence[FleetWorker], clock: VirtualClock, group: TaskGroup, is_moving: bool
    ) -> None:
        self.workers = workers
        self._clock = clock
        self._group = group
        self._fleet = Fleet(clock, 20)
        self._random = random.Random(1)
        self._sent = 0
        for worker in workers:
            self._fleet.take_report(ENDPOINT, worker.report())
            group.start_soon(self._report, worker)
            if is_moving:
                group.start_soon(CapacityMover(worker.live, worker.readiness).keep)

    async def send(self, workload: float) -> None:
        """Send a request to a worker, as the engine chooses; return after its answer."""
        record = self._fleet.pick(ENDPOINT)
        assert record is not None
        self._sent += 1
        record.pending[self._sent] = workload
        record.routed += 1
        await self.workers[record.id].serve(workload)

    async def arrive(self, rate: float, draw: Draw) -> None:
        """Send requests, `rate` per second in the mean, independent of each other."""
        while True:
            await sleep(self._clock, self._random.expovariate(rate))
            self._group.start_soon(self.send, draw(self._random))

    async def ask(self, draw: Draw) -> None:
        """Send requests one after the other, as one client."""
        while True:
            await self.send(draw(self._random))

    async def minute(self) -> None:
        """Return after a minute, which ends the workers' record of it."""
        await sleep(self._clock, 60.0)
        for worker in self.workers:
            worker.minutes[-1].max_perf = worker.readiness.max_perf
            worker.minutes.append(Minute())

    def shares(self, minutes: slice) -> list[float]:
        """The first worker's share of the fleet's load in each of `minutes`."""
        loads = [[fmean(minute.loads) for minute in worker.minutes[minutes]] for worker in self.workers]
        return [first / (first + sum(others)) for first, *others in zip(*loads, strict=True)]

    async def _report(self, worker: FleetWorker) -> None:
        while True:
            await sleep(self._clock, REPORT_S * self._random.uniform(0.8, 1.2))
            self._fleet.take_report(ENDPOINT, worker.report())
