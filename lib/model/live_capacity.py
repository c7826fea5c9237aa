"""The capacity that real requests show, in workload/s, while the worker is saturated.

Owns the measurement (`LiveCapacity`) and the rule by which it moves the reported `max_perf` (`CapacityMover`;
docs/operating.md, "Live capacity"). The benchmark's measurement is in throughput.py.

By Little's law, the throughput is the number of requests in flight at the model server, times the workload
that one of them makes per second. Both are taken over saturated time only: of a request that began before,
the part that was worked on since then.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from lib.metrics import Outcome
from lib.model.readiness import Readiness, State
from lib.request.exchange import Exchange, Step
from lib.runtime.clock import Clock, sleep

# The window is this much saturated time, the latest, or more until this many requests have ended in it.
WINDOW_S = 60.0
WINDOW_REQUESTS = 4
# No part of the window is older, in seconds.
HORIZON_S = 600.0
# A window with less saturated time shows nothing.
SHOWN_FROM_S = 10.0
# What happens is added up over intervals of this length.
BUCKET_S = 1.0
# The reported `max_perf` is moved once in this many seconds.
STEP_S = 5.0
# Time constants: of saturated time, in which it follows the requests, and of other time, in which it returns
# to the benchmark's. Both count the seconds of their own kind only, so that where a worker is saturated now
# and then, it comes to rest in between: a switch from one to the other would make it swing.
FOLLOW_S = 120.0
RETURN_S = 1800.0
# The reported `max_perf` is within this factor of the benchmark's.
MOST_MOVED = 4.0


@dataclass(frozen=True)
class Observation:
    """A capacity in workload/s, by `saturated_s` seconds in which the worker was saturated, up to `at`.

    `at` is in Unix seconds. `is_enough`: it may move the reported `max_perf`.
    """

    workload_per_second: float
    at: float
    saturated_s: float
    is_enough: bool


@dataclass(slots=True)
class _Bucket:
    """The saturated time up to `until_s`, and the requests in it.

    `request_s` is the integral of the number in flight; `ended_s` and `workload` are those of the `ended`.
    """

    until_s: float
    saturated_s: float = 0.0
    request_s: float = 0.0
    ended_s: float = 0.0
    workload: float = 0.0
    ended: int = 0


class LiveCapacity:
    """Measures by the requests of a worker that is ready; an observer of them (lib/request/observers.py).

    The worker is saturated while `is_waiting` (a request waits for a slot), or while `best` (None: unknown)
    or more are in flight at the model server. A request that failed, or got a 4xx, has taken time and made no
    workload. The workload of one that was cancelled is unknown: it is left out.
    """

    def __init__(
        self,
        readiness: Readiness,
        best: Callable[[], int | None],
        is_waiting: Callable[[], bool],
        clock: Clock,
    ) -> None:
        self.clock = clock
        self._readiness = readiness
        self._best = best
        self._is_waiting = is_waiting
        # Requests that have started are noted, which costs next to nothing, and counted when one ends.
        self._new: list[Exchange] = []
        self.started: Step = self._new.append
        # The requests at the model server, with the saturated time at their beginnings.
        self._begun: dict[Exchange, float] = {}
        self._saturated_s = 0.0
        self._last_s = self._last_saturated_s = clock.monotonic()
        self._enough = math.inf
        self._is_ready = False
        self._benchmark_perf = 0.0
        self._bucket = _Bucket(self._last_s)
        self._buckets: deque[_Bucket] = deque()

    def ended(self, exchange: Exchange) -> None:
        """Count a request that has ended. If one waited for its slot, that has got it."""
        if exchange.started_s is None:
            return
        assert exchange.ended_s is not None
        self._count_started()
        self._advance(exchange.ended_s, exchange.lane.queue.is_full or self._is_waiting())
        saturated_s = self._saturated_s - self._begun.pop(exchange, self._saturated_s)
        if saturated_s > 0:
            self._count(exchange, saturated_s / (exchange.ended_s - exchange.started_s), saturated_s)

    @property
    def saturated_s(self) -> float:
        """Seconds in which the worker was saturated so far."""
        self._count_started()
        self._advance(self.clock.monotonic(), self._is_waiting())
        return self._saturated_s

    @property
    def observation(self) -> Observation | None:
        """The capacity by the latest saturated time; None without any, or without workload asked for."""
        self._count_started()
        now_s = self.clock.monotonic()
        self._advance(now_s, self._is_waiting())
        window = _Bucket(now_s)
        for bucket in (self._bucket, *reversed(self._buckets)):
            if bucket.until_s < now_s - HORIZON_S or _is_enough(window):
                break
            window.saturated_s += bucket.saturated_s
            window.request_s += bucket.request_s
            window.ended_s += bucket.ended_s
            window.workload += bucket.workload
            window.ended += bucket.ended
        if window.saturated_s < SHOWN_FROM_S or not window.ended:
            return None
        return Observation(
            workload_per_second=window.request_s / window.saturated_s * window.workload / window.ended_s,
            at=self.clock.wall() - (now_s - self._last_saturated_s),
            saturated_s=window.saturated_s,
            is_enough=_is_enough(window),
        )

    def _count_started(self) -> None:
        for exchange in self._new:
            assert exchange.started_s is not None
            self._advance(exchange.started_s, False)
            self._begun[exchange] = self._saturated_s
        self._new.clear()

    def _advance(self, now_s: float, is_waiting: bool) -> None:
        """Add up the time since the last call, in which the number in flight was the same.

        `is_waiting`: at the end of this time a request waited for a slot. All slots were taken since its
        beginning then.
        """
        if self._is_ready and (is_waiting or len(self._begun) >= self._enough):
            elapsed_s = now_s - self._last_s
            self._saturated_s += elapsed_s
            self._last_saturated_s = now_s
            bucket = self._bucket
            bucket.saturated_s += elapsed_s
            bucket.request_s += elapsed_s * len(self._begun)
        self._last_s = now_s
        if now_s >= self._bucket.until_s:
            self._begin_bucket(now_s)

    def _count(self, exchange: Exchange, part: float, saturated_s: float) -> None:
        """Count the `part` of a request that was worked on in `saturated_s` of saturated time."""
        outcome, bucket = exchange.outcome, self._bucket
        if outcome is Outcome.SERVED:
            bucket.ended_s += saturated_s
            if exchange.workload > 0 and exchange.status < 400:
                bucket.workload += exchange.workload * part
                bucket.ended += 1
        elif outcome is Outcome.ERRORED:
            bucket.ended_s += saturated_s
            bucket.ended += 1

    def _begin_bucket(self, now_s: float) -> None:
        """Keep the bucket that is over, forget old ones, and read what changes seldom."""
        if self._bucket.saturated_s or self._bucket.ended_s:
            self._buckets.append(self._bucket)
        while self._buckets and self._buckets[0].until_s < now_s - HORIZON_S:
            self._buckets.popleft()
        self._bucket = _Bucket(now_s + BUCKET_S)
        best, readiness = self._best(), self._readiness
        self._enough = math.inf if best is None else best
        self._is_ready = readiness.state is State.READY
        if readiness.benchmark_perf != self._benchmark_perf:  # what was seen before it says nothing about it
            self._benchmark_perf = readiness.benchmark_perf
            self._buckets.clear()


class CapacityMover:
    """Moves the `max_perf` of `readiness` towards what `live` shows, on evidence of a minute.

    It follows in saturated time, and returns to the benchmark's in other time. It stays within a quarter and
    four times that, and a new result of the benchmark sets it anew.
    """

    def __init__(self, live: LiveCapacity, readiness: Readiness) -> None:
        self._live = live
        self._readiness = readiness
        self._clock = live.clock
        self._last_s = live.clock.monotonic()
        self._last_saturated_s = live.saturated_s

    async def keep(self) -> None:
        """Move it as long as the worker runs."""
        while True:
            await sleep(self._clock, STEP_S)
            self._step()

    def _step(self) -> None:
        now_s, saturated_s = self._clock.monotonic(), self._live.saturated_s
        busy_s = saturated_s - self._last_saturated_s
        other_s = now_s - self._last_s - busy_s
        self._last_s, self._last_saturated_s = now_s, saturated_s
        readiness, observed = self._readiness, self._live.observation
        benchmark = readiness.benchmark_perf
        if benchmark <= 0 or readiness.state is not State.READY:
            return
        # Of logarithms, so that a half and the double are equally far. A step that comes late, after a clock
        # that jumped or a loop that was held up, moves no further than others.
        moved = math.log(readiness.max_perf / benchmark)
        if observed is not None and observed.is_enough:
            moved += _part(busy_s, FOLLOW_S) * (_bounded(observed.workload_per_second / benchmark) - moved)
        moved -= _part(other_s, RETURN_S) * moved
        readiness.move_max_perf(benchmark * math.exp(moved))


def _is_enough(window: _Bucket) -> bool:
    return window.saturated_s >= WINDOW_S and window.ended >= WINDOW_REQUESTS


def _part(seconds: float, time_constant_s: float) -> float:
    """The part of the way that is made in `seconds`, at most those of a step."""
    return -math.expm1(-min(max(seconds, 0.0), STEP_S) / time_constant_s)


def _bounded(ratio: float) -> float:
    """The logarithm of `ratio`, which is limited to what the reported `max_perf` may be moved by."""
    return math.log(min(max(ratio, 1 / MOST_MOVED), MOST_MOVED))
