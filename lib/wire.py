"""The messages exchanged with the serverless engine, field by field (docs/protocol.md).

Owns the names of their fields, with the protocol's misspellings. It does not compute the numbers: that is
lib/metrics.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import msgspec

PROTOCOL_VERSION = "1.1.0"

# Of status reports to an engine on the same machine: the URL of the worker's loopback port.
LOOPBACK_HEADER = "X-PyWorker-Loopback"

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

    def encoded(self) -> bytes:
        """The message as JSON text."""
        return json.dumps(self.to_json()).encode()

    def summary(self) -> dict[str, Any]:
        """The message's fields without the worker's secret token, for logs and lists."""
        return {name: value for name, value in self.to_json().items() if name != "mtoken"}


class FinishedRequest(msgspec.Struct, gc=False):  # made for each request: in a quarter of a dataclass's time
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

    def encoded(self) -> bytes:
        """The message as JSON text."""
        sender = json.dumps({"worker_id": self.worker_id, "mtoken": self.mtoken})
        # Entries may come by the thousand: msgspec takes a tenth of json's time for them.
        return b'%s, "requests": %s}' % (sender[:-1].encode(), msgspec.json.encode(self.requests))

    def summary(self) -> dict[str, Any]:
        """The message's fields without the worker's secret token, and with the number of requests only."""
        return {"worker_id": self.worker_id, "requests": len(self.requests)}


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


_FULL_KEYS = ("cost", "endpoint", "reqnum", "url")
# The text with indent=4. json writes an indented text in Python, which costs several times as much.
_FULL_TEXT = '{\n    "cost": %s,\n    "endpoint": %s,\n    "reqnum": %s,\n    "url": %s\n}'
# How json writes the ordinary values. A float that is not finite is refused before.
_WRITE: dict[type[Any], Callable[[Any], str]] = {
    str: json.encoder.encode_basestring_ascii,
    int: int.__repr__,
    float: float.__repr__,
}


def full_signed_text(auth_data: Mapping[str, Any]) -> str:
    """The text that the engine signs in the `full` form (docs/protocol.md, "Signature").

    `auth_data` must hold the values as the client sent them.
    """
    values = [auth_data[key] for key in _FULL_KEYS]
    try:
        return _FULL_TEXT % tuple([_WRITE[type(value)](value) for value in values])
    except KeyError:
        return json.dumps(dict(zip(_FULL_KEYS, values, strict=True)), indent=4)


def url_signed_text(url: str) -> str:
    """The text that the engine signs in the `url` form (docs/protocol.md, "Signature")."""
    return json.dumps({"url": url}, indent=4, sort_keys=True)
