"""The distribution of values, in bounded memory: exact for few values, then a histogram of a known error.

Owns the arithmetic. The meaning and the unit of the values are the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import repeat

# Up to this number, values are stored one by one, and percentiles are values that occurred.
EXACT = 10_000
# More values are counted in buckets. The upper bound of a bucket is its lower bound times GROWTH, and a value
# is reported as the geometric middle of its bucket, so the error is at most 0.5 %. From SMALLEST to a year
# (in seconds) there are about 3100 buckets.
GROWTH = 1.01
SMALLEST = 1e-6
MAX_ERROR = math.sqrt(GROWTH) - 1

PERCENTILES = (50, 90, 95, 99)

_LOG_GROWTH = math.log(GROWTH)


class Distribution:
    """A distribution of values ≥ 0.

    Percentiles of up to `exact` values are exact; `count`, `maximum` and `mean` always are.
    """

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
        """The relative error of a percentile, at most: 0.0, or 0.005 (half a bucket)."""
        return MAX_ERROR if self._buckets else 0.0

    @property
    def mean(self) -> float:
        """The arithmetic mean; 0.0 if there is no value."""
        return self._total / self.count if self.count else 0.0

    def add(self, value: float) -> None:
        """Add one value, ≥ 0."""
        self.count += 1
        self._total += value
        if value > self.maximum:
            self.maximum = value
        if value < self._minimum:
            self._minimum = value
        if self._buckets:
            self._count(value, 1)
            return
        self._values.append(value)
        if len(self._values) > self._exact:
            self._move_to_buckets()

    def update(self, values: Iterable[float]) -> None:
        """Add several values, each ≥ 0."""
        for value in values:
            self.add(value)

    def merge(self, other: Distribution) -> None:
        """Add all values of `other`."""
        if not other._buckets:
            self.update(other._values)
            return
        self._move_to_buckets()
        self.count += other.count
        self._total += other._total
        self.maximum = max(self.maximum, other.maximum)
        self._minimum = min(self._minimum, other._minimum)
        for bucket, count in other._buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count

    def percentile(self, percent: float) -> float:
        """The smallest value that at least `percent` percent of the values do not exceed (nearest rank).

        0.0 if there is no value.
        """
        if not self.count:
            return 0.0
        rank = max(1, math.ceil(percent / 100 * self.count))
        if not self._buckets:
            self._values.sort()
            return self._values[rank - 1]
        if rank == self.count:
            return self.maximum
        for value, up_to in self._cumulative_counts():
            if up_to >= rank:
                return value
        return self.maximum

    def summary(self) -> Mapping[str, float]:
        """The percentiles as `p50`, `p90`, `p95` and `p99`, and `max`; empty if there is no value."""
        if not self.count:
            return {}
        return {**{f"p{q}": self.percentile(q) for q in PERCENTILES}, "max": self.maximum}

    def cumulative(self) -> list[tuple[float, float]]:
        """The values in ascending order, each with the fraction of all (0 to 1) that come up to it.

        Of more than `exact` values, one per bucket.
        """
        return [(value, up_to / self.count) for value, up_to in self._cumulative_counts()]

    def _cumulative_counts(self) -> list[tuple[float, int]]:
        pairs: Iterable[tuple[float, int]]
        if self._buckets:
            pairs = ((self._middle(b), self._buckets[b]) for b in sorted(self._buckets))
        else:
            self._values.sort()
            pairs = zip(self._values, repeat(1), strict=False)
        counts: list[tuple[float, int]] = []
        up_to = 0
        for value, count in pairs:
            up_to += count
            counts.append((value, up_to))
        return counts

    def _move_to_buckets(self) -> None:
        """Move the values into buckets; from now on, values are only counted."""
        values, self._values = self._values, []
        for value in values:
            self._count(value, 1)

    def _count(self, value: float, count: int) -> None:
        bucket = math.floor(math.log(value / SMALLEST) / _LOG_GROWTH) if value > SMALLEST else 0
        self._buckets[bucket] = self._buckets.get(bucket, 0) + count

    def _middle(self, bucket: int) -> float:
        middle = SMALLEST * GROWTH ** (bucket + 0.5)
        return min(max(middle, self._minimum), self.maximum)
