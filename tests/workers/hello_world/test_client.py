from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lib.client import CallFailed, RouteClient, Target
from workers.hello_world import client
from workers.hello_world.model_server import Pace, TextServer


async def route(request: web.Request) -> web.Response:
    """The engine: names this server as the worker."""
    return web.json_response({"url": str(request.url.origin()), "request_idx": 1})


async def unwrap(request: web.Request) -> web.StreamResponse:
    """The worker: passes the payload to the model server, and the whole answer back."""
    payload = json.loads(await request.read())["payload"]
    async with (
        aiohttp.ClientSession() as http,
        http.post(request.app[MODEL] + request.path, json=payload) as r,
    ):
        return web.Response(status=r.status, body=await r.read(), content_type=r.content_type)


MODEL = web.AppKey("model", str)


@asynccontextmanager
async def routed() -> AsyncGenerator[RouteClient, None]:
    model = TextServer(Pace(0))
    await model.load()
    app = web.Application()
    app.router.add_post("/route/", route)
    app.router.add_post("/{path:.*}", unwrap)
    async with TestServer(model.app()) as model_server:
        app[MODEL] = str(model_server.make_url("/")).rstrip("/")
        async with TestServer(app) as server, aiohttp.ClientSession() as http:
            yield RouteClient(http, Target(str(server.make_url("/")), "local", "key"))


async def test_ask_returns_the_whole_answer() -> None:
    async with routed() as engine:
        assert (await client.ask(engine, "the loveliest", 5)).startswith(" garden")


async def test_stream_prints_the_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    async with routed() as engine:
        await client.stream(engine, "the loveliest", 5)

    printed = capsys.readouterr().out
    assert printed.startswith(" garden")
    assert printed.endswith("\n")


async def test_a_refused_request_raises() -> None:
    async with routed() as engine:
        with pytest.raises(CallFailed, match=r"HTTP 422 .*max_response_tokens"):
            await client.ask(engine, "the loveliest", 0)
