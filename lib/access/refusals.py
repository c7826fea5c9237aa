"""The signatures that were refused: how many, and how many of late.

Owns counting them. They are for an operator, who sees that the engine's key and the clients' signatures don't
match: each client sees its own 401 only.
"""

from __future__ import annotations

from collections import deque

from lib.runtime.clock import Clock

RECENT_S = 60


class Refusals:
    """Counts refused signatures that are well-formed: those of clients, and those that look like them."""

    def __init__(self, clock: Clock) -> None:
        self.total = 0
        self._clock = clock
        self._seconds: deque[tuple[int, int]] = deque(maxlen=RECENT_S)  # each second's number, if it has one

    def note(self) -> None:
        """Count one."""
        self.total += 1
        second = int(self._clock.monotonic())
        count = self._seconds.pop()[1] if self._seconds and self._seconds[-1][0] == second else 0
        self._seconds.append((second, count + 1))

    def recent(self) -> int:
        """The number in the last `RECENT_S` seconds."""
        since = int(self._clock.monotonic()) - RECENT_S
        return sum(count for second, count in self._seconds if second > since)
