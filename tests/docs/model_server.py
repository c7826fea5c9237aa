"""The model server that the guides' workers stand in front of."""

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

GUARD_S = 20.0
WORDS = ("down", "the", "rabbit", "hole")


@dataclass
class GuideModel:
    """What came to the server, as `METHOD path`, with the JSON or the body of each; and the server."""

    server: TestServer | None = None
    came: list[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def url(self) -> str:
        assert self.server is not None
        return str(self.server.make_url("")).rstrip("/")

    async def stop(self) -> None:
        """Serve no more."""
        assert self.server is not None
        await self.server.close()

    async def until(self, what: str) -> Any:
        """What came with the first request `what`, once there is one."""
        with anyio.fail_after(GUARD_S):
            async with self._changed:
                await self._changed.wait_for(lambda: any(each == what for each, _ in self.came))
        return next(message for each, message in self.came if each == what)

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._noted])
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
    async def _noted(self, request: web.Request, handler: Any) -> web.StreamResponse:
        body = await request.read()
        is_json = request.content_type == "application/json"
        async with self._changed:
            message = json.loads(body) if is_json else body
            self.came.append((f"{request.method} {request.path}", message))
            self._changed.notify_all()
        return await handler(request)

    async def _job(self, request: web.Request) -> web.Response:
        """Done at the second look, but for one that never is."""
        looks = [each for each, _ in self.came if each == f"GET {request.path}"]
        if len(looks) < 2 or request.match_info["id"] == "endless":
            return web.json_response({}, status=202)
        return web.json_response({"response": "done"})


@asynccontextmanager
async def guide_model() -> AsyncGenerator[GuideModel, None]:
    """A listening one."""
    model = GuideModel()
    model.server = TestServer(model.app())
    async with model.server:
        yield model


async def _health(_: web.Request) -> web.Response:
    return web.Response(text="ok")


async def _generate(request: web.Request) -> web.Response:
    asked = await request.json()
    if asked.get("prompt") == "fail":
        return web.json_response({"error": "out of memory"}, status=500)
    return web.json_response({"response": "" if asked.get("prompt") == "nothing" else " ".join(WORDS)})


async def _generate_stream(request: web.Request) -> web.StreamResponse:
    asked = await request.json()
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    for word in WORDS:
        await response.write(json.dumps({"word": word}).encode() + b"\n")
    if asked.get("prompt") == "fail":
        await response.write(b'{"error": "out of memory"}\n')
    return response


async def _transcribe(request: web.Request) -> web.Response:
    body = await request.read()
    return web.json_response({"bytes": len(body), "type": request.content_type})


async def _voices(request: web.Request) -> web.Response:
    return web.json_response({"path": request.path, "query": dict(request.query)})


async def _take_job(request: web.Request) -> web.Response:
    asked = await request.json()
    return web.json_response({"id": asked["prompt"]})


async def _socket(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    asked = await socket.receive_json()
    for word in (asked["prompt"], *WORDS):
        await socket.send_str(word)
    await socket.close()
    return socket


async def _held(_: web.Request) -> web.Response:
    await asyncio.Event().wait()
    return web.Response()
