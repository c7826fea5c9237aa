"""Sums of workload, as the engine is told them in reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any, NamedTuple


class Sums(NamedTuple):
    """The sums that the engine was told, or should be."""

    new_load: float
    rej_load: float
    cur_perf: float

    def less(self, other: Sums) -> Sums:
        """These less `other`."""
        return Sums(*(a - b for a, b in zip(self, other, strict=True)))


def sums_of(each: Iterable[Any]) -> Sums:
    """The sums of reports, or of other `Sums`."""
    total = [0.0, 0.0, 0.0]
    for one in each:
        total[0] += one.new_load
        total[1] += one.rej_load
        total[2] += one.cur_perf
    return Sums(*total)


def explanations(
    told: Sums, right: Sums, unsure: Sequence[Sums], *, has_deficit: bool = False
) -> list[tuple[Sums, ...]]:
    """The sets of `unsure` reports that explain why `told` differs from `right`, if each was made twice.

    An empty set where they are equal. With a deficit, more may have been told as new load than is right.
    """
    return [
        twice
        for count in range(len(unsure) + 1)
        for twice in combinations(unsure, count)
        for more in [sums_of([right, *twice])]
        if told[1:] == more[1:] and (has_deficit or told.new_load == more.new_load)
    ]
