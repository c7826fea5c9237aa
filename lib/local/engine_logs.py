"""The logs in the answers of `/get_endpoint_logs/` and `/get_autogroup_logs/`, at four levels.

Owns the lines and how many are kept. Does not own what is logged (engine.py, groups_api.py, autoscale.py).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal, get_args

# From rare events, such as a worker's state changes, to every report.
LogLevel = Literal["info0", "info1", "trace", "debug"]

LOG_LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)

# Kept for each level, so that a busy level doesn't push out the lines of another.
MAX_LINES = 1000
# Longer lines are cut: a worker's error message may be long.
MAX_LINE_CHARS = 500


@dataclass(frozen=True)
class LogLine:
    """One line of a log; `at` is in Unix seconds."""

    at: float
    text: str

    def __str__(self) -> str:
        return (
            f"{datetime.fromtimestamp(self.at, timezone.utc).isoformat(timespec='milliseconds')} {self.text}"
        )


class EngineLog:
    """The latest 1,000 lines of each level."""

    def __init__(self) -> None:
        self._lines: dict[LogLevel, deque[LogLine]] = {level: deque(maxlen=MAX_LINES) for level in LOG_LEVELS}

    def add(self, level: LogLevel, wall: float, text: str) -> None:
        """Add a line with its time, `wall`, in Unix seconds."""
        line = " ".join(text.split())
        short = line if len(line) <= MAX_LINE_CHARS else line[:MAX_LINE_CHARS] + "…"
        self._lines[level].append(LogLine(wall, short))

    def lines(self, level: LogLevel, count: int = MAX_LINES) -> list[LogLine]:
        """The last `count` lines of a level, oldest first."""
        return list(self._lines[level])[-count:] if count else []

    def to_json(self, tail: int | None = None) -> dict[str, str]:
        """The lines of each level as one text, oldest first; with `tail`, only the last `tail` of each."""
        count = MAX_LINES if tail is None else tail
        return {level: "\n".join(map(str, self.lines(level, count))) for level in LOG_LEVELS}
