"""Durations of requests: in the queue, to the first byte of the answer, and in total.

Owns the record of the latest requests and the histograms of `/metrics`. Durations are seconds of a monotonic
clock. It does not count outcomes: the ledger does (lib/metrics.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from heapq import nlargest
from typing import Any

import msgspec

from lib.metrics import Outcome
from lib.request.exchange import Exchange
from lib.request.observers import Observer
from lib.runtime.clock import Clock

# Number of latest requests among which `/status` finds the slowest.
MAX_TIMINGS = 1000
# Requests are counted in the histograms this many at a time, which costs less than one by one.
COUNTED_TOGETHER = 256
# Upper bounds of the buckets in seconds, for models from a fast classifier to long videos.
BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


class Timing(msgspec.Struct, gc=False):  # made for each request: in a quarter of a dataclass's time
    """One authenticated request that ended: durations in seconds, `ended_at` in Unix seconds.

    `first_byte_s` is None without an answer.
    """

    id: str
    method: str
    path: str
    status: int
    outcome: Outcome
    workload: float
    queue_s: float
    first_byte_s: float | None
    total_s: float
    ended_at: float

    def facts(self) -> dict[str, Any]:
        """The JSON of the request in `/status`."""
        return {
            "id": self.id,
            "route": f"{self.method} {self.path}",
            "status": self.status,
            "outcome": self.outcome.name.lower(),
            "workload": self.workload,
            "queue_s": self.queue_s,
            "first_byte_s": self.first_byte_s,
            "total_s": self.total_s,
            "ended_at": self.ended_at,
        }


class Histogram:
    """Counts of durations by upper bound, since the process started; the last count is above all bounds."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, durations_s: Iterable[float]) -> None:
        """Count durations."""
        for duration_s in durations_s:
            self.counts[bisect_left(BOUNDS_S, duration_s)] += 1
            self.sum_s += duration_s


class Timings(Observer):
    """The latest requests, and histograms of all requests since the start."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._queue_s = Histogram()
        self._first_byte_s = Histogram()
        self._total_s = Histogram()
        self._uncounted: list[Timing] = []
        self._latest: deque[Timing] = deque(maxlen=MAX_TIMINGS)

    @property
    def queue_s(self) -> Histogram:
        """Durations in the queue."""
        self._count()
        return self._queue_s

    @property
    def first_byte_s(self) -> Histogram:
        """Durations to the first byte of the answer, of requests that had one."""
        self._count()
        return self._first_byte_s

    @property
    def total_s(self) -> Histogram:
        """Durations in total."""
        self._count()
        return self._total_s

    def ended(self, exchange: Exchange) -> None:
        outcome, verdict = exchange.outcome, exchange.verdict
        if outcome is None or verdict is None:  # not authenticated
            return
        ended_s, started_s, began_s = exchange.ended_s, exchange.started_s, exchange.began_s
        assert ended_s is not None
        self.add(
            Timing(
                exchange.id,
                exchange.method,
                exchange.path,
                verdict.status,
                outcome,
                exchange.workload,
                (ended_s if started_s is None else started_s) - began_s,
                exchange.first_byte_s,
                ended_s - began_s,
                self._clock.wall(),
            )
        )

    def add(self, timing: Timing) -> None:
        """Add a request that has ended. Histograms leave rejected ones out: they would look fast."""
        self._latest.append(timing)
        self._uncounted.append(timing)
        if len(self._uncounted) >= COUNTED_TOGETHER:
            self._count()

    def _count(self) -> None:
        """Count what has ended since this was last called."""
        timings, self._uncounted = self._uncounted, []
        timings = [timing for timing in timings if timing.outcome is not Outcome.REJECTED]
        self._queue_s.add(timing.queue_s for timing in timings)
        self._total_s.add(timing.total_s for timing in timings)
        self._first_byte_s.add(t.first_byte_s for t in timings if t.first_byte_s is not None)

    def slowest(self, count: int) -> Sequence[Timing]:
        """The slowest of the latest requests, the slowest first."""
        return nlargest(count, self._latest, key=lambda timing: timing.total_s)
