"""Which requests the local engine has numbered and not seen finished.

Owns the numbers, `request_idx`, which are unique over the whole engine, and how long one stays open. What
requests cost a worker is in fleet.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Clients that poll while no worker is ready open requests that nobody ever closes.
MAX_OPEN = 100_000
# A request that nobody works on and nobody asks for again: its client has given up, in seconds.
ABANDONED_S = 600.0


@dataclass
class _Open:
    """`worker_id` is the worker it was last routed to, if any; `asked_s` when it was last asked for."""

    asked_s: float
    worker_id: int | None = None


class OpenRequests:
    """Numbers requests from 1, and remembers the worker that each open one was last routed to.

    Times are seconds of the engine's monotonic clock.
    """

    def __init__(self, limit: int = MAX_OPEN) -> None:
        self._limit = limit
        self._last = 0
        self._open: dict[int, _Open] = {}  # the one that was asked for the longest ago comes first
        self._brought: dict[int, None] = {}

    def __contains__(self, request_idx: object) -> bool:
        return request_idx in self._open

    def __len__(self) -> int:
        return len(self._open)

    def open(self, now_s: float, request_idx: int = 0) -> int:
        """The number of a new request, or, for a retry, `request_idx` itself.

        A number that the engine did not give (it was restarted meanwhile) is kept too, and not given again.
        """
        if request_idx > self._last:
            self._brought[request_idx] = None
            _bound(self._brought, self._limit)
        elif not request_idx:
            self._last += 1
            while self._last in self._brought:
                self._last += 1
            request_idx = self._last
        before = self._open.pop(request_idx, None)
        self._open[request_idx] = _Open(now_s, before.worker_id if before else None)
        _bound(self._open, self._limit)
        return request_idx

    def route(self, request_idx: int, worker_id: int) -> None:
        """It went to this worker; it must be open."""
        self._open[request_idx].worker_id = worker_id

    def worker_id(self, request_idx: int) -> int | None:
        """The worker an open request was last routed to, if any."""
        request = self._open.get(request_idx)
        return request.worker_id if request else None

    def close(self, request_idx: int) -> None:
        """It is finished; nothing happens if it is not open."""
        self._open.pop(request_idx, None)

    def close_routed_to(self, worker_id: int) -> list[int]:
        """Close what was last routed to a worker that is gone; gives those requests."""
        gone = [idx for idx, request in self._open.items() if request.worker_id == worker_id]
        for request_idx in gone:
            del self._open[request_idx]
        return gone

    def close_abandoned(self, now_s: float, works_on: Callable[[int, int], bool]) -> list[int]:
        """Close what nobody has asked for in 10 minutes; gives those requests.

        One that `works_on(worker_id, request_idx)` says is still worked on stays.
        """
        abandoned: list[int] = []
        while self._open:
            request_idx, request = next(iter(self._open.items()))
            if now_s - request.asked_s < ABANDONED_S:
                break
            del self._open[request_idx]
            if request.worker_id is not None and works_on(request.worker_id, request_idx):
                self._open[request_idx] = _Open(now_s, request.worker_id)
            else:
                abandoned.append(request_idx)
        return abandoned


def _bound(table: dict[int, Any], limit: int) -> None:
    """The oldest goes where there are too many."""
    if len(table) > limit:
        del table[next(iter(table))]
