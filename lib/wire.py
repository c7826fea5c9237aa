"""The messages exchanged with the serverless engine, field by field (docs/protocol.md).

Owns the names of their fields, with the protocol's misspellings. It does not compute the numbers: that is
lib/metrics.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

PROTOCOL_VERSION = "1.1.0"

RequestStatus = Literal["Success", "Error", "Cancelled", "Rejected"]


@dataclass(frozen=True)
class WorkerStatus:
    """The body of `POST /worker_status/` (docs/protocol.md, "Worker status").

    Loads are in workload units, `max_perf` in workload/s, disk sizes in GiB, `loadtime` in seconds.
    """

    id: int
    mtoken: str
    url: str
    loadtime: float
    new_load: float
    cur_load: float
    rej_load: float
    cur_perf: float
    max_perf: float
    error_msg: str
    num_requests_working: int
    num_requests_received: int
    working_request_idxs: tuple[int, ...]
    additional_disk_usage: float
    disk_usage: float
    cur_capacity: float = 0.0
    max_capacity: float = 0.0
    version: str = PROTOCOL_VERSION

    def to_json(self) -> dict[str, Any]:
        """The message as JSON, with the names of the protocol."""
        message = asdict(self)
        message["num_requests_recieved"] = message.pop("num_requests_received")
        message["working_request_idxs"] = list(self.working_request_idxs)
        return message


@dataclass(frozen=True)
class FinishedRequest:
    """One finished request in `POST /delete_requests/`. Times are Unix seconds, 0.0 for never."""

    request_idx: int
    success: bool
    status: RequestStatus
    entered_queue_at: float
    work_started_at: float
    work_completed_at: float


@dataclass(frozen=True)
class DeleteRequests:
    """The body of `POST /delete_requests/` (docs/protocol.md, "Finished requests")."""

    worker_id: int
    mtoken: str
    requests: tuple[FinishedRequest, ...]

    def to_json(self) -> dict[str, Any]:
        """The message as JSON, with the names of the protocol."""
        return {
            "worker_id": self.worker_id,
            "mtoken": self.mtoken,
            "requests": [asdict(r) for r in self.requests],
        }


@dataclass(frozen=True)
class RouteRequest:
    """The body of `POST /route/` (docs/protocol.md, "Route").

    `cost` is in workload units; `request_idx` is 0 for a new request.
    """

    endpoint: str
    api_key: str
    cost: float
    request_idx: int = 0

    def to_json(self) -> dict[str, Any]:
        """The message as JSON, with the names of the protocol."""
        return asdict(self)


def full_signed_text(auth_data: Mapping[str, Any]) -> str:
    """The text that the engine signs in the `full` form (docs/protocol.md, "Signature").

    `auth_data` must hold the values as the client sent them.
    """
    return json.dumps({key: auth_data[key] for key in ("cost", "endpoint", "reqnum", "url")}, indent=4)


def url_signed_text(url: str) -> str:
    """The text that the engine signs in the `url` form (docs/protocol.md, "Signature")."""
    return json.dumps({"url": url}, indent=4, sort_keys=True)
