"""How long requests took: waiting, to the first byte of their answer, and altogether.

Owns the record of the latest requests and the counts behind the histograms of `/metrics`. Times are
monotonic seconds of a clock; what became of a request is the ledger's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest

from aiohttp import web

from lib.runtime.clock import Clock

# `/status` finds the slowest among so many.
KEPT = 1000
# Upper bounds in seconds: from a quick classifier to a long video.
BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_KEY = "pyworker_first_byte"


@dataclass(frozen=True)
class Timing:
    """One authenticated request that ended. None: it never got there. `ended_at` is a Unix time."""

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
    """Counts of durations by upper bound, for as long as the process lives."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, duration_s: float) -> None:
        self.counts[bisect_left(BOUNDS_S, duration_s)] += 1
        self.sum_s += duration_s


class Timings:
    """The latest requests, and histograms of all."""

    def __init__(self) -> None:
        self.queue = Histogram()
        self.first_byte = Histogram()
        self.total = Histogram()
        self._latest: deque[Timing] = deque(maxlen=KEPT)

    def add(self, timing: Timing) -> None:
        """Note a request that has ended; one that was rejected is in no histogram: it would look fast."""
        self._latest.append(timing)
        if timing.outcome == "rejected":
            return
        self.queue.add(timing.queue_s)
        self.total.add(timing.total_s)
        if timing.first_byte_s is not None:
            self.first_byte.add(timing.first_byte_s)

    def slowest(self, count: int) -> Sequence[Timing]:
        """The slowest of the latest requests, the slowest first."""
        return nlargest(count, self._latest, key=lambda timing: timing.total_s)


class FirstByte:
    """When the first byte of one request's answer went out: of its body, where that comes in parts."""

    def __init__(self, request: web.Request, clock: Clock) -> None:
        self._clock = clock
        self._head_at: float | None = None
        self._part_at: float | None = None
        request[_KEY] = self

    @property
    def at(self) -> float | None:
        return self._head_at if self._part_at is None else self._part_at

    def head(self) -> None:
        """The status line is about to be written, with the body or ahead of it."""
        self._head_at = self._clock.monotonic()

    def part(self) -> None:
        """A part of the body is about to be written."""
        if self._part_at is None:
            self._part_at = self._clock.monotonic()

    @staticmethod
    def of(request: web.Request) -> FirstByte | None:
        """That of `request`, if it has one."""
        return request.get(_KEY)


async def note_head(request: web.Request, _response: web.StreamResponse) -> None:
    """For an application's `on_response_prepare`."""
    first_byte = FirstByte.of(request)
    if first_byte is not None:
        first_byte.head()
