"""What a load test has seen so far, in memory that does not grow with its length.

Owns what is counted and over which requests. How it is told is in load_report.py.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

from lib.tools.distribution import Distribution

OK = "ok"

# What is timed, in the order in which it happens; `LATE` is this process's own fault.
ROUTING, FIRST_BYTE, BETWEEN_CHUNKS, LATENCY = "routing", "first byte", "between chunks", "latency"
LATE = "late"
TIMES = (ROUTING, FIRST_BYTE, BETWEEN_CHUNKS, LATENCY, LATE)

# A test of any length is told over time in at most so many slices, the first of them this long, in seconds.
MAX_SLICES = 120
FIRST_SLICE_S = 0.5
# So many latencies of a slice are kept as they are.
EXACT_IN_SLICE = 100


@dataclass(slots=True)
class Sample:
    """One request. Times in seconds: `due_s` from the test's start, the others from when it was due.

    `result` is `OK`, or what kind of failure it was. A time is None for what was never reached. `gaps_s`
    is the time from each chunk of a streamed answer to the next: empty for one that has a length.
    """

    due_s: float
    left_s: float
    workload: float
    worker: str = ""
    result: str = OK
    excerpt: str = ""
    routed_s: float | None = None
    first_byte_s: float | None = None
    ended_s: float = 0.0
    gaps_s: array[float] = field(default_factory=lambda: array("d"))


class WorkerFigures:
    """What became of the requests that one worker was called with."""

    def __init__(self) -> None:
        self.requests = 0
        self.failures: Counter[str] = Counter()


class Slice:
    """What ended within one stretch of time; `latency` is of what succeeded."""

    def __init__(self) -> None:
        self.ok = 0
        self.failed = 0
        self.latency = Distribution(EXACT_IN_SLICE)

    def merge(self, other: Slice) -> None:
        self.ok += other.ok
        self.failed += other.failed
        self.latency.merge(other.latency)


class Tally:
    """Counts of all requests that have ended.

    `times` and `workload` are of successful ones only: a refusal is quick, and would look good. Only LATE,
    how long after its time a request left this process, is of all. `slices` are `slice_s` seconds each.
    """

    def __init__(self) -> None:
        self.ended = 0
        self.workload = 0.0
        self.results: Counter[str] = Counter()
        self.excerpts: dict[str, str] = {}  # the first of each result
        self.workers: dict[str, WorkerFigures] = {}
        self.times = {name: Distribution() for name in TIMES}
        self.slices: list[Slice] = []
        self.slice_s = FIRST_SLICE_S

    @property
    def ok(self) -> int:
        return self.results[OK]

    @property
    def failed(self) -> int:
        return self.ended - self.ok

    @property
    def failures(self) -> list[tuple[str, int]]:
        """Each kind of failure and how often it occurred, the most frequent first."""
        return [(kind, count) for kind, count in self.results.most_common() if kind != OK]

    def add(self, sample: Sample) -> None:
        """A request has ended."""
        self.ended += 1
        self.results[sample.result] += 1
        self.excerpts.setdefault(sample.result, sample.excerpt)
        self.times[LATE].add(sample.left_s)
        if sample.worker:
            self._count_worker(sample)
        at = self._slice_at(sample.due_s + sample.ended_s)
        if sample.result == OK:
            at.ok += 1
            at.latency.add(sample.ended_s)
            self._time(sample)
        else:
            at.failed += 1

    def _time(self, sample: Sample) -> None:
        self.workload += sample.workload
        self.times[LATENCY].add(sample.ended_s)
        if sample.routed_s is not None:
            self.times[ROUTING].add(sample.routed_s)
        if sample.first_byte_s is not None:
            self.times[FIRST_BYTE].add(sample.first_byte_s)
        self.times[BETWEEN_CHUNKS].update(sample.gaps_s)

    def _count_worker(self, sample: Sample) -> None:
        figures = self.workers.setdefault(sample.worker, WorkerFigures())
        figures.requests += 1
        if sample.result != OK:
            figures.failures[sample.result] += 1

    def _slice_at(self, at_s: float) -> Slice:
        while at_s >= MAX_SLICES * self.slice_s:
            self._widen()
        index = int(at_s / self.slice_s)
        while len(self.slices) <= index:
            self.slices.append(Slice())
        return self.slices[index]

    def _widen(self) -> None:
        """Slices twice as long, of each two that were neighbours."""
        self.slice_s *= 2
        for first, second in zip(self.slices[::2], self.slices[1::2], strict=False):
            first.merge(second)
        self.slices = self.slices[::2]
