"""The model server's key goes to the model server's own origin and nowhere else."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lib.model.benchmark_request import BenchmarkRequest
from lib.model.caller import ModelCaller
from lib.model.connection import ModelServer, ModelSession
from lib.model.direct import target_of
from lib.model.flow import send_alone
from lib.runtime.clock import SystemClock
from tests.authors.own_answers import PlainHandler

KEY = "k-123"
BEARER = f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("server", "endpoint", "sent"),
    [
        ("http://m:8000", "/v1", BEARER),
        ("http://m:8000/v1", "chat?x=1", BEARER),
        ("http://m:8000", "http://m:8000/other", BEARER),
        ("http://M:8000", "http://m:8000/other", BEARER),
        ("http://m", "http://m:80/other", BEARER),
        ("https://m", "https://m:443/other", BEARER),
        ("http://m:8000", "http://m:8001/", None),
        ("http://m:8000", "http://n:8000/", None),
        ("http://m:8000", "http://m.n:8000/", None),
        ("http://m:8000", "https://m:8000/", None),
        ("https://m", "http://m/", None),
        ("http://127.0.0.1:8000", "http://localhost:8000/", None),
        ("http://m:8000", "http://m:8000@n/", "Basic bTo4MDAw"),
        ("http://a:b@m:8000", "/v1", "Basic YTpi"),
    ],
)
def test_the_key_is_in_the_head_of_a_target_of_the_same_origin(
    server: str, endpoint: str, sent: str | None
) -> None:
    fields = [line for line in target_of(server, endpoint, KEY).head.decode().split("\r\n")[1:] if line]
    expected = [] if sent is None else [f"Authorization: {sent}"]
    assert [line for line in fields if line.startswith("Authorization")] == expected
    assert "Authorization: Bearer" not in target_of(server, endpoint).head.decode()


@dataclass
class Server:
    """A server that notes what `Authorization` it gets, by paths; `/away` redirects to `elsewhere`."""

    seen: list[tuple[str, str | None]] = field(default_factory=list[tuple[str, str | None]])
    elsewhere: str = ""
    url: str = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append((request.path, request.headers.get("Authorization")))
        if request.path == "/away":
            raise web.HTTPTemporaryRedirect(self.elsewhere)
        if request.path == "/here":
            raise web.HTTPTemporaryRedirect("/arrived")
        if request.path == "/ws":
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            return socket
        return web.Response(status=401, text=f"Incorrect API key: {request.headers.get('Authorization')}")

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[Server, None]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        async with TestServer(app) as server:
            self.url = str(server.make_url("/")).rstrip("/")
            yield self


@dataclass
class Here:
    model: Server
    other: Server
    server: ModelServer

    @property
    def session(self) -> ModelSession:
        return ModelSession(self.server)


@asynccontextmanager
async def two_servers(api_key: str = KEY) -> AsyncGenerator[Here, None]:
    """A model server with `api_key`, and another one."""
    async with (
        Server().listening() as model,
        Server().listening() as other,
        ModelServer(model.url, api_key=api_key) as server,
    ):
        model.elsewhere = other.url + "/elsewhere"
        yield Here(model, other, server)


async def test_every_way_to_call_the_model_server_sends_the_key() -> None:
    async with two_servers() as here:
        caller = ModelCaller(here.server, {})
        async with caller.get("/get"), caller.post_json("/json", {}), caller.post_form("/form", {"a": "b"}):
            pass
        await (await caller.websocket("/ws")).close()
        async with here.session.get("/own"), here.server.unpooled.get(here.model.url + "/health"):
            pass
        await (await here.session.ws_connect("/ws")).close()
        paths = ["/get", "/json", "/form", "/ws", "/own", "/health", "/ws"]
        assert here.model.seen == [(path, BEARER) for path in paths]


async def test_another_origin_does_not_get_the_key() -> None:
    async with two_servers() as here:
        caller = ModelCaller(here.server, {})
        async with caller.get(here.other.url + "/get"), here.session.get(here.other.url + "/own"):
            pass
        await (await caller.websocket(here.other.url + "/ws")).close()
        async with here.session.get("/away") as answer:
            assert str(answer.url) == here.model.elsewhere
        assert here.other.seen == [(path, None) for path in ("/get", "/own", "/ws", "/elsewhere")]
        async with here.session.get("/here"):
            pass
        assert here.model.seen == [(path, BEARER) for path in ("/away", "/here", "/arrived")]


async def test_an_authors_own_authorization_is_kept() -> None:
    async with two_servers() as here:
        async with here.session.get("/own", headers={"authorization": "Basic YTpi"}):
            pass
        assert here.model.seen == [("/own", "Basic YTpi")]


async def test_without_a_key_no_authorization_is_sent() -> None:
    async with two_servers("") as here:
        async with ModelCaller(here.server, {}).get("/get"), here.session.get("/own"):
            pass
        assert here.model.seen == [("/get", None), ("/own", None)]


class _Posting(PlainHandler):
    """Posts its payload to the model server."""

    def call_model(self, model: Any, payload: Any) -> Any:
        return model.post_json("/v1", payload)


async def test_a_refused_benchmark_does_not_show_the_key() -> None:
    async with two_servers() as here:
        attempt = await send_alone(
            BenchmarkRequest(_Posting(), here.server, lambda _: 1.0).send, SystemClock()
        )
        assert not attempt.ok
        assert attempt.message.endswith("401: Incorrect API key: Bearer ***")
