"""The findings of `pyworker check`.

Owns their levels and how they are printed, as lines or as JSON. The checks are in lib/tools/inspection.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import Enum


class Level(str, Enum):
    """The severity of a finding; only a problem makes the check fail."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One fact about a worker; `about` is the part of the worker that it concerns."""

    level: Level
    about: str
    text: str


class Findings:
    """The findings of one check, in order; `worker` is the file that was checked."""

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self._found: list[Finding] = []

    def ok(self, about: str, text: str) -> None:
        """Add that a check succeeded."""
        self._found.append(Finding(Level.OK, about, text))

    def note(self, about: str, text: str) -> None:
        """Add a fact that needs no action."""
        self._found.append(Finding(Level.NOTE, about, text))

    def warning(self, about: str, text: str) -> None:
        """Add something that is probably wrong."""
        self._found.append(Finding(Level.WARNING, about, text))

    def problem(self, about: str, text: str) -> None:
        """Add something that is wrong: the check fails."""
        self._found.append(Finding(Level.PROBLEM, about, text))

    def problems(self, about: str, texts: Iterable[str]) -> None:
        """Add a problem for each text."""
        for text in texts:
            self.problem(about, text)

    def texts(self, level: Level) -> list[str]:
        """The texts of the findings of this level, each on one line."""
        return [" ".join(f.text.split()) for f in self._found if f.level is level]

    @property
    def failed(self) -> bool:
        """Whether there is a problem among them."""
        return any(f.level is Level.PROBLEM for f in self._found)

    def lines(self) -> list[str]:
        """One line for each finding, and a last line that counts problems and warnings."""
        lines = [f"{f.level.value:<8} {f.about:<13} {' '.join(f.text.split())}" for f in self._found]
        counts = Counter(f.level for f in self._found)
        totals = [_counted(counts[level], level.value) for level in (Level.PROBLEM, Level.WARNING)]
        return [*lines, f"{self.worker}: {', '.join(totals)}"]

    def as_json(self) -> str:
        """The findings as a JSON object: `worker`, `ok`, and `findings` with `level`, `about` and `text`."""
        return json.dumps(
            {"worker": self.worker, "ok": not self.failed, "findings": [asdict(f) for f in self._found]},
            indent=2,
        )


def _counted(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"
