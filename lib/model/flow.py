"""A flow of requests to the model server: a number of them in flight, each that ends followed by the next.

Owns keeping that number in flight, and the record of what was done when. What the record says of the
throughput is in throughput.py, which numbers are tried is in benchmark.py.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_left
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
from anyio.abc import TaskGroup

from lib.metrics import MAX_WORKLOAD
from lib.runtime.clock import Clock, sleep

# Progress is added up over intervals of this length.
BIN_S = 0.05
# Seconds until a request that failed is followed by the next: a server that refuses at once must rest.
FAILURE_PAUSE_S = 0.5


@dataclass(frozen=True)
class Attempt:
    """The result of one request. `ok` for a 2xx read to its end; `message` is the model server's."""

    ok: bool
    workload: float
    message: str


class FlowRequest:
    """One request of a flow. Times are monotonic seconds; `first_s` is that of the first progress noted.

    `units` is the progress so far, `workload` what an ended request counted. `is_cold`: a warm-up.
    """

    __slots__ = ("_note", "began_s", "ended_s", "first_s", "is_cold", "units", "workload")

    def __init__(
        self, note: Callable[[FlowRequest, float], object], began_s: float, is_cold: bool = False
    ) -> None:
        self._note = note
        self.began_s = began_s
        self.is_cold = is_cold
        self.first_s: float | None = None
        self.ended_s = math.inf
        self.units = self.workload = 0.0

    def note(self, units: float = 1.0) -> None:
        """Note that a part of the request is done, in a unit that all requests of the flow have."""
        self._note(self, units)

    @property
    def duration_s(self) -> float:
        """Seconds from the request's beginning to its end; infinite before."""
        return self.ended_s - self.began_s

    @property
    def has_streamed(self) -> bool:
        """Whether progress was noted well before the request's end, and not all of it together."""
        return self.first_s is not None and self.ended_s - self.first_s > 2 * BIN_S


# Sends one request, notes its progress on the job, and returns after the last byte of the answer.
Send = Callable[[FlowRequest], Awaitable[Attempt]]


class Flow:
    """Requests in flight, and the record of those that ended; made by `flowing`.

    `ended` are the jobs that succeeded, in the order of their ends. `bins` has the progress by intervals of
    `BIN_S` since `began_s`. `level` is the number to keep in flight. `prompt_s` is how long the beginning of
    a request holds up the others, as far as it is known.
    """

    def __init__(self, send: Send, clock: Clock, group: TaskGroup, workload_per_unit: float = 0.0) -> None:
        self.clock = clock
        self._workload_per_unit = workload_per_unit  # before any request has ended
        self.began_s = clock.monotonic()
        self.level = 0
        self.prompt_s = 0.0
        self.bins: list[float] = []
        self.ended: list[FlowRequest] = []
        self.in_flight: set[FlowRequest] = set()
        self.failed = 0
        self.idle: list[tuple[float, float]] = []  # after each failure: the time, and the seconds lost by it
        self.last_message = ""
        self.failed_in_a_row = 0
        self.last_good_s = self.began_s  # of the last success or progress
        self.on_evidence: Callable[[], object] = _nothing
        self.unexpected: Exception | None = None
        self._send = send
        self._group = group
        self._workload = self._units = 0.0  # of the jobs that ended
        self._scopes: dict[int, anyio.CancelScope] = {}
        self._has_evidence = False
        self._changed = asyncio.Event()

    @property
    def is_streaming(self) -> bool:
        """Whether progress within requests is known: by the latest that ended, or else by those in flight."""
        if self.ended:
            latest = self.ended[-8:]
            return sum(job.has_streamed for job in latest) > len(latest) / 2
        now_s = self.clock.monotonic()
        return any(job.first_s is not None and now_s - job.first_s > 2 * BIN_S for job in self.in_flight)

    @property
    def workload_per_unit(self) -> float:
        """The workload of a unit of progress, by the requests that ended; 0.0 if it isn't known."""
        return self._workload / self._units if self._units > 0 else self._workload_per_unit

    def ended_since(self, at_s: float) -> list[FlowRequest]:
        """The jobs that have succeeded at the time `at_s` or later, in the order of their ends."""
        return self.ended[bisect_left(self.ended, at_s, key=_end) :]

    def set_level(self, level: int, is_cold: bool = False) -> None:
        """Keep `level` requests in flight from now on; cancel those beyond. `is_cold` marks new ones."""
        self.level = level
        for number in [number for number in self._scopes if number >= level]:
            self._scopes.pop(number).cancel()
        for number in range(level):
            if number not in self._scopes:
                scope = self._scopes[number] = anyio.CancelScope()
                self._group.start_soon(self._keep_one, scope, is_cold)

    def note_progress(self, job: FlowRequest, units: float) -> None:
        """Note `units` of progress of `job` now; what is no amount counts as none."""
        units = min(units, MAX_WORKLOAD) if units > 0 else 0.0
        now_s = self.clock.monotonic()
        if job.first_s is None:
            job.first_s = now_s
            self._note_evidence()
        job.units += units
        self.last_good_s = now_s
        number = int((now_s - self.began_s) / BIN_S)
        if number >= len(self.bins):
            self.bins.extend([0.0] * (number + 1 - len(self.bins)))
        self.bins[number] += units

    async def changed(self, limit_s: float) -> None:
        """Return once a request has ended, or after `limit_s` seconds."""
        self._changed.clear()
        timer = self.clock.call_later(limit_s, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            timer.cancel()

    async def _keep_one(self, scope: anyio.CancelScope, is_cold: bool) -> None:
        with scope:
            while True:
                if not await self._run_one(is_cold):
                    await sleep(self.clock, FAILURE_PAUSE_S)
                is_cold = False

    async def _run_one(self, is_cold: bool) -> bool:
        job = FlowRequest(self.note_progress, self.clock.monotonic(), is_cold)
        self.in_flight.add(job)
        try:
            attempt = await self._send(job)
        except Exception as e:
            self.unexpected = self.unexpected or e
            raise
        finally:
            self.in_flight.discard(job)
        job.ended_s = self.clock.monotonic()
        if attempt.ok:
            if math.isfinite(attempt.workload) and attempt.workload > 0:
                job.workload = min(attempt.workload, MAX_WORKLOAD)
            self.ended.append(job)
            self._workload += job.workload
            self._units += job.units
            self.failed_in_a_row, self.last_good_s = 0, job.ended_s
        else:
            self.failed += 1
            self.failed_in_a_row += 1
            self.idle.append((job.ended_s, job.duration_s + FAILURE_PAUSE_S))
            self.last_message = attempt.message
        self._note_evidence()
        self._changed.set()
        await anyio.lowlevel.checkpoint()  # a request that is answered at once must let others run
        return attempt.ok

    def _note_evidence(self) -> None:
        if not self._has_evidence:
            self._has_evidence = True
            self.on_evidence()


@asynccontextmanager
async def flowing(send: Send, clock: Clock, workload_per_unit: float = 0.0) -> AsyncGenerator[Flow, None]:
    """Make a flow, with no request in flight yet; at the end of the block all that are left are cancelled.

    `workload_per_unit` is that of an earlier flow, 0.0 if there was none.

    Raises what `send` raises.
    """
    flow: Flow | None = None
    try:
        async with anyio.create_task_group() as group:
            flow = Flow(send, clock, group, workload_per_unit)
            yield flow
            group.cancel_scope.cancel()
    except BaseException:
        if flow is not None and flow.unexpected is not None:
            raise flow.unexpected from None  # not the group's ExceptionGroup
        raise


async def send_alone(send: Send, clock: Clock) -> Attempt:
    """Send one request, without a flow. Raises what `send` raises."""
    return await send(FlowRequest(lambda job, units: None, clock.monotonic()))


def _end(job: FlowRequest) -> float:
    return job.ended_s


def _nothing() -> None:
    return None
