"""The HTTP routes that manage endpoints, workergroups and deployments, as Vast.ai's own client calls them.

Owns these routes and the shape of their answers (docs/local-engine.md, "Managing endpoints and
workergroups"). Does not own the parameters and their validation (groups.py).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from aiohttp import web

from lib.errors import Unauthorized, WorkerError
from lib.local.engine import LocalEngine
from lib.local.groups import Endpoint, Workergroup, read_endpoint, read_workergroup, unknown_keys
from lib.local.messages import BadMessage, Conflict, NotFound
from lib.local.request_reading import api_key_of, endpoint_in_path, read_optional_message
from lib.local.update_requests import request_updates

Message = Mapping[str, object]
Reply = dict[str, Any]
Action = Callable[[web.Request, Message], Awaitable[Reply]]

# The command line of Vast.ai's client uses the older name of workergroups.
WORKERGROUP_PATHS = ("workergroups", "autojobs")

# The console's error codes; the first class that matches counts.
_CODES: tuple[tuple[type[WorkerError], str], ...] = (
    (Unauthorized, "auth_error"),
    (NotFound, "not_found"),
    (Conflict, "already_exists"),
    (WorkerError, "invalid_args"),
)


class GroupsApi:
    """The management routes of one engine."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine

    def routes(self, prefix: str) -> list[web.RouteDef]:
        """The routes under `prefix`. If it names an endpoint, they see and change that endpoint only."""
        endpoints = f"{prefix}/api/v0/endptjobs/"
        routes = [
            *self._collection_routes(endpoints, self._endpoints, self._add_endpoint),
            *self._item_routes(endpoints, self._endpoint, self._change_endpoint, self._remove_endpoint),
            self._route("POST", f"{prefix}/update_workers/", self._update_workers),
            self._route("PUT", f"{prefix}/api/v0/deployments/", self._put_deployment),
            self._route("POST", f"{prefix}/api/v0/deployment/{{id}}/heartbeat/", self._keep_deployment),
        ]
        for name in WORKERGROUP_PATHS:
            groups = f"{prefix}/api/v0/{name}/"
            routes += self._collection_routes(groups, self._groups, self._add_group)
            routes += self._item_routes(groups, self._group, self._change_group, self._remove_group)
        return routes

    def _collection_routes(self, path: str, list_all: Action, new: Action) -> list[web.RouteDef]:
        return [self._route("GET", path, list_all), self._route("POST", path, new)]

    def _item_routes(self, path: str, one: Action, change: Action, remove: Action) -> list[web.RouteDef]:
        actions = {"GET": one, "PUT": change, "DELETE": remove}
        return [self._route(method, path + "{id}/", action) for method, action in actions.items()]

    def _route(self, method: str, path: str, action: Action) -> web.RouteDef:
        return web.route(method, path, partial(self._answer, action))

    async def _answer(self, action: Action, request: web.Request) -> web.Response:
        """Authenticate, run `action`, and answer with its result or its error."""
        try:
            message = await read_optional_message(request)
            self._engine.authenticate(api_key_of(request, message))
            return web.json_response({"success": True, **await action(request, message)})
        except WorkerError as e:
            code = next(code for kind, code in _CODES if isinstance(e, kind))
            error = {"success": False, "error": code, "msg": e.message}
            return web.json_response(error, status=e.status)

    # Endpoints

    async def _endpoints(self, request: web.Request, _: Message) -> Reply:
        return {"results": [self._endpoint_json(endpoint) for endpoint in self._visible(request)]}

    async def _add_endpoint(self, request: web.Request, message: Message) -> Reply:
        name = endpoint_in_path(request)
        if name is not None and message.get("endpoint_name") is None:
            message = {**message, "endpoint_name": name}
        wanted = read_endpoint(message, Endpoint(0, "", self._engine.clock.wall()))
        if name not in (None, wanted.name):
            raise BadMessage(f"endpoint_name must be {name!r}, as in the path, or left out")
        added = self._engine.groups.add_endpoint(wanted)
        self._engine.note("info0", added, f"endpoint {added.name} was created")
        self._engine.wake()
        return {"result": added.id, **_ignored(message, added)}

    async def _endpoint(self, request: web.Request, _: Message) -> Reply:
        return {"result": self._endpoint_json(self._endpoint_in(request))}

    async def _change_endpoint(self, request: web.Request, message: Message) -> Reply:
        before = self._endpoint_in(request)
        changed = read_endpoint(message, before)
        self._engine.groups.endpoints[before.id] = changed
        self._engine.note("info0", changed, f"endpoint {changed.name} was changed: {changed.scaling}")
        self._engine.wake()
        return {"result": self._endpoint_json(changed), **_ignored(message, changed)}

    async def _remove_endpoint(self, request: web.Request, _: Message) -> Reply:
        self._engine.remove_endpoint(self._endpoint_in(request))
        return {}

    # Workergroups

    async def _groups(self, request: web.Request, _: Message) -> Reply:
        visible = self._visible(request)
        found = [group for endpoint in visible for group in self._engine.groups.workergroups_of(endpoint)]
        return {"results": [self._group_json(group) for group in sorted(found, key=lambda group: group.id)]}

    async def _add_group(self, request: web.Request, message: Message) -> Reply:
        named = message.get("endpoint_id") is not None or message.get("endpoint_name") is not None
        if (name := endpoint_in_path(request)) and not named:
            message = {**message, "endpoint_name": name}
        wanted = self._read_group(request, message, Workergroup(0, 0, self._engine.clock.wall()))
        added = self._engine.groups.add_workergroup(wanted)
        endpoint = self._engine.groups.endpoint(added.endpoint_id)
        self._engine.note("info0", endpoint, f"workergroup {added.id} was added to {endpoint.name}")
        self._engine.wake()
        return {"result": added.id, "id": added.id, **_ignored(message, added)}

    async def _group(self, request: web.Request, _: Message) -> Reply:
        return {"result": self._group_json(self._group_in(request))}

    async def _change_group(self, request: web.Request, message: Message) -> Reply:
        before = self._group_in(request)
        changed = self._read_group(request, message, before)
        self._engine.groups.workergroups[before.id] = changed
        endpoint = self._engine.groups.endpoint(changed.endpoint_id)
        self._engine.note("info0", endpoint, f"workergroup {changed.id} was changed")
        self._engine.wake()
        return {"result": self._group_json(changed), **_ignored(message, changed)}

    async def _remove_group(self, request: web.Request, _: Message) -> Reply:
        group = self._group_in(request)
        endpoint = self._engine.groups.endpoint(group.endpoint_id)
        self._engine.note("info0", endpoint, f"workergroup {group.id} was removed")
        del self._engine.groups.workergroups[group.id]
        self._engine.wake()
        return {}

    async def _update_workers(self, request: web.Request, message: Message) -> Reply:
        """Ask the workers of a group to update; the answer has each worker's result by its id."""
        wanted = _integer("workergroup_id", message.get("workergroup_id"))
        cancelled = message.get("cancel_update") or False
        if not isinstance(cancelled, bool):
            raise BadMessage("cancel_update must be true or false")
        group = self._visible_group(request, self._engine.groups.workergroup(wanted))
        if cancelled:
            return {"msg": "nothing to cancel: workers are asked immediately"}
        results = await request_updates(self._engine.members(group), self._engine.authority)
        endpoint = self._engine.groups.endpoint(group.endpoint_id)
        self._engine.note("info0", endpoint, f"asked workergroup {group.id} to update: {results}")
        return {"result": results}

    # Deployments: those that exist are the endpoints', whose workers somebody else has started

    async def _put_deployment(self, request: web.Request, message: Message) -> Reply:
        """Answer that the deployment exists already, so that the client calls the workers that there are."""
        name = endpoint_in_path(request) or self._engine.endpoint
        endpoint = self._engine.groups.join(name, self._engine.clock.wall())
        self._engine.note(
            "info0", endpoint, f"a client uses {name} as its deployment {message.get('name')!r}"
        )
        return {"action": "exists", "deployment_id": endpoint.id, "endpoint_id": endpoint.id}

    async def _keep_deployment(self, request: web.Request, _: Message) -> Reply:
        self._endpoint_in(request)
        return {}

    def _read_group(self, request: web.Request, message: Message, before: Workergroup) -> Workergroup:
        group = read_workergroup(message, before, self._engine.groups)
        return self._visible_group(request, group)

    # Endpoints and workergroups by path

    def _visible(self, request: web.Request) -> list[Endpoint]:
        name = endpoint_in_path(request)
        return [e for e in self._engine.groups.endpoints.values() if name in (None, e.name)]

    def _endpoint_in(self, request: web.Request) -> Endpoint:
        endpoint = self._engine.groups.endpoint(_id_in(request))
        if endpoint not in self._visible(request):
            raise NotFound(f"endpoint {endpoint.id} is not {endpoint_in_path(request)!r}, as in the path")
        return endpoint

    def _group_in(self, request: web.Request) -> Workergroup:
        return self._visible_group(request, self._engine.groups.workergroup(_id_in(request)))

    def _visible_group(self, request: web.Request, group: Workergroup) -> Workergroup:
        if self._engine.groups.endpoint(group.endpoint_id) not in self._visible(request):
            raise NotFound(f"the workergroup belongs to another endpoint than {endpoint_in_path(request)!r}")
        return group

    def _endpoint_json(self, endpoint: Endpoint) -> Reply:
        return endpoint.to_json(self._engine.api_key)

    def _group_json(self, group: Workergroup) -> Reply:
        endpoint = self._engine.groups.endpoint(group.endpoint_id)
        return group.to_json(endpoint.name, self._engine.api_key)


def _ignored(message: Message, subject: Endpoint | Workergroup) -> Reply:
    ignored = unknown_keys(message, subject)
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
