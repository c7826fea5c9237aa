"""What `pyworker check` has found: one line each, and what of it is a problem."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import Enum


class Level(str, Enum):
    """How bad it is: only a problem makes the check fail."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One fact about a worker. `about` is the part of it that is concerned."""

    level: Level
    about: str
    text: str


class Findings:
    """The findings of one check, in order."""

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self._found: list[Finding] = []

    def ok(self, about: str, text: str) -> None:
        self._found.append(Finding(Level.OK, about, text))

    def note(self, about: str, text: str) -> None:
        self._found.append(Finding(Level.NOTE, about, text))

    def warning(self, about: str, text: str) -> None:
        self._found.append(Finding(Level.WARNING, about, text))

    def problem(self, about: str, text: str) -> None:
        self._found.append(Finding(Level.PROBLEM, about, text))

    def problems(self, about: str, texts: Iterable[str]) -> None:
        for text in texts:
            self.problem(about, text)

    @property
    def failed(self) -> bool:
        return any(f.level is Level.PROBLEM for f in self._found)

    def lines(self) -> list[str]:
        """Every finding on a line of its own, and the sum of them."""
        lines = [f"{f.level.value:<8} {f.about:<13} {' '.join(f.text.split())}" for f in self._found]
        counts = Counter(f.level for f in self._found)
        told = [_counted(counts[level], level.value) for level in (Level.PROBLEM, Level.WARNING)]
        return [*lines, f"{self.worker}: {', '.join(told)}"]

    def as_json(self) -> str:
        return json.dumps(
            {"worker": self.worker, "ok": not self.failed, "findings": [asdict(f) for f in self._found]},
            indent=2,
        )


def _counted(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
