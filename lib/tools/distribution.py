"""How values spread, in bounded memory: exact while there are few, then a histogram of a known error.

Owns the arithmetic. What the values are is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import repeat

# So many values are kept as they are, and percentiles are then values that occurred.
EXACT = 10_000
# Further ones are counted in buckets that are each this factor wide, and told as the middle of theirs: by no
# more than half a percent too much or too little. From a microsecond to a year that is 3200 buckets.
GROWTH = 1.01
SMALLEST = 1e-6
MAX_ERROR = math.sqrt(GROWTH) - 1

PERCENTILES = (50, 90, 95, 99)

_LOG_GROWTH = math.log(GROWTH)


class Distribution:
    """Values ≥ 0. Up to `exact` of them everything told is exact; `maximum` and `mean` always are."""

    def __init__(self, exact: int = EXACT) -> None:
        self.count = 0
        self.maximum = 0.0
        self._exact = exact
        self._minimum = math.inf
        self._total = 0.0
        self._values: list[float] = []
        self._buckets: dict[int, int] = {}

    @property
    def error(self) -> float:
        """By what part of itself a percentile may be wrong: 0.0, or half a bucket."""
        return MAX_ERROR if self._buckets else 0.0

    @property
    def mean(self) -> float:
        return self._total / self.count if self.count else 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self._total += value
        if value > self.maximum:
            self.maximum = value
        if value < self._minimum:
            self._minimum = value
        if self._buckets:
            self._tally(value, 1)
            return
        self._values.append(value)
        if len(self._values) > self._exact:
            self._fold()

    def update(self, values: Iterable[float]) -> None:
        for value in values:
            self.add(value)

    def merge(self, other: Distribution) -> None:
        """Take in all that `other` has seen."""
        if not other._buckets:
            self.update(other._values)
            return
        self._fold()
        self.count += other.count
        self._total += other._total
        self.maximum = max(self.maximum, other.maximum)
        self._minimum = min(self._minimum, other._minimum)
        for bucket, count in other._buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count

    def percentile(self, percent: float) -> float:
        """The least value that `percent` percent do not exceed (nearest rank); 0.0 if there is none."""
        if not self.count:
            return 0.0
        rank = max(1, math.ceil(percent / 100 * self.count))
        if not self._buckets:
            self._values.sort()
            return self._values[rank - 1]
        if rank == self.count:
            return self.maximum
        for value, up_to in self._cumulated():
            if up_to >= rank:
                return value
        return self.maximum

    def summary(self) -> Mapping[str, float]:
        """Percentiles as `p50`, …, and `max`; empty where there is no value."""
        if not self.count:
            return {}
        return {**{f"p{q}": self.percentile(q) for q in PERCENTILES}, "max": self.maximum}

    def curve(self) -> list[tuple[float, float]]:
        """Each value told, from the least, and which part of all (0 to 1) does not exceed it."""
        return [(value, up_to / self.count) for value, up_to in self._cumulated()]

    def _cumulated(self) -> list[tuple[float, int]]:
        pairs: Iterable[tuple[float, int]]
        if self._buckets:
            pairs = ((self._middle(b), self._buckets[b]) for b in sorted(self._buckets))
        else:
            self._values.sort()
            pairs = zip(self._values, repeat(1), strict=False)
        cumulated: list[tuple[float, int]] = []
        up_to = 0
        for value, count in pairs:
            up_to += count
            cumulated.append((value, up_to))
        return cumulated

    def _fold(self) -> None:
        """From now on, count in buckets."""
        values, self._values = self._values, []
        for value in values:
            self._tally(value, 1)

    def _tally(self, value: float, count: int) -> None:
        bucket = math.floor(math.log(value / SMALLEST) / _LOG_GROWTH) if value > SMALLEST else 0
        self._buckets[bucket] = self._buckets.get(bucket, 0) + count

    def _middle(self, bucket: int) -> float:
        middle = SMALLEST * GROWTH ** (bucket + 0.5)
        return min(max(middle, self._minimum), self.maximum)
