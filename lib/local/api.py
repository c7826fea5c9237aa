"""The local engine over HTTP: its routes, each also under `/e/NAME`, and how they answer.

Owns paths, bodies and statuses. What the engine does with a message is in engine.py.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from lib.clock import wait_for
from lib.errors import BodyTooLarge, WorkerError, error_response
from lib.local.authority import MAX_REQUEST_BYTES
from lib.local.faults import FaultKind
from lib.local.messages import (
    BadMessage,
    Fields,
    parse_object,
    read_delete_requests,
    read_route_query,
    read_worker_status,
    wrong_endpoint_name,
)
from lib.local.overview import Overview

if TYPE_CHECKING:
    from lib.local.engine import LocalEngine

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# The largest message is 10,000 finished requests (protocol.md §3) of some 200 bytes each.
MAX_BODY_BYTES = 8 * 1024 * 1024
# The page at `/`: all that it loads is here.
PAGE = Path(__file__).parent / "page"


class NotFound(WorkerError):
    status = 404


class OnDemand(WorkerError):
    """The answer that a fault asked for."""

    def __init__(self, status: int) -> None:
        super().__init__("a fault on demand")
        self.status = status


class Api:
    """The routes of one engine."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine
        self._closing = asyncio.Event()

    def app(self) -> web.Application:
        app = web.Application(middlewares=[errors_as_json], client_max_size=MAX_BODY_BYTES)
        for prefix in ("", "/e/{endpoint}"):
            app.add_routes(
                [
                    web.get(f"{prefix}/pubkey/", partial(self._play, "pubkey", self._pubkey)),
                    web.post(f"{prefix}/route/", partial(self._play, "route", self._route)),
                    web.post(f"{prefix}/worker_status/", partial(self._play, "reports", self._report)),
                    web.post(
                        f"{prefix}/delete_requests/", partial(self._play, "completions", self._finished)
                    ),
                    web.post(f"{prefix}/get_endpoint_workers/", self._endpoint_workers),
                    web.post(f"{prefix}/api/v0/sign_cert/", self._sign_cert),
                    web.get(f"{prefix}/static/jvastai_root.cer", self._root_certificate),
                ]
            )
        app.add_routes(
            [
                web.get("/", _page),
                web.static("/page/", PAGE),
                web.get("/local/overview", self._overview),
                web.get("/local/faults", self._show_faults),
                web.post("/local/faults", self._set_faults),
                web.post("/local/rotate_key", self._rotate_key),
            ]
        )
        app.on_startup.append(self._prepare)
        app.on_shutdown.append(self._close)
        return app

    async def _prepare(self, _: web.Application) -> None:
        await self._engine.signer.prepare()

    async def _close(self, _: web.Application) -> None:
        self._closing.set()

    async def _play(self, kind: FaultKind, handler: Handler, request: web.Request) -> web.StreamResponse:
        """What `handler` answers, or what the fault in force makes of it."""
        fault = self._engine.faults.take(kind)
        self._engine.count(kind)
        if fault is None:
            return await handler(request)
        if fault.delay_s and await wait_for(self._engine.clock, self._closing, fault.delay_s):
            return _hang_up(request)
        if fault.drop:
            return _hang_up(request)
        if fault.refuse or fault.status is not None:
            raise OnDemand(503 if fault.refuse else fault.status or 503)
        try:
            return await handler(request)
        finally:
            if fault.lose:
                _hang_up(request)

    async def _pubkey(self, _: web.Request) -> web.Response:
        return web.Response(text=self._engine.public_key)

    async def _route(self, request: web.Request) -> web.Response:
        message = await _read(request)
        self._authenticate(request, message)
        return web.json_response(self._engine.route(read_route_query(message, _prefix(request))))

    async def _report(self, request: web.Request) -> web.Response:
        endpoint = _prefix(request) or self._engine.endpoint
        self._engine.take_report(endpoint, read_worker_status(await _read(request)))
        return web.json_response({})

    async def _finished(self, request: web.Request) -> web.Response:
        _prefix(request)
        self._engine.take_finished(read_delete_requests(await _read(request)))
        return web.json_response({})

    async def _endpoint_workers(self, request: web.Request) -> web.Response:
        message = await _read(request)
        self._authenticate(request, message)
        name = self._endpoint_of(Fields(message), _prefix(request))
        return web.json_response([worker.to_json() for worker in self._engine.fleet.members(name)])

    async def _overview(self, request: web.Request) -> web.Response:
        since = request.query.get("since", "0")
        try:
            overview = Overview(self._engine, float(since))
        except ValueError as e:
            raise BadMessage(f"since {since!r} is not a time in Unix seconds") from e
        return web.json_response(overview.to_json())

    async def _sign_cert(self, request: web.Request) -> web.Response:
        _prefix(request)
        instance_id = request.query.get("instance_id", "")
        if not re.fullmatch("[0-9]{1,18}", instance_id):
            raise BadMessage("instance_id, in the query, must be an integer")
        body = await _read_bytes(request)
        if len(body) > MAX_REQUEST_BYTES:
            raise BodyTooLarge(f"the body is larger than {MAX_REQUEST_BYTES} bytes")
        pem = self._engine.certify(int(instance_id), body)
        return web.Response(text=pem, content_type="application/octet-stream")

    async def _root_certificate(self, request: web.Request) -> web.Response:
        _prefix(request)
        return web.Response(text=self._engine.authority.root_pem, content_type="application/x-x509-ca-cert")

    async def _show_faults(self, _: web.Request) -> web.Response:
        return web.json_response(self._engine.faults.to_json())

    async def _set_faults(self, request: web.Request) -> web.Response:
        self._engine.faults.update(await _read(request))
        return web.json_response(self._engine.faults.to_json())

    async def _rotate_key(self, _: web.Request) -> web.Response:
        await self._engine.rotate_key()
        return web.json_response({"public_key": self._engine.public_key})

    def _authenticate(self, request: web.Request, message: Mapping[str, object]) -> None:
        fields = Fields(message)
        api_key = fields.text("api_key") if fields.has("api_key") else ""
        fields.finish()
        self._engine.authenticate(api_key or _bearer(request))

    def _endpoint_of(self, fields: Fields, prefix: str | None) -> str:
        """The name of the endpoint that the `id` of a message, or the path, or both mean."""
        ids = self._engine.fleet.endpoint_ids
        if prefix is not None and prefix not in ids:
            raise NotFound(f"no worker has joined the endpoint {prefix!r}")
        if prefix is not None and not fields.has("id"):
            return prefix
        wanted = fields.integer("id")
        fields.finish()
        for name, endpoint_id in ids.items():
            if endpoint_id == wanted and prefix in (None, name):
                return name
        raise NotFound(f"no endpoint has the id {wanted}" if prefix is None else f"{prefix!r} has another id")


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers every refusal with a JSON object whose `error` says what is wrong."""
    try:
        return await handler(request)
    except WorkerError as e:
        return error_response(e)
    except web.HTTPNotFound:
        return error_response(NotFound(f"there is no {request.path}"))
    except web.HTTPMethodNotAllowed as e:
        allowed = ", ".join(sorted(e.allowed_methods))
        error = f"{request.path} takes {allowed}, not {request.method}"
        return web.json_response({"error": error}, status=e.status, headers={"Allow": allowed})


async def _page(_: web.Request) -> web.StreamResponse:
    return web.FileResponse(PAGE / "index.html")


async def _read(request: web.Request) -> Mapping[str, object]:
    return parse_object(await _read_bytes(request))


async def _read_bytes(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge as e:
        raise BodyTooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes") from e
    except web.RequestPayloadError as e:
        raise BadMessage(f"the body can't be read: {e}") from e


def _prefix(request: web.Request) -> str | None:
    """The endpoint that the path names, if it does."""
    name = request.match_info.get("endpoint")
    if name is not None and (what := wrong_endpoint_name(name)):
        raise BadMessage(f"the path's endpoint {what}")
    return name


def _bearer(request: web.Request) -> str:
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def _hang_up(request: web.Request) -> web.Response:
    """Close the connection at once; nothing that is answered afterwards goes out."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
