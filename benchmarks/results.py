"""All figures of a run, by load, figure, subject and round, and the medians and ratios that follow.

Ratios are of two subjects in the same round: the machine's drift from round to round cancels out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.figures import FIGURES
from benchmarks.loads import Load

# By round.
Values = dict[int, float]


@dataclass(frozen=True)
class Spread:
    """The median of several rounds, with the lowest and the highest value."""

    median: float
    low: float
    high: float
    rounds: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """The spread of `values`, or None if there are none."""
        if not values:
            return None
        return cls(statistics.median(values), min(values), max(values), tuple(values))


@dataclass
class Results:
    """The figures of a run. `skipped` has reasons by subject, `failed` by (load, subject)."""

    loads: Sequence[Load]
    subjects: Sequence[str]
    rounds: int
    quick: bool
    machine: Mapping[str, str]
    skipped: Mapping[str, str]
    failed: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    _values: dict[tuple[str, str, str], Values] = field(default_factory=dict[tuple[str, str, str], Values])

    def add(self, load: Load, subject: str, number: int, figures: Mapping[str, float]) -> None:
        """Add the figures of round `number`."""
        for figure, value in figures.items():
            self._values.setdefault((load.name, figure, subject), {})[number] = value

    def figures(self, load: str) -> list[str]:
        """The names of the figures that were measured under `load`, in the order of `FIGURES`."""
        measured = {figure for name, figure, _ in self._values if name == load}
        return [name for name in FIGURES if name in measured]

    def values(self, load: str, figure: str, subject: str) -> Values:
        """A figure by round; empty if it was not measured."""
        return self._values.get((load, figure, subject), {})

    def spread(self, load: str, figure: str, subject: str) -> Spread | None:
        """The median of a figure, or None if it was not measured."""
        return Spread.of(list(self.values(load, figure, subject).values()))

    def ratio(self, load: str, figure: str, subject: str, other: str) -> Spread | None:
        """A figure of `subject` divided by that of `other`, round by round."""
        return ratio(self.values(load, figure, subject), self.values(load, figure, other))

    def added(self, load: str, figure: str, subject: str) -> Values:
        """The figure of `subject` less that of `direct`, by round."""
        of_subject, of_direct = (self.values(load, figure, name) for name in (subject, "direct"))
        return _by_round(of_subject, of_direct, lambda a, b: a - b)

    def as_json(self) -> dict[str, Any]:
        """All of it, for `--json`."""
        return {
            "quick": self.quick,
            "rounds": self.rounds,
            "machine": dict(self.machine),
            "subjects": list(self.subjects),
            "skipped": dict(self.skipped),
            "failed": [
                {"load": load, "subject": subject, "reason": reason}
                for (load, subject), reason in self.failed.items()
            ],
            "loads": {load.name: self._load_as_json(load) for load in self.loads},
        }

    def _load_as_json(self, load: Load) -> dict[str, Any]:
        figures = self.figures(load.name)
        others = [name for name in self.subjects if name != "worker"]
        return {
            "title": load.title,
            "figures": {
                figure: {
                    name: asdict(spread)
                    for name in self.subjects
                    if (spread := self.spread(load.name, figure, name))
                }
                for figure in figures
            },
            "worker_ratios": {
                figure: {
                    name: asdict(spread)
                    for name in others
                    if (spread := self.ratio(load.name, figure, "worker", name))
                }
                for figure in figures
                if FIGURES[figure].is_compared
            },
            "added_p50_us": {
                name: asdict(spread)
                for name in [*others, "worker"]
                if name != "direct"
                and (spread := Spread.of(list(self.added(load.name, "p50_us", name).values())))
            },
        }


def ratio(values: Values, others: Values) -> Spread | None:
    """`values` divided by `others`, of the rounds that both have; None without such a round.

    Rounds in which the divisor is not positive are left out: their ratio means nothing.
    """
    positive = {number: value for number, value in others.items() if value > 0}
    return Spread.of(list(_by_round(values, positive, lambda a, b: a / b).values()))


def _by_round(values: Values, others: Values, combine: Callable[[float, float], float]) -> Values:
    return {number: combine(value, others[number]) for number, value in values.items() if number in others}
