"""The local engine's logs, as `/get_endpoint_logs/` and `/get_autogroup_logs/` give them: four levels.

Owns the lines and how many are kept. What is worth a line is up to engine.py.
"""

from __future__ import annotations

from collections import deque
from datetime import datetime, timezone
from typing import Literal, get_args

# From what happens once to a worker to what happens with every report.
LogLevel = Literal["info0", "info1", "trace", "debug"]

LOG_LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)

# Of each level; a busy level doesn't push out another's lines.
MAX_LINES = 1000
# What a worker says of an error may be long.
MAX_LINE_CHARS = 500


class EngineLog:
    """The latest 1,000 lines of each level."""

    def __init__(self) -> None:
        self._lines: dict[LogLevel, deque[str]] = {level: deque(maxlen=MAX_LINES) for level in LOG_LEVELS}

    def add(self, level: LogLevel, wall: float, text: str) -> None:
        """A line, with its time; `wall` in Unix seconds."""
        at = datetime.fromtimestamp(wall, timezone.utc).isoformat(timespec="milliseconds")
        line = " ".join(text.split())
        short = line if len(line) <= MAX_LINE_CHARS else line[:MAX_LINE_CHARS] + "…"
        self._lines[level].append(f"{at} {short}")

    def to_json(self, tail: int | None = None) -> dict[str, str]:
        """Each level's lines as one text, the oldest first; of each the last `tail` where that is given."""
        count = MAX_LINES if tail is None else tail
        return {
            level: "\n".join(list(lines)[-count:] if count else []) for level, lines in self._lines.items()
        }
