"""Counts of ended requests by route and status, for `/metrics`.

Owns the counts. The requests of handlers are counted by their exchanges (timings.py), all others by the port
(lib/front/front.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


class AnswerCounts:
    """Counts requests that have ended by their route and status."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, int]] = Counter()

    @property
    def by_route_and_status(self) -> Mapping[tuple[str, int], int]:
        """The counts."""
        return self._counts

    def add(self, route: str, status: int, count: int = 1) -> None:
        """Count requests of one route and status."""
        self._counts[route, status] += count
