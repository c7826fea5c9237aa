"""What the local engine is sent: JSON bodies, read strictly into the dataclasses of wire.py.

Owns `Fields` and one reader per message (protocol.md §1 and §3). Whatever is wrong is a `BadMessage` that
names every wrong field; a message is either read whole or not at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn, cast
from urllib.parse import urlsplit

from lib.errors import WorkerError
from lib.metrics import Outcome
from lib.wire import DeleteRequests, FinishedRequest, RequestStatus, WorkerStatus

# What the wire's integers must fit into: the engine's own are 64 bits wide.
INT64_MAX = 2**63 - 1
# Numbers past this would overflow once added up, and an infinity is no JSON.
MAX_NUMBER = 1e300
# A load that is a running sum of floats may end this much below nothing.
LOAD_DRIFT = 1e-6
# A message with ten thousand wrong entries needs no ten thousand lines to be understood.
MAX_PROBLEMS = 10
MAX_NAME_CHARS = 128
MAX_DIGITS = 400

_SUCCESS: Mapping[str, bool] = {outcome.status: outcome.success for outcome in Outcome}


class BadMessage(WorkerError):
    """400: the message can't be read; says which fields are wrong, and how."""

    status = 400


class NotFound(WorkerError):
    """404: there is no such thing here."""

    status = 404


class Conflict(WorkerError):
    """409: it is there already."""

    status = 409


def parse_object(body: bytes) -> Mapping[str, object]:
    """The JSON object in `body`. Raises `BadMessage` for anything else, NaN and infinities included."""
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
    if len(text) > MAX_DIGITS:  # reading them takes the square of their number
        raise ValueError(f"{text[:32]}… is too large a number")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:32]} is too large a number")
    return number


class Fields:
    """Reads the fields of one JSON object and remembers all that is wrong with them.

    What a wrong field reads as does not matter: `finish` raises before anyone sees it.
    """

    def __init__(self, message: Mapping[str, object], where: str = "", parent: Fields | None = None) -> None:
        self._message = message
        self._where = where
        self._problems: dict[str, str] = {} if parent is None else parent._problems

    def problem(self, name: str, what: str) -> None:
        """Something is wrong with a field; the first thing said of it stands."""
        self._problems.setdefault(self._where + name, what)

    @property
    def full(self) -> bool:
        """Enough is wrong by now: looking further tells nobody more."""
        return len(self._problems) >= MAX_PROBLEMS

    def finish(self) -> None:
        """Raise `BadMessage` with everything found so far, or do nothing."""
        if self._problems:
            first = list(self._problems.items())[:MAX_PROBLEMS]
            raise BadMessage("; ".join(f"{name} {what}" for name, what in first))

    def has(self, name: str) -> bool:
        """Whether there is a value other than null."""
        return self._message.get(name) is not None

    def value(self, name: str) -> object:
        """What is there, of whatever type; None where nothing is."""
        return self._message.get(name)

    def number(self, name: str, least: float = -MAX_NUMBER) -> float:
        """A finite number, integers included; whether it came as an int or a float is kept."""
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
        """An integer of 64 bits; `1.0` is none."""
        if name not in self._message:
            self.problem(name, "is missing")
            return 0
        return self._as_integer(name, self.value(name), least)

    def integers(self, name: str, least: int) -> tuple[int, ...]:
        value = self.value(name)
        if not isinstance(value, list):
            self._wrong(name, "must be a list of integers")
            return ()
        items = enumerate(cast("list[object]", value))
        return tuple(self._as_integer(f"{name}[{i}]", item, least) for i, item in items)

    def text(self, name: str) -> str:
        value = self.value(name)
        if not isinstance(value, str):
            self._wrong(name, "must be a string")
            return ""
        return value

    def boolean(self, name: str) -> bool:
        value = self.value(name)
        if not isinstance(value, bool):
            self._wrong(name, "must be true or false")
            return False
        return value

    def objects(self, name: str) -> tuple[Fields, ...]:
        """A reader for each object of a list; what they find wrong counts here."""
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
        """A reader for a nested object; what it finds wrong counts here."""
        value = self.value(name)
        if not isinstance(value, dict):
            self._wrong(name, "must be an object")
            return Fields({})
        return Fields(cast("Mapping[str, object]", value), f"{self._where}{name}.", self)

    def only(self, *names: str) -> None:
        """Any other key is wrong."""
        for name in self._message:
            if name not in names:
                self.problem(name, f"is unknown; known are {', '.join(names)}")

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
    """A `/worker_status/` report (protocol.md §3); unknown keys are ignored.

    Every field of the table is required, of its type and, where it can't be negative, not negative. An
    empty `url` goes only with an `error_msg`: an instance that can't start may not know its own.
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


def is_http_url(text: str) -> bool:
    """Whether `text` is an http or https URL with a host and, if any, a possible port."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def read_delete_requests(message: Mapping[str, object]) -> DeleteRequests:
    """A `/delete_requests/` message (protocol.md §3); `success` must be what `status` implies."""
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
    """What `/route/` is asked (protocol.md §1). `cost` is kept as it came, an int or a float; 0 is no idx."""

    endpoint: str
    cost: float
    request_idx: int


def read_route_query(message: Mapping[str, object], prefix: str | None) -> RouteQuery:
    """A `/route/` body; unknown keys are ignored. `prefix` is the endpoint that the path named, if any.

    The cost is not made a float: it is signed, and a client in another language may write 256.0 as 256.
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
        fields.problem("endpoint", f"must be {prefix!r}, as in the path, or left out")
    elif what := wrong_endpoint_name(name):
        fields.problem("endpoint", what)
    return name


def wrong_endpoint_name(name: str) -> str:
    """What is wrong with an endpoint's name, or "": it must be short, printable and not empty."""
    if name and name.isprintable() and len(name) <= MAX_NAME_CHARS:
        return ""
    return f"must be a name of 1 to {MAX_NAME_CHARS} printable characters"
