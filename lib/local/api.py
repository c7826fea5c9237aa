"""The local engine's HTTP API: its routes, each also under `/e/NAME`, and their answers.

Owns paths, bodies and statuses. Does not own: the engine's state and rules (engine.py), the routes that
manage endpoints and workergroups (groups_api.py), the description of the workers' routes (docs_api.py), the
OpenAI gateway (openai_gateway.py).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from aiohttp import web

from lib.access.payload import is_json
from lib.errors import BodyTooLarge, MediaTypeRefused, WorkerError, error_answer
from lib.local.authority import MAX_REQUEST_BYTES
from lib.local.docs_api import DocsApi
from lib.local.engine import LocalEngine
from lib.local.faults import FaultKind
from lib.local.fleet import WorkerRecord
from lib.local.groups import Endpoint, Workergroup
from lib.local.groups_api import GroupsApi
from lib.local.messages import (
    BadMessage,
    Fields,
    NotFound,
    read_delete_requests,
    read_route_query,
    read_worker_status,
)
from lib.local.openai_gateway import OpenAIGateway
from lib.local.overview import Overview, plans
from lib.local.page_headers import page_headers
from lib.local.request_reading import (
    MAX_BODY_BYTES,
    api_key_of,
    endpoint_in_path,
    loopback_url_in,
    read_bytes,
    read_message,
)
from lib.runtime.clock import wait_for
from lib.runtime.hosts import HostGuard

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# The routes that take bodies of any media type.
_ANY_MEDIA_TYPE = re.compile(r"/api/v0/sign_cert/$|^/openai/")
# The page at `/` and every file that it loads.
PAGE = Path(__file__).parent / "page"
PAGE_HEADERS = page_headers("img-src data:")


class RequestedFault(WorkerError):
    """The error status that a fault injects (faults.py)."""

    def __init__(self, status: int) -> None:
        super().__init__("injected fault (see /local/faults)")
        self.status = status


class EngineApi:
    """The HTTP API of one engine. `guard` decides for which hosts and from which pages it is asked."""

    def __init__(self, engine: LocalEngine, guard: HostGuard | None = None) -> None:
        self._engine = engine
        self._guard = guard or HostGuard("127.0.0.1")
        self._closing = asyncio.Event()

    def app(self) -> web.Application:
        """Return a new application; at its start it makes the engine's key if there is none yet."""
        middlewares = [errors_as_json, self._guard.middleware, takes_json_only]
        app = web.Application(middlewares=middlewares, client_max_size=MAX_BODY_BYTES)
        groups, docs = GroupsApi(self._engine), DocsApi(self._engine)
        for prefix in ("", "/e/{endpoint}"):
            app.add_routes(
                [
                    web.get(f"{prefix}/pubkey/", partial(self._with_fault, "pubkey", self._pubkey)),
                    web.post(f"{prefix}/route/", partial(self._with_fault, "route", self._route)),
                    web.post(f"{prefix}/worker_status/", partial(self._with_fault, "reports", self._report)),
                    web.post(
                        f"{prefix}/delete_requests/",
                        partial(self._with_fault, "completions", self._completions),
                    ),
                    web.post(f"{prefix}/get_endpoint_workers/", self._endpoint_workers),
                    web.post(f"{prefix}/get_autogroup_workers/", self._group_workers),
                    web.post(f"{prefix}/get_endpoint_logs/", self._endpoint_logs),
                    web.post(f"{prefix}/get_autogroup_logs/", self._group_logs),
                    *groups.routes(prefix),
                    web.post(f"{prefix}/api/v0/sign_cert/", self._sign_cert),
                    web.get(f"{prefix}/static/jvastai_root.cer", self._root_certificate),
                    *docs.routes(prefix),
                ]
            )
        app.add_routes(
            [
                web.get("/", _page),
                web.static("/page/", PAGE),
                web.get("/local/overview", self._overview),
                web.get("/local/plan", self._plan),
                web.get("/local/faults", self._show_faults),
                web.post("/local/faults", self._set_faults),
                web.post("/local/rotate_key", self._rotate_key),
            ]
        )
        docs.add_to(app)
        OpenAIGateway(self._engine).add_to(app)
        app.on_startup.append(self._prepare)
        app.on_shutdown.append(self._close)
        return app

    async def _prepare(self, _: web.Application) -> None:
        await self._engine.signer.prepare()

    async def _close(self, _: web.Application) -> None:
        self._closing.set()

    async def _with_fault(
        self, kind: FaultKind, handler: Handler, request: web.Request
    ) -> web.StreamResponse:
        """Answer with `handler`, subject to the active fault for `kind` (see faults.Fault)."""
        fault = self._engine.faults.take(kind)
        self._engine.count(kind)
        if fault is None:
            return await handler(request)
        if fault.delay_s and await wait_for(self._engine.clock, self._closing, fault.delay_s):
            return _abort_connection(request)
        if fault.drop:
            return _abort_connection(request)
        if fault.refuse or fault.status is not None:
            raise RequestedFault(503 if fault.refuse else fault.status or 503)
        try:
            return await handler(request)
        finally:
            if fault.lose:
                _abort_connection(request)

    async def _pubkey(self, _: web.Request) -> web.Response:
        return web.Response(text=self._engine.public_key)

    async def _route(self, request: web.Request) -> web.Response:
        message = await read_message(request)
        self._authenticate(request, message)
        return web.json_response(self._engine.route(read_route_query(message, endpoint_in_path(request))))

    async def _report(self, request: web.Request) -> web.Response:
        endpoint = endpoint_in_path(request) or self._engine.endpoint
        message = read_worker_status(await read_message(request))
        self._engine.take_report(endpoint, message, loopback_url_in(request))
        return web.json_response({})

    async def _completions(self, request: web.Request) -> web.Response:
        endpoint_in_path(request)
        self._engine.take_finished(read_delete_requests(await read_message(request)))
        return web.json_response({})

    async def _endpoint_workers(self, request: web.Request) -> web.Response:
        endpoint = self._endpoint_of(request, await self._read(request))
        return _worker_list(self._engine.fleet.members(endpoint.name))

    async def _group_workers(self, request: web.Request) -> web.Response:
        return _worker_list(self._engine.members(self._group_of(request, await self._read(request))))

    async def _endpoint_logs(self, request: web.Request) -> web.Response:
        message = await self._read(request)
        return self._log_response(self._endpoint_of(request, message), message)

    async def _group_logs(self, request: web.Request) -> web.Response:
        message = await self._read(request)
        return self._log_response(self._group_of(request, message), message)

    def _log_response(self, subject: Endpoint | Workergroup, message: Mapping[str, object]) -> web.Response:
        fields = Fields(message)
        tail = fields.integer("tail", 0) if fields.has("tail") else None
        fields.finish()
        return web.json_response(self._engine.log_of(subject).to_json(tail))

    async def _plan(self, _: web.Request) -> web.Response:
        return web.json_response({"plans": plans(self._engine)})

    async def _overview(self, request: web.Request) -> web.Response:
        since = request.query.get("since", "0")
        try:
            overview = Overview(self._engine, float(since))
        except ValueError as e:
            raise BadMessage(f"since {since!r} is not a time in Unix seconds") from e
        return web.json_response(overview.to_json())

    async def _sign_cert(self, request: web.Request) -> web.Response:
        endpoint_in_path(request)
        instance_id = request.query.get("instance_id", "")
        if not re.fullmatch("[0-9]{1,18}", instance_id):
            raise BadMessage("instance_id, in the query, must be an integer")
        body = await read_bytes(request)
        if len(body) > MAX_REQUEST_BYTES:
            raise BodyTooLarge(f"the body is larger than {MAX_REQUEST_BYTES} bytes")
        pem = self._engine.certify(int(instance_id), body)
        return web.Response(text=pem, content_type="application/octet-stream")

    async def _root_certificate(self, request: web.Request) -> web.Response:
        endpoint_in_path(request)
        return web.Response(text=self._engine.authority.root_pem, content_type="application/x-x509-ca-cert")

    async def _show_faults(self, _: web.Request) -> web.Response:
        return web.json_response(self._engine.faults.to_json())

    async def _set_faults(self, request: web.Request) -> web.Response:
        self._engine.faults.update(await read_message(request))
        return web.json_response(self._engine.faults.to_json())

    async def _rotate_key(self, _: web.Request) -> web.Response:
        await self._engine.rotate_key()
        return web.json_response({"public_key": self._engine.public_key})

    async def _read(self, request: web.Request) -> Mapping[str, object]:
        """Read the JSON body and check its API key. Raises `BadMessage`, `BodyTooLarge`, `Unauthorized`."""
        message = await read_message(request)
        self._authenticate(request, message)
        return message

    def _authenticate(self, request: web.Request, message: Mapping[str, object]) -> None:
        self._engine.authenticate(api_key_of(request, message))

    def _endpoint_of(self, request: web.Request, message: Mapping[str, object]) -> Endpoint:
        """The endpoint given by `id` in the message, by the path, or by both. Raises `NotFound`."""
        prefix, fields = endpoint_in_path(request), Fields(message)
        in_path = None if prefix is None else self._engine.groups.joined(prefix)
        if in_path is not None and not fields.has("id"):
            return in_path
        wanted = fields.integer("id")
        fields.finish()
        if in_path is not None and in_path.id != wanted:
            raise NotFound(f"endpoint {prefix!r} has the id {in_path.id}, not {wanted}")
        return self._engine.groups.endpoint(wanted)

    def _group_of(self, request: web.Request, message: Mapping[str, object]) -> Workergroup:
        """The workergroup with the message's `id`. Raises `NotFound` if the path names another endpoint."""
        prefix, fields = endpoint_in_path(request), Fields(message)
        wanted = fields.integer("id")
        fields.finish()
        group = self._engine.groups.workergroup(wanted)
        if prefix not in (None, self._engine.groups.endpoint(group.endpoint_id).name):
            raise NotFound(f"{prefix!r} has no workergroup with the id {wanted}")
        return group


def _worker_list(workers: Sequence[WorkerRecord]) -> web.Response:
    return web.json_response([worker.to_json() for worker in workers])


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn each error into a JSON object whose `error` is its message."""
    try:
        return await handler(request)
    except WorkerError as e:
        return error_answer(e).response()
    except web.HTTPNotFound:
        return error_answer(NotFound(f"no route at {request.path}")).response()
    except web.HTTPMethodNotAllowed as e:
        allowed = ", ".join(sorted(e.allowed_methods))
        error = f"{request.path} accepts {allowed}, not {request.method}"
        return web.json_response({"error": error}, status=e.status, headers={"Allow": allowed})


@web.middleware
async def takes_json_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse a body that is not said to be JSON: a page can send one here without being asked whether it may.

    Requests for certificates and those that are forwarded to workers may have any body. Raises
    `MediaTypeRefused` (415).
    """
    resource = request.match_info.route.resource
    changes_state = request.method not in ("GET", "HEAD", "OPTIONS")
    if resource is not None and changes_state and not _ANY_MEDIA_TYPE.search(resource.canonical):
        has_body = request.body_exists or "Content-Type" in request.headers
        if has_body and not is_json(request.content_type):
            raise MediaTypeRefused("the body must be JSON: send it with Content-Type: application/json")
    return await handler(request)


async def _page(_: web.Request) -> web.StreamResponse:
    return web.FileResponse(PAGE / "index.html", headers=PAGE_HEADERS)


def _abort_connection(request: web.Request) -> web.Response:
    """Close the client's connection immediately; the returned response is never sent."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
