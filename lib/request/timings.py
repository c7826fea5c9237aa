"""Durations of requests: in the queue, to the first byte of the answer, and in total.

Owns the record of the latest requests and the histograms of `/metrics`. Durations are seconds of a monotonic
clock. It does not count outcomes: the ledger does (lib/metrics.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest

from lib.metrics import Outcome
from lib.request.exchange import Exchange
from lib.request.observers import Observer
from lib.runtime.clock import Clock

# Number of latest requests among which `/status` finds the slowest.
MAX_TIMINGS = 1000
# Upper bounds of the buckets in seconds, for models from a fast classifier to long videos.
BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


@dataclass(frozen=True)
class Timing:
    """One authenticated request that ended: durations in seconds, `ended_at` in Unix seconds.

    `first_byte_s` is None without an answer.
    """

    id: str
    route: str
    status: int
    outcome: str
    workload: float
    queue_s: float
    first_byte_s: float | None
    total_s: float
    ended_at: float


class Histogram:
    """Counts of durations by upper bound, since the process started; the last count is above all bounds."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, duration_s: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BOUNDS_S, duration_s)] += 1
        self.sum_s += duration_s


class Timings(Observer):
    """The latest requests, and histograms of all requests since the start."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.queue_s = Histogram()
        self.first_byte_s = Histogram()
        self.total_s = Histogram()
        self._latest: deque[Timing] = deque(maxlen=MAX_TIMINGS)

    def ended(self, exchange: Exchange) -> None:
        outcome = exchange.outcome
        if outcome is None:  # not authenticated
            return
        self.add(
            Timing(
                id=exchange.id,
                route=f"{exchange.request.method} {exchange.request.path}",
                status=exchange.status,
                outcome=outcome.name.lower(),
                workload=exchange.workload,
                queue_s=exchange.queue_s,
                first_byte_s=exchange.first_byte_s,
                total_s=exchange.total_s,
                ended_at=self._clock.wall(),
            )
        )

    def add(self, timing: Timing) -> None:
        """Add a request that has ended. Histograms leave rejected ones out: they would look fast."""
        self._latest.append(timing)
        if timing.outcome == Outcome.REJECTED.name.lower():
            return
        self.queue_s.add(timing.queue_s)
        self.total_s.add(timing.total_s)
        if timing.first_byte_s is not None:
            self.first_byte_s.add(timing.first_byte_s)

    def slowest(self, count: int) -> Sequence[Timing]:
        """The slowest of the latest requests, the slowest first."""
        return nlargest(count, self._latest, key=lambda timing: timing.total_s)
