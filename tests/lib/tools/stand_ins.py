"""A tiny engine and a tiny worker over real sockets, as bad as a test wants them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from lib.client import Target

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Engine:
    """Answers `/route/` with the worker's URL, after `not_ready` times without one."""

    def __init__(self, worker_url: str) -> None:
        self.worker_url = worker_url
        self.not_ready = 0
        self.answer: Answer | None = None
        self.asked: list[dict[str, Any]] = []
        app = web.Application()
        app.router.add_post("/route/", self._route)
        self.server = TestServer(app)

    @property
    def target(self) -> Target:
        return Target(str(self.server.make_url("/")), "small", "key-1")

    async def _route(self, request: web.Request) -> web.StreamResponse:
        message: dict[str, Any] = await request.json()
        self.asked.append(message)
        if self.answer:
            return await self.answer(request)
        idx = message["request_idx"] or len(self.asked)
        if len(self.asked) <= self.not_ready:
            return web.json_response({"endpoint": "small", "status": {"loading": 1}, "request_idx": idx})
        return web.json_response(
            {
                "url": self.worker_url,
                "reqnum": len(self.asked),
                "signature": "c2ln",
                "endpoint": "small",
                "cost": message["cost"],
                "request_idx": idx,
                "__request_id": f"r-{idx}",
            }
        )


class Worker:
    """Answers any POST as `answer` says, and notes the envelopes."""

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
        async with self.arrived:
            await self.arrived.wait_for(lambda: len(self.bodies) >= count)

    async def _call(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        async with self.arrived:
            self.paths.append(request.path)
            self.bodies.append(body)
            self.arrived.notify_all()
        return await self.answer(request)


class InTurn:
    """Answers each request once the test allows it."""

    def __init__(self) -> None:
        self.allowed = asyncio.Semaphore(0)

    async def answer(self, _request: web.Request) -> web.Response:
        await self.allowed.acquire()
        return web.Response(text="done")


async def ok(_request: web.Request) -> web.Response:
    return web.json_response({"response": "fine"})


async def cut(request: web.Request) -> web.StreamResponse:
    """Half an answer, and then the connection breaks."""
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b"half of it")
    return hang_up(request, response)


async def silent(request: web.Request) -> web.StreamResponse:
    """The connection breaks before any byte of an answer."""
    return hang_up(request, web.Response())


async def never(_request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError("an event that nobody sets was set")


def hang_up(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    if request.transport:
        request.transport.close()
    return response
