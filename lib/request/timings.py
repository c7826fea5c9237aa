"""Durations of requests: in the queue, to the first byte of the answer, and in total.

Owns the record of the latest requests and the histograms of `/metrics`. Durations are seconds of a monotonic
clock. It does not count outcomes: the ledger does (lib/metrics.py). Statuses are counted by answer_counts.py.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from heapq import nlargest
from typing import Any

import msgspec

from lib.metrics import Outcome
from lib.request.answer_counts import AnswerCounts
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

    `route` is the method and the declared path. `first_byte_s` is None without an answer.
    """

    id: str
    method: str
    path: str
    route: str
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

    def add(self, durations_s: Sequence[float]) -> None:
        """Count durations."""
        for duration_s in durations_s:
            self.counts[bisect_left(BOUNDS_S, duration_s)] += 1
            self.sum_s += duration_s


class RouteDurations:
    """Histograms of the requests of one route: in the queue, to the first byte if they had one, in total."""

    def __init__(self) -> None:
        self.queue_s = Histogram()
        self.first_byte_s = Histogram()
        self.total_s = Histogram()

    def add(self, timings: Sequence[Timing]) -> None:
        """Count requests."""
        # Lists, which cost less here than generators.
        self.queue_s.add([timing.queue_s for timing in timings])
        self.total_s.add([timing.total_s for timing in timings])
        self.first_byte_s.add([t.first_byte_s for t in timings if t.first_byte_s is not None])


class Timings(Observer):
    """The latest requests; counts by status and histograms of all requests since the start."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._answers = AnswerCounts()
        self._durations: defaultdict[str, RouteDurations] = defaultdict(RouteDurations)
        self._uncounted: list[Timing] = []
        self._latest: deque[Timing] = deque(maxlen=MAX_TIMINGS)

    @property
    def answers(self) -> AnswerCounts:
        """The requests by route and status."""
        self._count()
        return self._answers

    @property
    def durations(self) -> Mapping[str, RouteDurations]:
        """The durations by route; one that had no authenticated request is absent."""
        self._count()
        return self._durations

    def ended(self, exchange: Exchange) -> None:
        outcome, verdict = exchange.outcome, exchange.verdict
        if outcome is None or verdict is None:  # not authenticated
            self._answers.add(exchange.route, exchange.status)
            return
        ended_s, started_s, began_s = exchange.ended_s, exchange.started_s, exchange.began_s
        assert ended_s is not None
        self.add(
            Timing(
                exchange.id,
                exchange.method,
                exchange.path,
                exchange.route,
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
        alike: defaultdict[tuple[str, int], list[Timing]] = defaultdict(list)
        for timing in timings:
            alike[timing.route, timing.status].append(timing)
        for (route, status), its in alike.items():
            self._answers.add(route, status, len(its))
            self._durations[route].add([t for t in its if t.outcome is not Outcome.REJECTED])

    def slowest(self, count: int) -> Sequence[Timing]:
        """The slowest of the latest requests, the slowest first."""
        return nlargest(count, self._latest, key=lambda timing: timing.total_s)
