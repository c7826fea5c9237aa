"""The routes of the local engine that describe an endpoint's API, and let a person try it.

Owns their paths and answers: `/openapi.json`, `/docs` and `/local/try`. Does not own: which worker describes
the API (descriptions.py), the page (docs_page.py), the request that is tried (tried_requests.py).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

import aiohttp
from aiohttp import web

from lib.client import RouteAnswer
from lib.errors import ClientGone, aborted
from lib.local.descriptions import ASKED_BY_ENGINE, Descriptions, NotDescribed
from lib.local.docs_page import DOCS_HEADERS, DocsPage
from lib.local.engine import LocalEngine
from lib.local.messages import NotFound
from lib.local.request_reading import endpoint_in_path, read_bytes
from lib.local.tried_requests import MAX_TRIED_BYTES, TriedRequest, read_tried, relay_answer
from lib.local.worker_calls import call_worker, send, worker_http
from lib.routes.api_page import html_response

# Set by aiohttp's client: workers would send compressed answers, which can't be shown as they arrive.
_ADDED_BY_AIOHTTP = ("Accept-Encoding", "User-Agent")


class DocsApi:
    """The description of the APIs of one engine's endpoints."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine
        self._http: aiohttp.ClientSession | None = None
        self._descriptions: Descriptions | None = None

    def routes(self, prefix: str) -> list[web.RouteDef]:
        """The routes that exist for each endpoint, below `prefix`."""
        return [web.get(f"{prefix}/openapi.json", self._openapi), web.get(f"{prefix}/docs", self._docs)]

    def add_to(self, app: web.Application) -> None:
        """Add the route that sends a request, and an HTTP client that lives as long as `app`.

        The server must cancel the handlers of clients that disconnect: that is how a request is stopped.
        """
        app.cleanup_ctx.append(self._open)
        app.router.add_post("/local/try", self._try)

    async def _open(self, _: web.Application) -> AsyncGenerator[None, None]:
        async with await worker_http(self._engine, skip_auto_headers=_ADDED_BY_AIOHTTP) as self._http:
            self._descriptions = Descriptions(self._engine, self._http)
            yield

    async def _openapi(self, request: web.Request) -> web.Response:
        if ASKED_BY_ENGINE in request.headers:
            raise NotFound("this is an engine: it describes the routes of its workers, and has none itself")
        name = endpoint_in_path(request) or self._default_name()
        description = await self._described.ask(self._engine.groups.joined(name).name)
        text = await asyncio.to_thread(json.dumps, description.document)
        return web.json_response(text=text)

    async def _docs(self, request: web.Request) -> web.Response:
        names = [each.name for each in self._engine.groups.endpoints.values()]
        name = endpoint_in_path(request) or self._default_name()
        page = DocsPage(name, names, f"{request.scheme}://{request.host}", self._engine.needs_key)
        try:
            text = await asyncio.to_thread(page.of, await self._described.ask(name))
        except NotDescribed as e:
            text = page.without(e.message)
        return html_response(text, DOCS_HEADERS)

    async def _try(self, request: web.Request) -> web.StreamResponse:
        body = await read_bytes(request, MAX_TRIED_BYTES)
        tried = await asyncio.to_thread(read_tried, body)
        self._engine.authenticate(tried.api_key)
        await self._check(tried)

        async def forward(worker: RouteAnswer) -> web.StreamResponse:
            assert self._http is not None
            target, sent = tried.target(), await asyncio.to_thread(tried.sent, worker)
            options = tried.options(worker, sent)
            answer = await send(self._engine, self._http, worker, tried.method, target, **options)
            async with answer:
                return await relay_answer(request, tried, sent, answer)

        try:
            return await call_worker(self._engine, tried.endpoint, tried.cost, forward)
        except ClientGone:
            return aborted(request)

    async def _check(self, tried: TriedRequest) -> None:
        """Refuse what no worker has described: this must not reach other routes, or other programs."""
        description = await self._described.latest(self._engine.groups.joined(tried.endpoint).name)
        if all((route.method, route.path) != (tried.method, tried.path) for route in description.routes):
            raise NotFound(
                f"worker {description.worker_id} describes no route {tried.method} {tried.path}: only "
                "described routes can be tried, which those of sessions are not"
            )

    def _default_name(self) -> str:
        """The first endpoint that a worker has joined; without workers, the engine's own."""
        endpoints = self._engine.groups.endpoints.values()
        names = (each.name for each in endpoints if self._engine.fleet.members(each.name))
        return next(names, self._engine.endpoint)

    @property
    def _described(self) -> Descriptions:
        assert self._descriptions is not None
        return self._descriptions
