"""`/metrics` counts each request to the public port once, by its declared route and its status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from lib.backend import Backend
from lib.runtime.settings import CarrierKind
from tests.event_loop import until
from tests.fakes import varied_routes
from tests.fakes.raw_client import RawClient, connected, request_bytes
from tests.fakes.worker import JobHandler, Setup
from tests.system import MASTER_TOKEN, System, with_worker_task

both_carriers = pytest.mark.parametrize("carrier", ["direct", "aiohttp"])

Counts = Mapping[tuple[str, int], int]


def make(model_url: str, setup: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
    """A worker of many routes: one that its author has wrapped, and one of any method, without a guard."""
    backend, routes = varied_routes.build(model_url, setup)
    inner = backend.create_handler(JobHandler(path="/echo"))

    async def wrapped(request: web.Request) -> web.StreamResponse:
        return await inner(request)

    async def plain(request: web.Request) -> web.StreamResponse:
        return web.Response(status=int(request.match_info["status"]))

    own = [web.post("/wrapped", wrapped), web.route("*", "/plain/{status:\\d+}", plain)]
    return backend, [*routes, *own]


def counts(system: System) -> Counts:
    assert system.backend is not None
    return system.backend.timings.answers.by_route_and_status


async def counted(system: System, expected: Counts) -> None:
    """Return once `expected` is counted; fail if anything else is."""
    await until(lambda: sum(counts(system).values()) >= sum(expected.values()))
    assert counts(system) == expected


async def status(client: RawClient, request: bytes) -> int:
    await client.send(request)
    return (await client.answer())[0].status


def signed(system: System, path: str, **wrong: Any) -> bytes:
    return request_bytes(path, json.dumps(system.envelope(data={}) | wrong).encode())


def no_body(method: str, path: str, **headers: str) -> bytes:
    fields = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "worker", **headers}.items())
    return f"{method} {path} HTTP/1.1\r\n{fields}\r\n".encode()


@both_carriers
async def test_each_request_is_counted_once(tmp_path: Path, carrier: CarrierKind) -> None:
    setup = Setup(health="/health")
    async with (
        with_worker_task(tmp_path, setup, make=make, carrier=carrier) as system,
        connected(system.url) as client,
    ):
        forged = {**system.auth(), "signature": "AAAA"}
        requests = [
            (signed(system, "/echo"), "POST /echo", 200),
            (signed(system, "/echo"), "POST /echo", 200),
            (signed(system, "/echo?api_key=x"), "POST /echo", 200),
            (signed(system, "/error500"), "POST /error500", 500),
            (signed(system, "/echo", auth_data=forged), "POST /echo", 401),
            (request_bytes("/echo", b"{}"), "POST /echo", 422),
            (signed(system, "/wrapped"), "POST /wrapped", 200),
            (no_body("GET", "/items/7/echo"), "GET /items/{id}/echo", 422),
            (no_body("GET", "/items/8/echo", **system.header()), "GET /items/{id}/echo", 200),
            (no_body("GET", "/ping"), "GET /ping", 200),
            (no_body("GET", "/plain/418"), "GET /plain/{status}", 418),
            (no_body("POST", "/pyworker/update"), "POST /pyworker/update", 401),
            (request_bytes("/session/get", b"{}"), "POST /session/get", 422),
        ]
        expected: dict[tuple[str, int], int] = {}
        for request, route, expected_status in requests:
            assert await status(client, request) == expected_status, request
            expected[route, expected_status] = expected.get((route, expected_status), 0) + 1
        await counted(system, expected)


@both_carriers
async def test_strangers_make_no_new_series(tmp_path: Path, carrier: CarrierKind) -> None:
    setup = Setup(health="/health")
    async with with_worker_task(tmp_path, setup, make=make, carrier=carrier) as system:
        for number in range(20):
            for request in (
                no_body("GET", f"/wp-admin/{number}"),
                no_body("POST", f"/echo/{number}%0a"),
                no_body(f"METHOD{number}", "/echo"),
                no_body(("PROPFIND", "REPORT")[number % 2], "/plain/200"),
                b"no HTTP %d\r\n\r\n" % number,
            ):
                async with connected(system.url) as client:
                    await status(client, request)
        await counted(system, {("", 404): 40, ("", 405): 20, ("* /plain/{status}", 200): 20, ("", 400): 20})


@both_carriers
async def test_a_client_that_leaves_is_counted_with_the_status_of_the_log(
    tmp_path: Path, carrier: CarrierKind
) -> None:
    async with with_worker_task(tmp_path, carrier=carrier) as system, connected(system.url) as client:
        await client.post("/held", system.envelope())
        await system.model.until(lambda: len(system.model.requests) == 1)
        client.leave()
        await counted(system, {("POST /held", 499): 1})


async def test_the_loopback_port_is_not_counted(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        for path, headers in (
            ("/metrics", {}),
            ("/pyworker/update", {"Authorization": MASTER_TOKEN + "x"}),
            ("/none", {}),
        ):
            async with system.http.get(system.loopback_url + path, headers=headers) as answer:
                await answer.read()
        await system.call("/echo")
        await counted(system, {("POST /echo", 200): 1})


async def test_a_scrape_has_the_counts(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        await system.call("/echo")
        async with system.http.get(system.url + "/none") as answer:
            assert answer.status == 404
        await counted(system, {("POST /echo", 200): 1, ("", 404): 1})
        async with system.http.get(system.loopback_url + "/metrics") as answer:
            families = list(text_string_to_metric_families(await answer.text()))
    samples = [s for f in families for s in f.samples if s.name == "pyworker_http_requests_total"]
    assert {(s.labels["route"], s.labels["status"]): s.value for s in samples} == {
        ("POST /echo", "200"): 1.0,
        ("", "404"): 1.0,
    }
