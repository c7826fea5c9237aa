"""The local engine's endpoints and workergroups: names, numbers, and the parameters that a plan follows.

Owns both tables and the reading of what clients say of them (launch.md). Which workers there are is in
fleet.py, what follows from the parameters in plan.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar, cast

from lib.local.messages import INT64_MAX, BadMessage, Conflict, Fields, NotFound, wrong_endpoint_name

T = TypeVar("T")

# Everything here belongs to one user.
USER_ID = 1
# The template of a group that its workers brought: nothing was rented by any.
LOCAL_TEMPLATE = "local"
MAX_TEXT_CHARS = 4096
# Beyond what anyone rents, and far from where numbers overflow.
MAX_SCALE = 1e12
MAX_WORKERS = 100_000
STATES = ("active", "suspended", "stopped")
# What clients send along that is no parameter.
_ENVELOPE = {"client_id", "api_key", "id", "endptjob_id", "autojob_id"}
_CREDENTIALS = {"docker_login_user", "docker_login_pass", "docker_login_repo"}


@dataclass(frozen=True)
class Scaling:
    """What an endpoint is scaled by. Loads in workload units a second; defaults as documented (launch.md)."""

    min_load: float = 10.0
    target_util: float = 0.9
    cold_mult: float = 2.5
    cold_workers: int = 5
    max_workers: int = 20


@dataclass(frozen=True)
class Remarks:
    """What clients may say of an endpoint that nothing here acts on: it is kept, and shown."""

    min_cold_load: float = 0.0
    max_queue_time: float | None = None
    target_queue_time: float | None = None
    inactivity_timeout: float | None = None
    endpoint_state: str = "active"
    autoscaler_instance: str = "prod"


@dataclass(frozen=True)
class Endpoint:
    """`created_at` in Unix seconds."""

    id: int
    name: str
    created_at: float
    scaling: Scaling = field(default_factory=Scaling)
    remarks: Remarks = field(default_factory=Remarks)

    def to_json(self, api_key: str) -> dict[str, Any]:
        """An item of `/api/v0/endptjobs/`; `api_key` is what lets its owner in."""
        return {
            "id": self.id,
            "endpoint_name": self.name,
            "api_key": api_key,
            "user_id": USER_ID,
            "created_at": self.created_at,
            **asdict(self.scaling),
            **asdict(self.remarks),
        }


@dataclass(frozen=True)
class Workergroup:
    """Workers of one endpoint that are made alike.

    `min_load`, `target_util` and `cold_mult` override the endpoint's where they aren't None. `gpu_ram` in
    GB, `created_at` in Unix seconds.
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

    def over(self, scaling: Scaling) -> Scaling:
        """`scaling` with what this group says otherwise."""
        return Scaling(
            min_load=scaling.min_load if self.min_load is None else self.min_load,
            target_util=scaling.target_util if self.target_util is None else self.target_util,
            cold_mult=scaling.cold_mult if self.cold_mult is None else self.cold_mult,
            cold_workers=scaling.cold_workers,
            max_workers=scaling.max_workers,
        )

    def to_json(self, endpoint_name: str, api_key: str) -> dict[str, Any]:
        """An item of `/api/v0/workergroups/`."""
        return {**asdict(self), "endpoint_name": endpoint_name, "api_key": api_key, "user_id": USER_ID}


class Groups:
    """Every endpoint and every workergroup, by id; ids are never given twice."""

    def __init__(self) -> None:
        self.endpoints: dict[int, Endpoint] = {}
        self.workergroups: dict[int, Workergroup] = {}
        self._last_endpoint = 0
        self._last_workergroup = 0

    def named(self, name: str) -> Endpoint | None:
        """The endpoint of this name, if there is one."""
        return next((endpoint for endpoint in self.endpoints.values() if endpoint.name == name), None)

    def endpoint(self, endpoint_id: int) -> Endpoint:
        """Raises `NotFound`."""
        if endpoint_id not in self.endpoints:
            raise NotFound(f"no endpoint has the id {endpoint_id}")
        return self.endpoints[endpoint_id]

    def workergroup(self, workergroup_id: int) -> Workergroup:
        """Raises `NotFound`."""
        if workergroup_id not in self.workergroups:
            raise NotFound(f"no workergroup has the id {workergroup_id}")
        return self.workergroups[workergroup_id]

    def workergroups_of(self, endpoint: Endpoint) -> list[Workergroup]:
        """The oldest first. Workers tell no group: all of an endpoint's are in its oldest."""
        return [group for group in self.workergroups.values() if group.endpoint_id == endpoint.id]

    def join(self, name: str, now: float) -> Endpoint:
        """The endpoint that a worker reports to, with a workergroup; made where it isn't there yet."""
        endpoint = self.named(name) or self.add_endpoint(Endpoint(0, name, now))
        if not self.workergroups_of(endpoint):
            self.add_workergroup(Workergroup(0, endpoint.id, now, template_hash=LOCAL_TEMPLATE))
        return endpoint

    def add_endpoint(self, endpoint: Endpoint) -> Endpoint:
        """It, with an id. Raises `Conflict` where its name is taken."""
        if self.named(endpoint.name):
            raise Conflict(f"there is an endpoint {endpoint.name!r} already")
        self._last_endpoint += 1
        added = self.endpoints[self._last_endpoint] = replace(endpoint, id=self._last_endpoint)
        return added

    def add_workergroup(self, group: Workergroup) -> Workergroup:
        """It, with an id."""
        self._last_workergroup += 1
        added = self.workergroups[self._last_workergroup] = replace(group, id=self._last_workergroup)
        return added

    def remove_endpoint(self, endpoint: Endpoint) -> None:
        """And its workergroups with it."""
        for group in self.workergroups_of(endpoint):
            del self.workergroups[group.id]
        del self.endpoints[endpoint.id]


def read_endpoint(message: Mapping[str, object], before: Endpoint) -> Endpoint:
    """`before` with what `message` says of it; what is left out or null stays. Raises `BadMessage`.

    A name that is "" is to be given; one that is there can't be changed, since workers join by it.
    """
    fields = Fields(message)
    name = before.name
    if not name:
        name = fields.text("endpoint_name")
        if what := wrong_endpoint_name(name):
            fields.problem("endpoint_name", what)
    elif fields.has("endpoint_name") and fields.text("endpoint_name") != name:
        fields.problem("endpoint_name", f"is {name!r} and can't be changed: workers join it by this name")
    scaling, remarks = before.scaling, before.remarks
    endpoint = replace(
        before,
        name=name,
        scaling=Scaling(
            min_load=_number(fields, "min_load", scaling.min_load),
            target_util=_share(fields, "target_util", scaling.target_util),
            cold_mult=_number(fields, "cold_mult", scaling.cold_mult),
            cold_workers=_count(fields, "cold_workers", scaling.cold_workers),
            max_workers=_count(fields, "max_workers", scaling.max_workers),
        ),
        remarks=Remarks(
            min_cold_load=_number(fields, "min_cold_load", remarks.min_cold_load),
            max_queue_time=_number(fields, "max_queue_time", remarks.max_queue_time),
            target_queue_time=_number(fields, "target_queue_time", remarks.target_queue_time),
            inactivity_timeout=_number(fields, "inactivity_timeout", remarks.inactivity_timeout, -MAX_SCALE),
            endpoint_state=_state(fields, remarks.endpoint_state),
            autoscaler_instance=_text(fields, "autoscaler_instance", remarks.autoscaler_instance),
        ),
    )
    fields.finish()
    return endpoint


def read_workergroup(message: Mapping[str, object], before: Workergroup, groups: Groups) -> Workergroup:
    """`before` with what `message` says of it; what is left out or null stays.

    Raises `BadMessage`, also where neither says its endpoint (an id that is 0) or its template, and
    `NotFound` for an endpoint that isn't there.
    """
    fields = Fields(message)
    group = replace(
        before,
        template_hash=_text(fields, "template_hash", before.template_hash),
        template_id=_count(fields, "template_id", before.template_id, INT64_MAX),
        search_params=_search(fields, before.search_params),
        launch_args=_text(fields, "launch_args", before.launch_args),
        gpu_ram=_number(fields, "gpu_ram", before.gpu_ram),
        test_workers=_count(fields, "test_workers", before.test_workers),
        min_load=_number(fields, "min_load", before.min_load),
        target_util=_share(fields, "target_util", before.target_util),
        cold_mult=_number(fields, "cold_mult", before.cold_mult),
    )
    if not group.template_hash and group.template_id is None:
        fields.problem("template_hash", "or template_id is needed")
    endpoint_id = fields.integer("endpoint_id", 1) if fields.has("endpoint_id") else None
    endpoint_name = fields.text("endpoint_name") if fields.has("endpoint_name") else None
    if not before.endpoint_id and endpoint_id is None and endpoint_name is None:
        fields.problem("endpoint_id", "or endpoint_name is needed")
    fields.finish()
    return replace(group, endpoint_id=_endpoint_id(groups, before, endpoint_id, endpoint_name))


def ignored_in(message: Mapping[str, object], thing: Endpoint | Workergroup) -> list[str]:
    """Which keys of `message` mean nothing here: clients' newer ones, and misspelled ones."""
    known = {*_ENVELOPE, "endpoint_name"}
    if isinstance(thing, Endpoint):
        known |= {*asdict(thing.scaling), *asdict(thing.remarks)}
    else:
        # What the official client may say of a group as well; nothing here is rented or pulled.
        known |= {*asdict(thing), *_CREDENTIALS, "min_cold_load", "max_workers", "autoscaler_instance"}
    return sorted(set(message) - known)


def _endpoint_id(groups: Groups, before: Workergroup, endpoint_id: int | None, name: str | None) -> int:
    by_id = groups.endpoint(endpoint_id).id if endpoint_id is not None else None
    by_name: int | None = None
    if name is not None:
        named = groups.named(name)
        if named is None:
            raise NotFound(f"there is no endpoint {name!r}")
        by_name = named.id
    if by_id is not None and by_name is not None and by_id != by_name:
        raise BadMessage(f"endpoint_id {by_id} and endpoint_name {name!r} are two endpoints")
    return by_id or by_name or before.endpoint_id


# Where nothing is said, `default` stays.


def _number(fields: Fields, name: str, default: T, least: float = 0.0, most: float = MAX_SCALE) -> float | T:
    if not fields.has(name):
        return default
    number = fields.number(name, least)
    if number > most:
        fields.problem(name, f"must be {most:g} or less")
    return number


def _share(fields: Fields, name: str, default: T) -> float | T:
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
    """A query for offers, as text or as an object; nothing is searched for here."""
    value = fields.value("search_params")
    if value is None:
        return default
    if isinstance(value, dict):
        return cast("Mapping[str, object]", value)
    return _text(fields, "search_params", "")
