"""The model server of the guides' workers: it answers their calls and remembers them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.guard import GUARD_S

WORDS = ("down", "the", "rabbit", "hole")


@dataclass
class GuideModel:
    """A model server and the requests it received: `METHOD path`, and the JSON or the body of each."""

    server: TestServer | None = None
    received: list[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def url(self) -> str:
        assert self.server is not None
        return str(self.server.make_url("")).rstrip("/")

    async def stop(self) -> None:
        """Stop listening."""
        assert self.server is not None
        await self.server.close()

    async def until(self, request: str) -> Any:
        """Wait for a request `METHOD path`, and return the JSON or the body of the first one."""
        with anyio.fail_after(GUARD_S):
            async with self._changed:
                await self._changed.wait_for(lambda: any(r == request for r, _ in self.received))
        return next(message for r, message in self.received if r == request)

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._remember])
        app.add_routes(
            [
                web.get("/health", _health),
                web.post("/generate", _generate),
                web.post("/generate_stream", _generate_stream),
                web.post("/transcribe", _transcribe),
                web.post("/render", _generate),
                web.get("/voices", _voices),
                web.get("/voices/{id}", _voices),
                web.post("/jobs", _take_job),
                web.get("/jobs/{id}", self._job),
                web.delete("/jobs/{id}", _health),
                web.get("/socket", _socket),
                web.post("/held", _held),
                web.post("/give_back", _health),
                web.post("/close", _health),
            ]
        )
        return app

    @web.middleware
    async def _remember(self, request: web.Request, handler: Any) -> web.StreamResponse:
        body = await request.read()
        is_json = request.content_type == "application/json"
        async with self._changed:
            message = json.loads(body) if is_json else body
            self.received.append((f"{request.method} {request.path}", message))
            self._changed.notify_all()
        return await handler(request)

    async def _job(self, request: web.Request) -> web.Response:
        """Answer that the job is done at the second request; the job `endless` is never done."""
        requests = [r for r, _ in self.received if r == f"GET {request.path}"]
        if len(requests) < 2 or request.match_info["id"] == "endless":
            return web.json_response({}, status=202)
        return web.json_response({"response": "done"})


@asynccontextmanager
async def guide_model() -> AsyncGenerator[GuideModel, None]:
    """Run the model server on a free port."""
    model = GuideModel()
    model.server = TestServer(model.app())
    async with model.server:
        yield model


async def _health(_: web.Request) -> web.Response:
    return web.Response(text="ok")


async def _generate(request: web.Request) -> web.Response:
    payload = await request.json()
    if payload.get("prompt") == "fail":
        return web.json_response({"error": "out of memory"}, status=500)
    return web.json_response({"response": "" if payload.get("prompt") == "nothing" else " ".join(WORDS)})


async def _generate_stream(request: web.Request) -> web.StreamResponse:
    payload = await request.json()
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    for word in WORDS:
        await response.write(json.dumps({"word": word}).encode() + b"\n")
    if payload.get("prompt") == "fail":
        await response.write(b'{"error": "out of memory"}\n')
    return response


async def _transcribe(request: web.Request) -> web.Response:
    body = await request.read()
    return web.json_response({"bytes": len(body), "type": request.content_type})


async def _voices(request: web.Request) -> web.Response:
    return web.json_response({"path": request.path, "query": dict(request.query)})


async def _take_job(request: web.Request) -> web.Response:
    payload = await request.json()
    return web.json_response({"id": payload["prompt"]})


async def _socket(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    payload = await socket.receive_json()
    for word in (payload["prompt"], *WORDS):
        await socket.send_str(word)
    await socket.close()
    return socket


async def _held(_: web.Request) -> web.Response:
    await asyncio.Event().wait()
    return web.Response()
