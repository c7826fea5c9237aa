"""The local engine's endpoints and workergroups: their names, ids and scaling parameters.

Owns both tables and the parsing of the parameters that clients send (docs/local-engine.md, "Managing
endpoints and workergroups"). Does not own the workers (fleet.py) or the plan that follows from the parameters
(scaling_plan.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar, cast

from lib.local.messages import INT64_MAX, BadMessage, Conflict, Fields, NotFound, wrong_endpoint_name

T = TypeVar("T")

# The only user of a local engine.
USER_ID = 1
# The template of a workergroup that was made by a worker's first report: no instance was rented.
LOCAL_TEMPLATE = "local"
MAX_TEXT_CHARS = 4096
# Upper limits, far above real use and far below where numbers overflow.
MAX_SCALE = 1e12
MAX_WORKERS = 100_000
STATES = ("active", "suspended", "stopped")
# Keys in clients' messages that are not parameters.
_ENVELOPE = {"client_id", "api_key", "id", "endptjob_id", "autojob_id"}
_CREDENTIALS = {"docker_login_user", "docker_login_pass", "docker_login_repo"}


@dataclass(frozen=True)
class Scaling:
    """An endpoint's scaling parameters. Loads in workload units per second.

    docs/local-engine.md, "Managing endpoints and workergroups", describes each and its default.
    """

    min_load: float = 10.0
    target_util: float = 0.9
    cold_mult: float = 2.5
    cold_workers: int = 5
    max_workers: int = 20


@dataclass(frozen=True)
class StoredSettings:
    """Endpoint settings that are stored and shown, without an effect on the local engine."""

    min_cold_load: float = 0.0
    max_queue_time: float | None = None
    target_queue_time: float | None = None
    inactivity_timeout: float | None = None
    endpoint_state: str = "active"
    autoscaler_instance: str = "prod"


@dataclass(frozen=True)
class Endpoint:
    """An endpoint: workers join it and clients send requests to it. `created_at` in Unix seconds."""

    id: int
    name: str
    created_at: float
    scaling: Scaling = field(default_factory=Scaling)
    stored: StoredSettings = field(default_factory=StoredSettings)

    def to_json(self, api_key: str) -> dict[str, Any]:
        """An item in the answer of `/api/v0/endptjobs/`; `api_key` is the key to call the endpoint with."""
        return {
            "id": self.id,
            "endpoint_name": self.name,
            "api_key": api_key,
            "user_id": USER_ID,
            "created_at": self.created_at,
            **asdict(self.scaling),
            **asdict(self.stored),
        }


@dataclass(frozen=True)
class Workergroup:
    """Workers of one endpoint that are started from the same template.

    `min_load`, `target_util` and `cold_mult` override the endpoint's unless they are None. `gpu_ram` in GB,
    `created_at` in Unix seconds.
    """

    id: int
    endpoint_id: int
    created_at: float
    template_hash: str | None = None
    template_id: int | None = None
    search_params: str | Mapping[str, object] = ""
    launch_args: str = ""
    gpu_ram: float = 24.0
    test_workers: int = 3
    min_load: float | None = None
    target_util: float | None = None
    cold_mult: float | None = None

    def override(self, scaling: Scaling) -> Scaling:
        """Return `scaling` with this group's overrides."""
        return Scaling(
            min_load=scaling.min_load if self.min_load is None else self.min_load,
            target_util=scaling.target_util if self.target_util is None else self.target_util,
            cold_mult=scaling.cold_mult if self.cold_mult is None else self.cold_mult,
            cold_workers=scaling.cold_workers,
            max_workers=scaling.max_workers,
        )

    def to_json(self, endpoint_name: str, api_key: str) -> dict[str, Any]:
        """An item in the answer of `/api/v0/workergroups/`."""
        return {**asdict(self), "endpoint_name": endpoint_name, "api_key": api_key, "user_id": USER_ID}


class Groups:
    """All endpoints and workergroups by id. Ids are never reused."""

    def __init__(self) -> None:
        self.endpoints: dict[int, Endpoint] = {}
        self.workergroups: dict[int, Workergroup] = {}
        self._last_endpoint = 0
        self._last_workergroup = 0

    def endpoint_named(self, name: str) -> Endpoint | None:
        """The endpoint with this name, if there is one."""
        return next((endpoint for endpoint in self.endpoints.values() if endpoint.name == name), None)

    def joined(self, name: str) -> Endpoint:
        """The endpoint with this name. Raises `NotFound` (404)."""
        endpoint = self.endpoint_named(name)
        if endpoint is None:
            raise NotFound(f"no worker has joined the endpoint {name!r}")
        return endpoint

    def endpoint(self, endpoint_id: int) -> Endpoint:
        """The endpoint with this id. Raises `NotFound` (404)."""
        if endpoint_id not in self.endpoints:
            raise NotFound(f"no endpoint has the id {endpoint_id}")
        return self.endpoints[endpoint_id]

    def workergroup(self, workergroup_id: int) -> Workergroup:
        """The workergroup with this id. Raises `NotFound` (404)."""
        if workergroup_id not in self.workergroups:
            raise NotFound(f"no workergroup has the id {workergroup_id}")
        return self.workergroups[workergroup_id]

    def workergroups_of(self, endpoint: Endpoint) -> list[Workergroup]:
        """The workergroups of an endpoint, oldest first.

        Reports don't name a workergroup, so all workers of an endpoint count as members of its oldest one.
        """
        return [group for group in self.workergroups.values() if group.endpoint_id == endpoint.id]

    def join(self, name: str, now: float) -> Endpoint:
        """Return the endpoint with this name; make it, and a workergroup for it, if missing."""
        endpoint = self.endpoint_named(name) or self.add_endpoint(Endpoint(0, name, now))
        if not self.workergroups_of(endpoint):
            self.add_workergroup(Workergroup(0, endpoint.id, now, template_hash=LOCAL_TEMPLATE))
        return endpoint

    def add_endpoint(self, endpoint: Endpoint) -> Endpoint:
        """Store an endpoint and return it with its id. Raises `Conflict` (409) if its name is in use."""
        if self.endpoint_named(endpoint.name):
            raise Conflict(f"an endpoint {endpoint.name!r} exists already: choose another name")
        self._last_endpoint += 1
        added = self.endpoints[self._last_endpoint] = replace(endpoint, id=self._last_endpoint)
        return added

    def add_workergroup(self, group: Workergroup) -> Workergroup:
        """Store a workergroup and return it with its id."""
        self._last_workergroup += 1
        added = self.workergroups[self._last_workergroup] = replace(group, id=self._last_workergroup)
        return added

    def remove_endpoint(self, endpoint: Endpoint) -> None:
        """Remove an endpoint and its workergroups."""
        for group in self.workergroups_of(endpoint):
            del self.workergroups[group.id]
        del self.endpoints[endpoint.id]


def read_endpoint(message: Mapping[str, object], current: Endpoint) -> Endpoint:
    """Return `current` with the changes in `message`; fields that are missing or null stay the same.

    If the current name is "", the message must give one; otherwise the name can't be changed, since workers
    join by it. Raises `BadMessage` (400).
    """
    fields = Fields(message)
    name = current.name
    if not name:
        name = fields.text("endpoint_name")
        if what := wrong_endpoint_name(name):
            fields.problem("endpoint_name", what)
    elif fields.has("endpoint_name") and fields.text("endpoint_name") != name:
        fields.problem("endpoint_name", f"is {name!r} and can't be changed: workers join by this name")
    scaling, stored = current.scaling, current.stored
    endpoint = replace(
        current,
        name=name,
        scaling=Scaling(
            min_load=_number(fields, "min_load", scaling.min_load),
            target_util=_fraction(fields, "target_util", scaling.target_util),
            cold_mult=_number(fields, "cold_mult", scaling.cold_mult),
            cold_workers=_count(fields, "cold_workers", scaling.cold_workers),
            max_workers=_count(fields, "max_workers", scaling.max_workers),
        ),
        stored=StoredSettings(
            min_cold_load=_number(fields, "min_cold_load", stored.min_cold_load),
            max_queue_time=_number(fields, "max_queue_time", stored.max_queue_time),
            target_queue_time=_number(fields, "target_queue_time", stored.target_queue_time),
            inactivity_timeout=_number(fields, "inactivity_timeout", stored.inactivity_timeout, -MAX_SCALE),
            endpoint_state=_state(fields, stored.endpoint_state),
            autoscaler_instance=_text(fields, "autoscaler_instance", stored.autoscaler_instance),
        ),
    )
    fields.finish()
    return endpoint


def read_workergroup(message: Mapping[str, object], current: Workergroup, groups: Groups) -> Workergroup:
    """Return `current` with the changes in `message`; fields that are missing or null stay the same.

    Raises `BadMessage` (400), also if neither of the two has an endpoint (`endpoint_id` is 0) or a template,
    and `NotFound` (404) for an unknown endpoint.
    """
    fields = Fields(message)
    group = replace(
        current,
        template_hash=_text(fields, "template_hash", current.template_hash),
        template_id=_count(fields, "template_id", current.template_id, INT64_MAX),
        search_params=_search(fields, current.search_params),
        launch_args=_text(fields, "launch_args", current.launch_args),
        gpu_ram=_number(fields, "gpu_ram", current.gpu_ram),
        test_workers=_count(fields, "test_workers", current.test_workers),
        min_load=_number(fields, "min_load", current.min_load),
        target_util=_fraction(fields, "target_util", current.target_util),
        cold_mult=_number(fields, "cold_mult", current.cold_mult),
    )
    if not group.template_hash and group.template_id is None:
        fields.problem("template_hash", "or template_id is needed")
    endpoint_id = fields.integer("endpoint_id", 1) if fields.has("endpoint_id") else None
    endpoint_name = fields.text("endpoint_name") if fields.has("endpoint_name") else None
    if not current.endpoint_id and endpoint_id is None and endpoint_name is None:
        fields.problem("endpoint_id", "or endpoint_name is needed")
    fields.finish()
    return replace(group, endpoint_id=_endpoint_id(groups, current, endpoint_id, endpoint_name))


def unknown_keys(message: Mapping[str, object], subject: Endpoint | Workergroup) -> list[str]:
    """The keys of `message` that have no meaning here, such as misspelled ones."""
    known = {*_ENVELOPE, "endpoint_name"}
    if isinstance(subject, Endpoint):
        known |= {*asdict(subject.scaling), *asdict(subject.stored)}
    else:
        # Vast.ai's client also sends these; nothing is rented or pulled here.
        known |= {*asdict(subject), *_CREDENTIALS, "min_cold_load", "max_workers", "autoscaler_instance"}
    return sorted(set(message) - known)


def _endpoint_id(groups: Groups, current: Workergroup, endpoint_id: int | None, name: str | None) -> int:
    by_id = groups.endpoint(endpoint_id).id if endpoint_id is not None else None
    by_name: int | None = None
    if name is not None:
        named = groups.endpoint_named(name)
        if named is None:
            raise NotFound(f"no endpoint has the name {name!r}")
        by_name = named.id
    if by_id is not None and by_name is not None and by_id != by_name:
        raise BadMessage(f"endpoint_id {by_id} and endpoint_name {name!r} are different endpoints")
    return by_id or by_name or current.endpoint_id


# Readers of optional fields: each returns `default` if the field is missing or null.


def _number(fields: Fields, name: str, default: T, least: float = 0.0, most: float = MAX_SCALE) -> float | T:
    if not fields.has(name):
        return default
    number = fields.number(name, least)
    if number > most:
        fields.problem(name, f"must be {most:g} or less")
    return number


def _fraction(fields: Fields, name: str, default: T) -> float | T:
    return _number(fields, name, default, 0.01, 1.0)


def _count(fields: Fields, name: str, default: T, most: int = MAX_WORKERS) -> int | T:
    if not fields.has(name):
        return default
    count = fields.integer(name, 0)
    if count > most:
        fields.problem(name, f"must be {most} or less")
    return count


def _text(fields: Fields, name: str, default: T) -> str | T:
    if not fields.has(name):
        return default
    text = fields.text(name)
    if len(text) > MAX_TEXT_CHARS:
        fields.problem(name, f"is longer than {MAX_TEXT_CHARS} characters")
    return text


def _state(fields: Fields, default: str) -> str:
    state = fields.text("endpoint_state") if fields.has("endpoint_state") else default
    if state not in STATES:
        fields.problem("endpoint_state", f"must be one of {', '.join(STATES)}")
    return state


def _search(fields: Fields, default: str | Mapping[str, object]) -> str | Mapping[str, object]:
    """A search query for offers, as text or as an object; it is only stored."""
    value = fields.value("search_params")
    if value is None:
        return default
    if isinstance(value, dict):
        return cast("Mapping[str, object]", value)
    return _text(fields, "search_params", "")
