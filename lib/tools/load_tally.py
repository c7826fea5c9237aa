"""The figures of a load test, in memory that does not grow with its duration.

Owns what is counted, and for which requests. How the figures are printed is in lib/tools/load_report.py.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

from lib.tools.distribution import Distribution

OK = "ok"

# The times that are recorded, by the names under which they are printed. `LATE` is this process's own delay.
ROUTING, FIRST_BYTE, BETWEEN_CHUNKS, LATENCY = "routing", "first byte", "between chunks", "latency"
LATE = "late"
TIMES = (ROUTING, FIRST_BYTE, BETWEEN_CHUNKS, LATENCY, LATE)

# The timeline has at most MAX_SLICES slices. They are FIRST_SLICE_S seconds long, and longer in a long test.
MAX_SLICES = 120
FIRST_SLICE_S = 0.5
# Up to this number, the latencies of one slice are stored one by one.
EXACT_IN_SLICE = 100


@dataclass(slots=True)
class Sample:
    """One request. Times are in seconds: `due_s` from the start of the test, the others from the due time.

    `late_s` is when the request was sent, `routed_s` when the engine had named a worker, `first_byte_s` and
    `ended_s` when the answer began and ended; None is a step that was not reached. `gaps_s` are the times
    between the chunks of a streamed answer; it is empty for an answer with a `Content-Length`. `result` is
    `OK` or the kind of failure, `excerpt` the beginning of the answer or of the error's text. `workload` is
    in the worker's unit, `worker` its URL.
    """

    due_s: float
    late_s: float
    workload: float
    worker: str = ""
    result: str = OK
    excerpt: str = ""
    routed_s: float | None = None
    first_byte_s: float | None = None
    ended_s: float = 0.0
    gaps_s: array[float] = field(default_factory=lambda: array("d"))


class WorkerFigures:
    """The number of requests that were sent to one worker, and of failures by kind."""

    def __init__(self) -> None:
        self.requests = 0
        self.failures: Counter[str] = Counter()


class Slice:
    """The requests that ended within one slice of time; `latency` is of the successful ones."""

    def __init__(self) -> None:
        self.ok = 0
        self.failed = 0
        self.latency = Distribution(EXACT_IN_SLICE)

    def merge(self, other: Slice) -> None:
        """Add the requests of `other`."""
        self.ok += other.ok
        self.failed += other.failed
        self.latency.merge(other.latency)


class Tally:
    """The counts and times of all requests that have ended.

    `workload` and `times` are of successful requests only, since refusals are fast and would improve the
    figures. The exception is `times[LATE]`, how long after its due time a request was sent, which is of all
    requests. `slices` are consecutive, from the start of the test, and each is `slice_s` seconds long.
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
        """The number of successful requests."""
        return self.results[OK]

    @property
    def failed(self) -> int:
        """The number of failed requests."""
        return self.ended - self.ok

    @property
    def failures(self) -> list[tuple[str, int]]:
        """The kinds of failures and their numbers, the most frequent first."""
        return [(kind, count) for kind, count in self.results.most_common() if kind != OK]

    def add(self, sample: Sample) -> None:
        """Add a request that has ended."""
        self.ended += 1
        self.results[sample.result] += 1
        self.excerpts.setdefault(sample.result, sample.excerpt)
        self.times[LATE].add(sample.late_s)
        if sample.worker:
            self._count_worker(sample)
        at = self._slice_at(sample.due_s + sample.ended_s)
        if sample.result == OK:
            at.ok += 1
            at.latency.add(sample.ended_s)
            self._add_times(sample)
        else:
            at.failed += 1

    def _add_times(self, sample: Sample) -> None:
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
            self._double_slices()
        index = int(at_s / self.slice_s)
        while len(self.slices) <= index:
            self.slices.append(Slice())
        return self.slices[index]

    def _double_slices(self) -> None:
        """Double the length of the slices, by merging each two neighbours."""
        self.slice_s *= 2
        for first, second in zip(self.slices[::2], self.slices[1::2], strict=False):
            first.merge(second)
        self.slices = self.slices[::2]
