"""A fake engine and a fake worker on real sockets, whose answers and failures a test chooses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from lib.client import Target

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class FakeEngine:
    """Answers `/route/` with the worker's URL, after `not_ready` answers without one; notes the requests.

    If `answer` is set, it makes every answer instead. `document` describes the worker's routes, if it is set.
    """

    def __init__(self, worker_url: str) -> None:
        self.worker_url = worker_url
        self.document: Any = None
        self.not_ready = 0
        self.answer: Answer | None = None
        self.requests: list[dict[str, Any]] = []
        app = web.Application()
        app.router.add_post("/route/", self._route)
        app.router.add_get("/e/small/openapi.json", self._openapi)
        self.server = TestServer(app)

    @property
    def target(self) -> Target:
        return Target(str(self.server.make_url("/")), "small", "key-1")

    async def _openapi(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response(self.document, status=404 if self.document is None else 200)

    async def _route(self, request: web.Request) -> web.StreamResponse:
        message: dict[str, Any] = await request.json()
        self.requests.append(message)
        if self.answer:
            return await self.answer(request)
        idx = message["request_idx"] or len(self.requests)
        if len(self.requests) <= self.not_ready:
            return web.json_response({"endpoint": "small", "status": {"loading": 1}, "request_idx": idx})
        return web.json_response(
            {
                "url": self.worker_url,
                "reqnum": len(self.requests),
                "signature": "c2ln",
                "endpoint": "small",
                "cost": message["cost"],
                "request_idx": idx,
                "__request_id": f"r-{idx}",
            }
        )


class FakeWorker:
    """Answers every POST with `answer`; notes the paths and bodies of the requests."""

    def __init__(self) -> None:
        self.answer: Answer = ok
        self.paths: list[str] = []
        self.bodies: list[bytes] = []
        self.arrived = asyncio.Condition()
        app = web.Application()
        app.router.add_post("/{path:.*}", self._call)
        self.server = TestServer(app)

    @property
    def url(self) -> str:
        return str(self.server.make_url("/")).rstrip("/")

    async def until_arrived(self, count: int) -> None:
        """Return once `count` requests have arrived."""
        async with self.arrived:
            await self.arrived.wait_for(lambda: len(self.bodies) >= count)

    async def _call(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        async with self.arrived:
            self.paths.append(request.path)
            self.bodies.append(body)
            self.arrived.notify_all()
        return await self.answer(request)


@asynccontextmanager
async def engine_and_worker() -> AsyncGenerator[tuple[FakeEngine, FakeWorker], None]:
    """Run a fake worker, and a fake engine that names it."""
    worker = FakeWorker()
    async with worker.server:
        engine = FakeEngine(worker.url)
        async with engine.server:
            yield engine, worker


class OneByOne:
    """Answers one request for each release of `allowed`."""

    def __init__(self) -> None:
        self.allowed = asyncio.Semaphore(0)

    async def answer(self, _request: web.Request) -> web.Response:
        await self.allowed.acquire()
        return web.Response(text="done")


async def ok(_request: web.Request) -> web.Response:
    return web.json_response({"response": "fine"})


async def cut(request: web.Request) -> web.StreamResponse:
    """Send half an answer, then close the connection."""
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b"half of it")
    return hang_up(request, response)


async def silent(request: web.Request) -> web.StreamResponse:
    """Close the connection before any byte of an answer."""
    return hang_up(request, web.Response())


async def never(_request: web.Request) -> web.StreamResponse:
    """Wait until the request is cancelled."""
    await asyncio.Event().wait()
    raise AssertionError("unreachable: nothing sets the event")


def hang_up(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Close the connection of `request`; return `response`, which can no longer be sent."""
    if request.transport:
        request.transport.close()
    return response
