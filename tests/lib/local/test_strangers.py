"""Web pages of strangers can neither read nor change the local engine, by any of its routes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
import pytest

from lib.local.api import EngineApi
from lib.local.engine import LocalEngine
from lib.local.serving import serve_engine
from tests.fakes.reports import READY
from tests.manual_clock import ManualClock
from tests.system import engine_key

PARAMETERS = {"{endpoint}": "local", "{id}": "1", "{path}": "models"}


def routes() -> list[tuple[str, str]]:
    """Method and path, with parameters filled in, of each route of the engine."""
    found: set[tuple[str, str]] = set()
    for route in EngineApi(LocalEngine(key=engine_key())).app().router.routes():
        assert route.resource is not None
        path = route.resource.canonical
        path = "/page/page.js" if path == "/page" else path
        for name, value in PARAMETERS.items():
            path = path.replace(name, value)
        methods = ("GET", "POST", "DELETE") if route.method == "*" else (route.method,)
        found |= {(method, path) for method in methods}
    return sorted(found)


ROUTES = routes()
CHANGING = [(m, p) for m, p in ROUTES if m not in ("GET", "HEAD")]
ANY_MEDIA_TYPE = [(m, p) for m, p in CHANGING if "/sign_cert/" in p or p.startswith("/openai/")]
of_every_route = pytest.mark.parametrize(("method", "path"), ROUTES)


class Stranger:
    """A client, and the state of the engine that it must not change."""

    def __init__(self, engine: LocalEngine, url: str, http: aiohttp.ClientSession) -> None:
        self.engine = engine
        self.url = url
        self.http = http

    async def status(self, method: str, path: str, body: bytes = b"{}", **fields: str) -> int:
        """The status of the answer; `_` in the names of `fields` is `-`."""
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        async with self.http.request(method, self.url + path, data=body, headers=headers) as answer:
            if answer.status in (403, 415, 421) and method != "HEAD":
                assert list(await answer.json()) == ["error"]
            return answer.status

    def state(self) -> Any:
        engine = self.engine
        workers = {i: (w.totals.reports, w.routed) for i, w in engine.workers.items()}
        groups = (dict(engine.groups.endpoints), dict(engine.groups.workergroups))
        return (
            engine.public_key,
            groups,
            workers,
            engine.certificates,
            engine.faults.to_json(),
            engine.finished,
        )


@pytest.fixture
async def stranger() -> AsyncGenerator[Stranger, None]:
    engine = LocalEngine(clock=ManualClock(), key=engine_key())
    engine.take_report("local", READY)
    async with (
        serve_engine(engine) as url,
        aiohttp.ClientSession(skip_auto_headers=["Content-Type"]) as http,
    ):
        yield Stranger(engine, url, http)


def test_the_routes_are_found() -> None:
    for route in (("GET", "/"), ("GET", "/page/page.js"), ("POST", "/local/rotate_key")):
        assert route in ROUTES
    assert len(ANY_MEDIA_TYPE) == 6  # two of the authority, and two for each of the gateway's two routes


@of_every_route
async def test_another_host_is_a_421(stranger: Stranger, method: str, path: str) -> None:
    before = stranger.state()
    for host in ("evil.example", "localhost.evil.example:8081", "10.0.0.1"):
        assert await stranger.status(method, path, Host=host) == 421
    assert stranger.state() == before


@of_every_route
async def test_another_origin_is_a_403(stranger: Stranger, method: str, path: str) -> None:
    before = stranger.state()
    for origin in ("https://evil.example", "null", "http://127.0.0.1", "file://"):
        assert await stranger.status(method, path, Origin=origin, Content_Type="application/json") == 403
    assert stranger.state() == before


@pytest.mark.parametrize(("method", "path"), [r for r in CHANGING if r not in ANY_MEDIA_TYPE])
async def test_what_is_not_json_is_a_415(stranger: Stranger, method: str, path: str) -> None:
    before = stranger.state()
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a"):
        assert await stranger.status(method, path, Content_Type=media_type) == 415
    assert await stranger.status(method, path, b"", Content_Type="text/plain") == 415
    assert await stranger.status(method, path) == 415
    assert stranger.state() == before


@of_every_route
async def test_its_own_pages_and_clients_are_served(stranger: Stranger, method: str, path: str) -> None:
    own: dict[str, str] = {"Origin": stranger.url}
    for headers in ({}, own):
        status = await stranger.status(method, path, b"{}", Content_Type="application/json", **headers)
        assert status not in (403, 415, 421)


@pytest.mark.parametrize(("method", "path"), ANY_MEDIA_TYPE)
async def test_requests_for_certificates_and_uploads_may_have_any_media_type(
    stranger: Stranger, method: str, path: str
) -> None:
    assert await stranger.status(method, path, Content_Type="application/octet-stream") not in (403, 415, 421)


async def test_a_route_that_does_not_exist_is_guarded_too(stranger: Stranger) -> None:
    assert await stranger.status("GET", "/nowhere", Host="evil.example") == 421
    assert await stranger.status("GET", "/nowhere") == 404


async def test_an_allowed_host_is_served() -> None:
    engine = LocalEngine(clock=ManualClock(), key=engine_key())
    async with (
        serve_engine(engine, allowed_hosts=["engine.example"]) as url,
        aiohttp.ClientSession() as http,
    ):
        for host, status in (("engine.example", 200), ("ENGINE.example:8081", 200), ("other.example", 421)):
            async with http.get(url + "/pubkey/", headers={"Host": host}) as answer:
                assert answer.status == status
