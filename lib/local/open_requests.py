"""The requests that the local engine has numbered and that are not finished yet.

Owns the numbers, `request_idx`, which are unique in the engine, and how long a request stays open. Does not
own the load that requests add to a worker (fleet.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Clients that give up while no worker is ready leave requests open, so their number is limited.
MAX_OPEN = 100_000
# Seconds after which a request is abandoned if no worker works on it and no client asks for it again.
ABANDONED_S = 600.0


@dataclass
class _OpenRequest:
    """One open request.

    `requested_s` is the time of its latest `/route/`; a waiting client sends one again and again. `worker_id`
    is the worker that it was last routed to, or None.
    """

    requested_s: float
    worker_id: int | None = None


class OpenRequests:
    """Numbers requests from 1 and keeps the worker that each open request was last routed to.

    Times are seconds of the engine's monotonic clock. At most `limit` requests are open; then the one
    requested the longest ago is dropped.
    """

    def __init__(self, limit: int = MAX_OPEN) -> None:
        self._limit = limit
        self._last = 0
        self._open: dict[int, _OpenRequest] = {}  # in the order of `requested_s`
        self._foreign: dict[int, None] = {}

    def __contains__(self, request_idx: object) -> bool:
        return request_idx in self._open

    def __len__(self) -> int:
        return len(self._open)

    def open(self, now_s: float, request_idx: int = 0) -> int:
        """Open a request and return its number; for a retry, return `request_idx` itself.

        A number from before a restart of the engine is accepted too, and not used for another request.
        """
        if request_idx > self._last:
            self._foreign[request_idx] = None
            _drop_oldest(self._foreign, self._limit)
        elif not request_idx:
            self._last += 1
            while self._last in self._foreign:
                self._last += 1
            request_idx = self._last
        before = self._open.pop(request_idx, None)
        self._open[request_idx] = _OpenRequest(now_s, before.worker_id if before else None)
        _drop_oldest(self._open, self._limit)
        return request_idx

    def route(self, request_idx: int, worker_id: int) -> None:
        """Record that an open request was routed to this worker."""
        self._open[request_idx].worker_id = worker_id

    def worker_id(self, request_idx: int) -> int | None:
        """The worker that an open request was last routed to, if any."""
        request = self._open.get(request_idx)
        return request.worker_id if request else None

    def close(self, request_idx: int) -> None:
        """Remove a finished request; no effect if it is not open."""
        self._open.pop(request_idx, None)

    def close_routed_to(self, worker_id: int) -> list[int]:
        """Close the requests last routed to a worker that is gone, and return them."""
        gone = [idx for idx, request in self._open.items() if request.worker_id == worker_id]
        for request_idx in gone:
            del self._open[request_idx]
        return gone

    def close_abandoned(self, now_s: float, works_on: Callable[[int, int], bool]) -> list[int]:
        """Close the requests that were last requested 10 minutes ago or earlier, and return them.

        A request stays open while `works_on(worker_id, request_idx)` is true.
        """
        abandoned: list[int] = []
        while self._open:
            request_idx, request = next(iter(self._open.items()))
            if now_s - request.requested_s < ABANDONED_S:
                break
            del self._open[request_idx]
            if request.worker_id is not None and works_on(request.worker_id, request_idx):
                self._open[request_idx] = _OpenRequest(now_s, request.worker_id)
            else:
                abandoned.append(request_idx)
        return abandoned


def _drop_oldest(table: dict[int, Any], limit: int) -> None:
    """Remove the oldest entry if there are more than `limit`."""
    if len(table) > limit:
        del table[next(iter(table))]
