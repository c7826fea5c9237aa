"""The requests that the local engine has numbered and not seen finished.

Owns the numbers, `request_idx`, which are unique over the whole engine. What they cost a worker is in
fleet.py.
"""

from __future__ import annotations

# Clients that poll while no worker is ready open requests that nobody ever closes.
MAX_OPEN = 100_000


class OpenRequests:
    """Numbers requests from 1, and remembers the worker that each open one was last routed to."""

    def __init__(self, limit: int = MAX_OPEN) -> None:
        self._limit = limit
        self._last = 0
        self._worker_ids: dict[int, int | None] = {}
        self._brought: dict[int, int | None] = {}

    def __contains__(self, request_idx: object) -> bool:
        return request_idx in self._worker_ids

    def __len__(self) -> int:
        return len(self._worker_ids)

    def open(self, request_idx: int = 0) -> int:
        """The number of a new request, or, for a retry, `request_idx` itself.

        A number that the engine did not give (it was restarted meanwhile) is kept too, and not given again.
        """
        if request_idx > self._last:
            self._remember(self._brought, request_idx, None)
        elif not request_idx:
            self._last += 1
            while self._last in self._brought:
                self._last += 1
            request_idx = self._last
        self._remember(self._worker_ids, request_idx, self._worker_ids.get(request_idx))
        return request_idx

    def route(self, request_idx: int, worker_id: int) -> None:
        self._worker_ids[request_idx] = worker_id

    def worker_id(self, request_idx: int) -> int | None:
        """The worker an open request was last routed to, if any."""
        return self._worker_ids.get(request_idx)

    def close(self, request_idx: int) -> None:
        """It is finished; nothing happens if it is not open."""
        self._worker_ids.pop(request_idx, None)

    def _remember(self, numbers: dict[int, int | None], request_idx: int, worker_id: int | None) -> None:
        numbers[request_idx] = worker_id
        if len(numbers) > self._limit:
            del numbers[next(iter(numbers))]
