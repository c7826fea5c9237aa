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
    """The latest 100,000 finished requests and 1,000 given up, oldest first."""

    def __init__(self) -> None:
        self.finished: deque[ReceivedCompletion] = deque(maxlen=MAX_FINISHED)
        self.given_up: deque[GivenUpRequest] = deque(maxlen=MAX_GIVEN_UP)
