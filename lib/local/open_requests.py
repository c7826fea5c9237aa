"""The requests that the local engine has numbered and that are not finished yet.

Owns the numbers, `request_idx`, which are unique in the engine, how long a request stays open, and what the
engine did with it. Does not own the load that requests add to a worker (fleet.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Clients that give up while no worker is ready leave requests open, so their number is limited.
MAX_OPEN = 100_000
# Closed requests whose routing is kept until their worker reports how they ended.
MAX_CLOSED = 10_000
# Seconds after which a request is abandoned if no worker works on it and no client asks for it again. A
# waiting client asks every few seconds. A worker lists a request in the report after it was admitted, within
# 10 s, but an upload is admitted only when it has arrived. It never lists one that it refused before it was
# authenticated, such as one for a path that it doesn't have.
ABANDONED_S = 120.0


@dataclass
class Routing:
    """The way of one request through the engine. Times are seconds of the engine's monotonic clock.

    Args:
        endpoint: the endpoint that was asked for; "" for a request that was only signed.
        cost: its workload, in workload units.
        asked_s: the time of its first `/route/`.
        requested_s: the time of its latest `/route/`; a waiting client sends one again and again.
        routed_s: the time when it was last routed to a worker, or None.
        worker_id: the worker that it was last routed to, or None.
        times_routed: how often it was routed to a worker.
        route: its method and path, if it went through the OpenAI gateway; otherwise "".
        status: the status of its answer, if it went through the OpenAI gateway.
    """

    endpoint: str
    cost: float
    asked_s: float
    requested_s: float
    routed_s: float | None = None
    worker_id: int | None = None
    times_routed: int = 0
    route: str = ""
    status: int | None = None

    @property
    def waited_s(self) -> float | None:
        """Seconds until it was last routed to a worker; None if it never was."""
        return None if self.routed_s is None else self.routed_s - self.asked_s


class OpenRequests:
    """Numbers requests from 1 and keeps the routing of each open one, and of those closed lately.

    Times are seconds of the engine's monotonic clock. At most `limit` requests are open; then the one
    requested the longest ago is dropped.
    """

    def __init__(self, limit: int = MAX_OPEN) -> None:
        self._limit = limit
        self._last = 0
        self._open: dict[int, Routing] = {}  # in the order of `requested_s`
        self._closed: dict[int, Routing] = {}
        self._foreign: dict[int, None] = {}

    def __contains__(self, request_idx: object) -> bool:
        return request_idx in self._open

    def __len__(self) -> int:
        return len(self._open)

    @property
    def waiting(self) -> int:
        """The number of open requests that were not routed to a worker yet."""
        return sum(routing.worker_id is None for routing in self._open.values())

    def open(self, now_s: float, request_idx: int = 0, *, endpoint: str = "", cost: float = 0.0) -> int:
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
        routing = self._open.pop(request_idx, None) or Routing(endpoint, cost, now_s, now_s)
        routing.requested_s = now_s
        self._open[request_idx] = routing
        _drop_oldest(self._open, self._limit)
        return request_idx

    def route(self, request_idx: int, worker_id: int, now_s: float) -> None:
        """Record that an open request is routed to this worker now."""
        routing = self._open[request_idx]
        routing.worker_id, routing.routed_s = worker_id, now_s
        routing.times_routed += 1

    def worker_id(self, request_idx: int) -> int | None:
        """The worker that an open request was last routed to, if any."""
        routing = self._open.get(request_idx)
        return routing.worker_id if routing else None

    def routing(self, request_idx: int) -> Routing | None:
        """The routing of a request that is open, or was closed lately; None for others."""
        return self._open.get(request_idx) or self._closed.get(request_idx)

    def close(self, request_idx: int) -> None:
        """Remove a finished request; no effect if it is not open."""
        routing = self._open.pop(request_idx, None)
        if routing is not None:
            self._closed[request_idx] = routing
            _drop_oldest(self._closed, MAX_CLOSED)

    def close_routed_to(self, worker_id: int) -> list[int]:
        """Close the requests last routed to a worker that is gone, and return them."""
        gone = [idx for idx, routing in self._open.items() if routing.worker_id == worker_id]
        for request_idx in gone:
            self.close(request_idx)
        return gone

    def close_abandoned(self, now_s: float, works_on: Callable[[int, int], bool]) -> list[int]:
        """Close the requests that were last requested `ABANDONED_S` ago or earlier, and return them.

        A request stays open while `works_on(worker_id, request_idx)` is true.
        """
        abandoned: list[int] = []
        while self._open:
            request_idx, routing = next(iter(self._open.items()))
            if now_s - routing.requested_s < ABANDONED_S:
                break
            if routing.worker_id is not None and works_on(routing.worker_id, request_idx):
                routing.requested_s = now_s
                self._open[request_idx] = self._open.pop(request_idx)
            else:
                self.close(request_idx)
                abandoned.append(request_idx)
        return abandoned


def _drop_oldest(table: dict[int, Any], limit: int) -> None:
    """Remove the oldest entry if there are more than `limit`."""
    if len(table) > limit:
        del table[next(iter(table))]
