"""The requests that have ended: reported by workers, or given up by the local engine.

Owns the records and how many are kept. Does not own when a request is given up (engine.py,
open_requests.py).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from lib.local.open_requests import Routing
from lib.wire import FinishedRequest

MAX_FINISHED = 100_000
MAX_GIVEN_UP = 1000


@dataclass(frozen=True)
class ReceivedCompletion:
    """A finished request as a worker reported it; `received_at` in Unix seconds.

    `routing` is None for a request that this engine did not route, or routed long ago.
    """

    worker_id: int
    mtoken: str
    request: FinishedRequest
    received_at: float
    routing: Routing | None = None


@dataclass(frozen=True)
class GivenUpRequest:
    """A request that the engine has closed without a worker's report; `at` in Unix seconds."""

    request_idx: int
    at: float
    why: str
    routing: Routing


class EndedRequests:
    """The latest 100,000 finished requests, and 1,000 given up by `request_idx`; oldest first."""

    def __init__(self) -> None:
        self.finished: deque[ReceivedCompletion] = deque(maxlen=MAX_FINISHED)
        self.given_up: dict[int, GivenUpRequest] = {}

    def add(self, completion: ReceivedCompletion) -> None:
        """Add a finished request; it replaces the entry of one that was given up too early."""
        self.given_up.pop(completion.request.request_idx, None)
        self.finished.append(completion)

    def give_up(self, request: GivenUpRequest) -> None:
        """Add a request that was given up; it replaces an earlier entry of the same request."""
        self.given_up.pop(request.request_idx, None)
        self.given_up[request.request_idx] = request
        if len(self.given_up) > MAX_GIVEN_UP:
            del self.given_up[next(iter(self.given_up))]
