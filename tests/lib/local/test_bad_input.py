"""All routes of the engine's application: bad input gets a clear error and changes nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from lib.local.api import EngineApi
from lib.local.engine import LocalEngine
from lib.local.messages import RouteQuery
from lib.local.serving import serve_engine
from tests.fakes.reports import READY
from tests.manual_clock import ManualClock
from tests.system import engine_key

JSON = {"Content-Type": "application/json"}
KEY = {"Authorization": "Bearer any"}
BAD_BODIES = {
    "half": b"{",
    "list": b"[]",
    "null": b"null",
    "text": b'"x"',
    "binary": b"\xff\xfe",
    "nan": b'{"id": NaN}',
    "huge": b'{"id": ' + b"9" * 5000 + b"}",
    "deep": b'{"a":' * 100_000,
}
# These read no body.
WITHOUT_BODY = {"/local/rotate_key"}


def routes() -> list[tuple[str, str]]:
    """Method and path, with parameters filled in, of each route except the OpenAI gateway's."""
    found: list[tuple[str, str]] = []
    for route in EngineApi(LocalEngine(key=engine_key())).app().router.routes():
        resource = route.resource
        assert resource is not None
        if route.method not in ("HEAD", "*") and not isinstance(resource, web.StaticResource):
            path = resource.canonical.replace("{endpoint}", "local").replace("{id}", "1")
            found.append((route.method, path))
    return found


ROUTES = routes()
ROUTES_WITH_BODY = [(m, p) for m, p in ROUTES if m in ("POST", "PUT", "DELETE") and p not in WITHOUT_BODY]


@asynccontextmanager
async def served() -> AsyncGenerator[tuple[LocalEngine, str, aiohttp.ClientSession], None]:
    """An engine with a ready worker, in a workergroup, and an open request."""
    engine = LocalEngine(clock=ManualClock(), key=engine_key())
    engine.take_report("local", READY)
    engine.route(RouteQuery("local", 5.0, 0))
    async with serve_engine(engine) as url, aiohttp.ClientSession(headers=KEY) as http:
        yield engine, url, http


def state(engine: LocalEngine) -> Any:
    return (
        engine.public_key,
        dict(engine.groups.endpoints),
        dict(engine.groups.workergroups),
        {i: (w.totals.reports, w.routed, dict(w.pending)) for i, w in engine.workers.items()},
        engine.finished,
        len(engine.open_requests),
        engine.certificates,
        engine.faults.to_json(),
    )


def test_the_routes_are_found() -> None:
    assert ("POST", "/route/") in ROUTES_WITH_BODY
    assert ("DELETE", "/e/local/api/v0/workergroups/1/") in ROUTES_WITH_BODY


@pytest.mark.parametrize(("method", "path"), ROUTES_WITH_BODY)
async def test_a_bad_body(method: str, path: str) -> None:
    async with served() as (engine, url, http):
        before = state(engine)
        for name, body in BAD_BODIES.items():
            async with http.request(method, url + path, data=body, headers=JSON) as answer:
                error = await answer.json()
                assert answer.status == 400, (name, error)
                message = error.get("msg") or error["error"]
                assert isinstance(message, str)
                assert len(message.split()) > 2, name
        assert state(engine) == before


@pytest.mark.parametrize("path", sorted({path for _, path in ROUTES}))
async def test_a_wrong_method(path: str) -> None:
    async with served() as (engine, url, http):
        before = state(engine)
        async with http.patch(url + path, json={}) as answer:
            assert answer.status == 405
            assert "not PATCH" in (await answer.json())["error"]
            assert answer.headers["Allow"]
        assert state(engine) == before


@pytest.mark.parametrize("name", ["a" * 129, "a%0Ab"])
@pytest.mark.parametrize(
    ("method", "path"), [(m, p) for m, p in ROUTES if "/e/local/" in p and "pubkey" not in p]
)
async def test_an_invalid_endpoint_name_in_the_path(method: str, path: str, name: str) -> None:
    async with served() as (engine, url, http):
        before = state(engine)
        wrong = path.replace("/e/local/", f"/e/{name}/") + "?instance_id=1"
        async with http.request(
            method, url + wrong, data=b'{"id": 1, "workergroup_id": 1}', headers=JSON
        ) as answer:
            error = await answer.json()
            assert answer.status == 400, error
            assert "the path's endpoint must be a name" in (error.get("msg") or error["error"])
        assert state(engine) == before
