"""The local engine's endpoints and workergroups over HTTP, as the official client manages them.

Owns those paths and their bodies, which have a shape of their own (launch.md); what may be said of an
endpoint or a workergroup is in groups.py.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from aiohttp import web

from lib.errors import Unauthorized, WorkerError
from lib.local.engine import LocalEngine
from lib.local.groups import Endpoint, Workergroup, ignored_in, read_endpoint, read_workergroup
from lib.local.incoming import api_key_of, endpoint_in_path, read_optional_message
from lib.local.messages import BadMessage, Conflict, NotFound
from lib.local.updates import ask_for_updates

Message = Mapping[str, object]
Reply = dict[str, Any]
Act = Callable[[web.Request, Message], Awaitable[Reply]]

# The official client's command line calls workergroups by their older name.
WORKERGROUP_PATHS = ("workergroups", "autojobs")

# What the console says of a failure, beside its sentence.
_CODES: tuple[tuple[type[WorkerError], str], ...] = (
    (Unauthorized, "auth_error"),
    (NotFound, "not_found"),
    (Conflict, "already_exists"),
    (WorkerError, "invalid_args"),
)


class GroupsApi:
    """The routes of one engine's endpoints and workergroups."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine

    def routes(self, prefix: str) -> list[web.RouteDef]:
        """Each under `prefix`, which may name an endpoint: then nothing else is seen or changed."""
        endpoints = f"{prefix}/api/v0/endptjobs/"
        routes = [
            *self._both(endpoints, self._endpoints, self._new_endpoint),
            *self._each(endpoints, self._endpoint, self._change_endpoint, self._remove_endpoint),
            self._route("POST", f"{prefix}/update_workers/", self._update_workers),
        ]
        for name in WORKERGROUP_PATHS:
            groups = f"{prefix}/api/v0/{name}/"
            routes += self._both(groups, self._groups, self._new_group)
            routes += self._each(groups, self._group, self._change_group, self._remove_group)
        return routes

    def _both(self, path: str, listed: Act, new: Act) -> list[web.RouteDef]:
        return [self._route("GET", path, listed), self._route("POST", path, new)]

    def _each(self, path: str, one: Act, change: Act, remove: Act) -> list[web.RouteDef]:
        acts = {"GET": one, "PUT": change, "DELETE": remove}
        return [self._route(method, path + "{id}/", act) for method, act in acts.items()]

    def _route(self, method: str, path: str, act: Act) -> web.RouteDef:
        return web.route(method, path, partial(self._answer, act))

    async def _answer(self, act: Act, request: web.Request) -> web.Response:
        """What `act` gives, or what it refused."""
        try:
            message = await read_optional_message(request)
            self._engine.authenticate(api_key_of(request, message))
            return web.json_response({"success": True, **await act(request, message)})
        except WorkerError as e:
            code = next(code for kind, code in _CODES if isinstance(e, kind))
            refusal = {"success": False, "error": code, "msg": e.message}
            return web.json_response(refusal, status=e.status)

    # Endpoints

    async def _endpoints(self, request: web.Request, _: Message) -> Reply:
        return {"results": [self._shown(endpoint) for endpoint in self._visible(request)]}

    async def _new_endpoint(self, request: web.Request, message: Message) -> Reply:
        name = endpoint_in_path(request)
        if name is not None and message.get("endpoint_name") is None:
            message = {**message, "endpoint_name": name}
        wanted = read_endpoint(message, Endpoint(0, "", self._engine.clock.wall()))
        if name not in (None, wanted.name):
            raise BadMessage(f"endpoint_name must be {name!r}, as in the path, or left out")
        added = self._engine.groups.add_endpoint(wanted)
        self._engine.note("info0", added, f"endpoint {added.name} was made")
        self._engine.wake()
        return {"result": added.id, **_told(message, added)}

    async def _endpoint(self, request: web.Request, _: Message) -> Reply:
        return {"result": self._shown(self._endpoint_in(request))}

    async def _change_endpoint(self, request: web.Request, message: Message) -> Reply:
        before = self._endpoint_in(request)
        changed = read_endpoint(message, before)
        self._engine.groups.endpoints[before.id] = changed
        self._engine.note("info0", changed, f"endpoint {changed.name} was changed: {changed.scaling}")
        self._engine.wake()
        return {"result": self._shown(changed), **_told(message, changed)}

    async def _remove_endpoint(self, request: web.Request, _: Message) -> Reply:
        self._engine.remove_endpoint(self._endpoint_in(request))
        return {}

    # Workergroups

    async def _groups(self, request: web.Request, _: Message) -> Reply:
        visible = self._visible(request)
        found = [group for endpoint in visible for group in self._engine.groups.workergroups_of(endpoint)]
        return {"results": [self._group_shown(group) for group in sorted(found, key=lambda group: group.id)]}

    async def _new_group(self, request: web.Request, message: Message) -> Reply:
        named = message.get("endpoint_id") is not None or message.get("endpoint_name") is not None
        if (name := endpoint_in_path(request)) and not named:
            message = {**message, "endpoint_name": name}
        wanted = self._read_group(request, message, Workergroup(0, 0, self._engine.clock.wall()))
        added = self._engine.groups.add_workergroup(wanted)
        endpoint = self._engine.groups.endpoint(added.endpoint_id)
        self._engine.note("info0", endpoint, f"workergroup {added.id} was added to {endpoint.name}")
        self._engine.wake()
        return {"result": added.id, "id": added.id, **_told(message, added)}

    async def _group(self, request: web.Request, _: Message) -> Reply:
        return {"result": self._group_shown(self._group_in(request))}

    async def _change_group(self, request: web.Request, message: Message) -> Reply:
        before = self._group_in(request)
        changed = self._read_group(request, message, before)
        self._engine.groups.workergroups[before.id] = changed
        endpoint = self._engine.groups.endpoint(changed.endpoint_id)
        self._engine.note("info0", endpoint, f"workergroup {changed.id} was changed")
        self._engine.wake()
        return {"result": self._group_shown(changed), **_told(message, changed)}

    async def _remove_group(self, request: web.Request, _: Message) -> Reply:
        group = self._group_in(request)
        endpoint = self._engine.groups.endpoint(group.endpoint_id)
        self._engine.note("info0", endpoint, f"workergroup {group.id} was removed")
        del self._engine.groups.workergroups[group.id]
        self._engine.wake()
        return {}

    async def _update_workers(self, request: web.Request, message: Message) -> Reply:
        """Each worker's own answer, by its id; a cancellation comes too late for those asked at once."""
        wanted = _integer("workergroup_id", message.get("workergroup_id"))
        cancelled = message.get("cancel_update") or False
        if not isinstance(cancelled, bool):
            raise BadMessage("cancel_update must be true or false")
        group = self._visible_group(request, self._engine.groups.workergroup(wanted))
        if cancelled:
            return {"msg": "there is nothing to cancel: workers are asked at once"}
        workers = self._engine.members(group)
        told = await ask_for_updates(workers, self._engine.authority)
        endpoint = self._engine.groups.endpoint(group.endpoint_id)
        self._engine.note("info0", endpoint, f"workergroup {group.id} was asked to update: {told}")
        return {"result": told}

    def _read_group(self, request: web.Request, message: Message, before: Workergroup) -> Workergroup:
        group = read_workergroup(message, before, self._engine.groups)
        return self._visible_group(request, group)

    # What a path means

    def _visible(self, request: web.Request) -> list[Endpoint]:
        name = endpoint_in_path(request)
        return [e for e in self._engine.groups.endpoints.values() if name in (None, e.name)]

    def _endpoint_in(self, request: web.Request) -> Endpoint:
        endpoint = self._engine.groups.endpoint(_id_in(request))
        if endpoint not in self._visible(request):
            raise NotFound(f"endpoint {endpoint.id} is not {endpoint_in_path(request)!r}")
        return endpoint

    def _group_in(self, request: web.Request) -> Workergroup:
        return self._visible_group(request, self._engine.groups.workergroup(_id_in(request)))

    def _visible_group(self, request: web.Request, group: Workergroup) -> Workergroup:
        if self._engine.groups.endpoint(group.endpoint_id) not in self._visible(request):
            raise NotFound(f"the workergroup is not one of {endpoint_in_path(request)!r}")
        return group

    def _shown(self, endpoint: Endpoint) -> Reply:
        return endpoint.to_json(self._engine.api_key)

    def _group_shown(self, group: Workergroup) -> Reply:
        endpoint = self._engine.groups.endpoint(group.endpoint_id)
        return group.to_json(endpoint.name, self._engine.api_key)


def _told(message: Message, thing: Endpoint | Workergroup) -> Reply:
    ignored = ignored_in(message, thing)
    return {"ignored": ignored} if ignored else {}


def _id_in(request: web.Request) -> int:
    text = request.match_info["id"]
    if not re.fullmatch("[0-9]{1,18}", text):
        raise BadMessage(f"the id in the path, {text!r}, is not an integer")
    return int(text)


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadMessage(f"{name} must be an integer" if value is not None else f"{name} is missing")
    return value
