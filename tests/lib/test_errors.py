"""aiohttp's own errors in an author's route are JSON as all others; an author's are what the author says."""

from __future__ import annotations

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lib.errors import refusals_as_json


async def bare(request: web.Request) -> web.Response:
    raise web.HTTPForbidden


async def own_text(request: web.Request) -> web.Response:
    raise web.HTTPForbidden(text="not for you")


async def reading(request: web.Request) -> web.Response:
    await request.read()
    return web.Response()


async def redirect(request: web.Request) -> web.Response:
    raise web.HTTPFound("/elsewhere")


@pytest.mark.parametrize(
    ("path", "status", "content_type", "text"),
    [
        ("/bare", 403, "application/json", '{"error": "403: Forbidden"}'),
        ("/own_text", 403, "text/plain", "not for you"),
        ("/reading", 413, "application/json", None),
        ("/redirect", 302, "text/plain", "302: Found"),
        ("/none", 404, "application/json", '{"error": "POST /none: not found"}'),
    ],
)
async def test_errors_of_an_authors_route(
    path: str, status: int, content_type: str, text: str | None
) -> None:
    app = web.Application(client_max_size=10, middlewares=[refusals_as_json])
    for handler in (bare, own_text, reading, redirect):
        app.router.add_post(f"/{handler.__name__}", handler)
    async with (
        TestServer(app) as server,
        aiohttp.ClientSession() as http,
        http.post(server.make_url(path), data=b"x" * 100, allow_redirects=False) as answer,
    ):
        assert (answer.status, answer.content_type) == (status, content_type)
        assert text is None or await answer.text() == text
