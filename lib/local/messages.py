"""Parses the JSON bodies sent to the local engine strictly into the dataclasses of lib/wire.py.

Owns `Fields`, which validates single fields, and one reader for each message of workers and clients
(docs/protocol.md, "Route" and "Reports"). Does not own the parameters of
endpoints and workergroups (groups.py). An invalid message raises a `BadMessage` that names every wrong field,
and has no effect.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn, cast

from lib.errors import WorkerError
from lib.metrics import Outcome
from lib.runtime.urls import is_http_url
from lib.wire import DeleteRequests, FinishedRequest, RequestStatus, WorkerStatus

# Integers in messages must fit into 64 bits.
INT64_MAX = 2**63 - 1
# Sums of larger numbers could overflow to infinity, which JSON can't represent.
MAX_NUMBER = 1e300
# A load that is a running sum of floats may end this much below zero.
LOAD_DRIFT = 1e-6
# An error message names at most this many wrong fields.
MAX_PROBLEMS = 10
MAX_NAME_CHARS = 128
MAX_DIGITS = 400

_SUCCESS: Mapping[str, bool] = {outcome.status: outcome.success for outcome in Outcome}


class BadMessage(WorkerError):
    """400: the message is invalid; the text names each wrong field and what is wrong with it."""

    status = 400


class NotFound(WorkerError):
    """404: the engine has no such endpoint, workergroup or route."""

    status = 404


class Conflict(WorkerError):
    """409: the name is in use already."""

    status = 409


def parse_object(body: bytes) -> Mapping[str, object]:
    """Return the JSON object in `body`. Raises `BadMessage` (400) for anything else, also for NaN."""
    try:
        text = body.decode()
        value: object = json.loads(text, parse_constant=_not_json, parse_int=_integer, parse_float=_finite)
    except UnicodeDecodeError as e:
        raise BadMessage("the body is not UTF-8") from e
    except RecursionError as e:
        raise BadMessage("the body is nested too deeply") from e
    except ValueError as e:
        raise BadMessage(f"the body is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise BadMessage("the body is not a JSON object")
    return cast("Mapping[str, object]", value)


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:  # parsing takes time quadratic in the number of digits
        raise ValueError(f"{text[:32]}… is too large a number")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:32]} is too large a number")
    return number


class Fields:
    """Reads the fields of one JSON object and collects what is wrong with them.

    A wrong field reads as a placeholder of its type; `finish` then raises before the value is used.
    """

    def __init__(self, message: Mapping[str, object], where: str = "", parent: Fields | None = None) -> None:
        self._message = message
        self._where = where
        self._problems: dict[str, str] = {} if parent is None else parent._problems

    def problem(self, name: str, what: str) -> None:
        """Record a problem with a field; only the first one of each field is kept."""
        self._problems.setdefault(self._where + name, what)

    @property
    def full(self) -> bool:
        """Whether as many problems are known as the error message will name."""
        return len(self._problems) >= MAX_PROBLEMS

    def finish(self) -> None:
        """Raise `BadMessage` (400) if any problem was recorded."""
        if self._problems:
            first = list(self._problems.items())[:MAX_PROBLEMS]
            raise BadMessage("; ".join(f"{name} {what}" for name, what in first))

    def has(self, name: str) -> bool:
        """Whether the field is present and not null."""
        return self._message.get(name) is not None

    def value(self, name: str) -> object:
        """The field's value of any type; None if it is missing."""
        return self._message.get(name)

    def number(self, name: str, least: float = -MAX_NUMBER) -> float:
        """A finite number of at least `least`. Integers stay integers: the cost is signed as it was sent."""
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._wrong(name, "must be a number")
            return 0.0
        if not -MAX_NUMBER <= value <= MAX_NUMBER:
            self.problem(name, "must be finite and not beyond 1e300")
            return 0.0
        if value < least:
            self.problem(name, f"must be {max(least, 0.0):g} or more")
        return value

    def integer(self, name: str, least: int = -INT64_MAX - 1) -> int:
        """A 64-bit integer of at least `least`; `1.0` is rejected."""
        if name not in self._message:
            self.problem(name, "is missing")
            return 0
        return self._as_integer(name, self.value(name), least)

    def integers(self, name: str, least: int) -> tuple[int, ...]:
        """A list of 64-bit integers of at least `least`."""
        value = self.value(name)
        if not isinstance(value, list):
            self._wrong(name, "must be a list of integers")
            return ()
        items = enumerate(cast("list[object]", value))
        return tuple(self._as_integer(f"{name}[{i}]", item, least) for i, item in items)

    def text(self, name: str) -> str:
        """A string."""
        value = self.value(name)
        if not isinstance(value, str):
            self._wrong(name, "must be a string")
            return ""
        return value

    def boolean(self, name: str) -> bool:
        """Whether the field is true; rejects anything but true and false."""
        value = self.value(name)
        if not isinstance(value, bool):
            self._wrong(name, "must be true or false")
            return False
        return value

    def objects(self, name: str) -> tuple[Fields, ...]:
        """A reader for each object in a list; their problems are recorded here."""
        value = self.value(name)
        if not isinstance(value, list):
            self._wrong(name, "must be a list of objects")
            return ()
        readers: list[Fields] = []
        for i, item in enumerate(cast("list[object]", value)):
            if not isinstance(item, dict):
                self.problem(f"{name}[{i}]", "must be an object")
                continue
            entry = cast("Mapping[str, object]", item)
            readers.append(Fields(entry, f"{self._where}{name}[{i}].", self))
        return tuple(readers)

    def object(self, name: str) -> Fields:
        """A reader for a nested object; its problems are recorded here."""
        value = self.value(name)
        if not isinstance(value, dict):
            self._wrong(name, "must be an object")
            return Fields({})
        return Fields(cast("Mapping[str, object]", value), f"{self._where}{name}.", self)

    def only(self, *names: str) -> None:
        """Record a problem for each key that is not among `names`."""
        for name in self._message:
            if name not in names:
                self.problem(name, f"is unknown; use {', '.join(names)}")

    def _wrong(self, name: str, what: str) -> None:
        self.problem(name, what if name in self._message else "is missing")

    def _as_integer(self, name: str, value: object, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            self.problem(name, "must be an integer")
            return 0
        if not -INT64_MAX - 1 <= value <= INT64_MAX:
            self.problem(name, "must fit into 64 bits")
            return 0
        if value < least:
            self.problem(name, f"must be {least} or more")
        return value


def read_worker_status(message: Mapping[str, object]) -> WorkerStatus:
    """Read a `/worker_status/` report (docs/protocol.md, "Worker status"); unknown keys are ignored.

    Every documented field is required, with its type and range. `url` may be empty only with an `error_msg`:
    an instance that can't start may not know its URL. Raises `BadMessage` (400).
    """
    fields = Fields(message)
    status = WorkerStatus(
        id=fields.integer("id"),
        mtoken=fields.text("mtoken"),
        url=fields.text("url"),
        loadtime=fields.number("loadtime", 0.0),
        new_load=fields.number("new_load", 0.0),
        cur_load=fields.number("cur_load", -LOAD_DRIFT),
        rej_load=fields.number("rej_load", 0.0),
        cur_perf=fields.number("cur_perf", 0.0),
        max_perf=fields.number("max_perf", 0.0),
        error_msg=fields.text("error_msg"),
        num_requests_working=fields.integer("num_requests_working", 0),
        num_requests_received=fields.integer("num_requests_recieved", 0),
        working_request_idxs=fields.integers("working_request_idxs", 1),
        additional_disk_usage=fields.number("additional_disk_usage"),
        disk_usage=fields.number("disk_usage", 0.0),
        cur_capacity=fields.number("cur_capacity", 0.0),
        max_capacity=fields.number("max_capacity", 0.0),
        version=fields.text("version"),
    )
    if not (is_http_url(status.url) or (status.url == "" and status.error_msg)):
        fields.problem("url", "must be an http or https URL")
    fields.finish()
    return status


def read_delete_requests(message: Mapping[str, object]) -> DeleteRequests:
    """Read a `/delete_requests/` message (docs/protocol.md, "Finished requests").

    Raises `BadMessage` (400), also if `success` contradicts `status`.
    """
    fields = Fields(message)
    worker_id = fields.integer("worker_id")
    mtoken = fields.text("mtoken")
    requests: list[FinishedRequest] = []
    for entry in fields.objects("requests"):
        requests.append(_finished_request(entry))
        if fields.full:
            break
    fields.finish()
    return DeleteRequests(worker_id, mtoken, tuple(requests))


def _finished_request(entry: Fields) -> FinishedRequest:
    status = entry.text("status")
    success = entry.boolean("success")
    if status not in _SUCCESS:
        entry.problem("status", f"must be one of {', '.join(_SUCCESS)}")
    elif success is not _SUCCESS[status]:
        entry.problem("success", f"must be {str(_SUCCESS[status]).lower()} where status is {status}")
    return FinishedRequest(
        request_idx=entry.integer("request_idx", 1),
        success=success,
        status=cast("RequestStatus", status),
        entered_queue_at=entry.number("entered_queue_at", 0.0),
        work_started_at=entry.number("work_started_at", 0.0),
        work_completed_at=entry.number("work_completed_at", 0.0),
    )


@dataclass(frozen=True)
class RouteQuery:
    """A request to `/route/` (docs/protocol.md, "Route").

    `cost` is an int or a float, as it was sent. A `request_idx` of 0 means a new request.
    """

    endpoint: str
    cost: float
    request_idx: int


def read_route_query(message: Mapping[str, object], prefix: str | None) -> RouteQuery:
    """Read a `/route/` body; unknown keys are ignored. `prefix` is the endpoint in the path, if any.

    The cost is not converted to a float: it is part of the signed text, and a client in another language may
    write 256.0 as 256. Raises `BadMessage` (400).
    """
    fields = Fields(message)
    query = RouteQuery(
        endpoint=_endpoint(fields, prefix),
        cost=fields.number("cost", 0.0),
        request_idx=fields.integer("request_idx", 0) if fields.has("request_idx") else 0,
    )
    fields.finish()
    return query


def _endpoint(fields: Fields, prefix: str | None) -> str:
    if prefix is not None and not fields.has("endpoint"):
        return prefix
    name = fields.text("endpoint")
    if prefix is not None and name != prefix:
        fields.problem("endpoint", f"must be {prefix!r}, as in the path, or be left out")
    elif what := wrong_endpoint_name(name):
        fields.problem("endpoint", what)
    return name


def wrong_endpoint_name(name: str) -> str:
    """The error for an invalid endpoint name, or "": names have 1 to 128 printable characters."""
    if name and name.isprintable() and len(name) <= MAX_NAME_CHARS:
        return ""
    return f"must be a name of 1 to {MAX_NAME_CHARS} printable characters"
