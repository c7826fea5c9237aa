"""The throughput to expect of a number of requests in flight that was not tried, by those that were.

Owns the curve: with few requests, the time that each takes grows by a line; past the knee it grows faster.
Which numbers are tried, and when that ends, is decided in benchmark.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# As many numbers between two that were tried are looked at.
LOOKED_AT = 24


@dataclass(frozen=True)
class Point:
    """A throughput in workload/s, with `concurrency` requests worked on at once."""

    concurrency: float
    throughput: float

    @property
    def time(self) -> float:
        """The time that a request takes, in seconds for each unit of its workload."""
        return self.concurrency / self.throughput


def expected_above(points: Sequence[Point], concurrency: float) -> float:
    """The throughput to expect of `concurrency`, which is above all `points`: the time grows by their line.

    `points` are in the order of their concurrency. Of one point: as if the time didn't grow.
    """
    return concurrency / _time_on_line(points, concurrency)


def best_between(below: Sequence[Point], above: Point) -> Point:
    """The best to hope for between the last of `below` and `above`.

    Up to there, the time grows by the line of `below`, and by what `above` takes more than that: with the
    square of the distance from there, as if the knee were half-way.
    """
    low, high = below[-1].concurrency, above.concurrency
    knee = math.sqrt(low * high)
    more = max(0.0, above.time - _time_on_line(below, high))

    def hoped(concurrency: float) -> Point:
        part = max(0.0, (concurrency - knee) / (high - knee))
        return Point(concurrency, concurrency / (_time_on_line(below, concurrency) + more * part * part))

    steps = [low * (high / low) ** (step / LOOKED_AT) for step in range(1, LOOKED_AT)]
    return max((hoped(concurrency) for concurrency in steps), key=lambda point: point.throughput)


def _time_on_line(points: Sequence[Point], concurrency: float) -> float:
    last = points[-1]
    if len(points) == 1:
        return last.time
    before = points[-2]
    slope = max(0.0, (last.time - before.time) / (last.concurrency - before.concurrency))
    return last.time + slope * (concurrency - last.concurrency)
