"""Workers with wildcard routes: what passes, with authentication and accounting, and what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from lib.backend import Backend
from lib.data_types import EndpointHandler
from lib.runtime.settings import CarrierKind
from lib.server import wildcard
from lib.worker import HandlerConfig, Worker, WorkerConfig
from tests.fakes.raw_client import connected
from tests.fakes.worker import Setup
from tests.system import System, with_worker_task

METHODS: list[Any] = ["POST", "GET", "DELETE"]
Built = tuple[Backend, list[web.AbstractRouteDef]]


def declared(model_url: str, setup: Setup) -> Built:
    """A declared worker with a wildcard."""
    worker = Worker(
        WorkerConfig(
            model_url,
            model_healthcheck_url="/health",
            handlers=[
                HandlerConfig("/v1/{path}", methods=METHODS, workload_calculator=lambda payload: 7.0),
                HandlerConfig("/v1/exact/echo", workload_calculator=lambda payload: 3.0),
            ],
        )
    )
    return worker.backend, worker.routes


class Passing(EndpointHandler[dict[str, Any]]):
    """The same in the older way."""

    @property
    def endpoint(self) -> str:
        return "/v1/{path}"

    @property
    def healthcheck_endpoint(self) -> str:
        return "/health"

    @classmethod
    def payload_cls(cls) -> type[dict[str, Any]]:
        return dict


def by_classes(model_url: str, setup: Setup) -> Built:
    backend = Backend(model_url, healthcheck_url="/health")
    return backend, [*wildcard(METHODS, "/v1/{path}", backend.create_handler(Passing()))]


MAKES = pytest.mark.parametrize("make", [declared, by_classes])
CARRIERS = pytest.mark.parametrize("carrier", ["direct", "aiohttp"])


async def seen(answer: Any) -> dict[str, Any]:
    """The request that the model server has got, as it answers."""
    assert answer.status == 200, await answer.text()
    return json.loads(await answer.read())


@MAKES
@CARRIERS
async def test_the_model_server_gets_the_same_path(tmp_path: Path, make: Any, carrier: CarrierKind) -> None:
    async with with_worker_task(tmp_path, make=make, carrier=carrier) as system:
        message = {"path": "a field of its own", "n": 1}
        envelope = {"auth_data": system.auth(), "payload": message}
        async with system.http.post(system.url + "/v1/echo", json=envelope) as answer:
            got = await seen(answer)
            assert (got["method"], got["path"], json.loads(got["body"])) == ("POST", "/v1/echo", message)
        for path in ("/v1/responses/resp_1/echo?limit=2&include=a&include=b", "/v1/audio/caf%C3%A9/echo"):
            for method in ("GET", "DELETE"):
                url = system.url + path
                async with system.http.request(method, url, headers=system.header()) as answer:
                    got = await seen(answer)
                    assert (got["method"], got["path"], got["body"]) == (method, path, "")
        async with system.http.post(
            system.url + "/v1/responses/resp_1/echo", headers=system.header()
        ) as answer:
            got = await seen(answer)
            assert (got["method"], got["path"], got["body"]) == ("POST", "/v1/responses/resp_1/echo", "{}")


async def status_of(system: System, method: str, target: str, headers: dict[str, str]) -> int:
    """The status of the answer to a request for `target`, which is sent as it stands."""
    async with connected(system.url) as client:
        lines = [f"{method} {target} HTTP/1.1", "Host: worker"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        await client.send("\r\n".join([*lines, "Content-Length: 0", "", ""]).encode("latin-1"))
        return (await client.head()).status


CLOSED = [
    *("/v1", "/v1/", "/v2/echo", "/v1x/echo", "/v1//echo", "//v1/echo", "/v1/echo/", "/V1/echo"),
    *("/v1/../echo", "/v1/a/../echo", "/v1/./echo", "/v1/%2e%2e/echo", "/v1/..;/echo", "/v1/%2e%2e%2fecho"),
    *("/v1/a%2fecho", "/v1/%2Fecho", "/v1/a%252fecho", "/v1/%252e%252e/echo", "/v1/a%5cecho", "/v1/a\\echo"),
    *("/v1/%ff/echo", "/v1/%00echo", "/v1/%/echo", "/v1/\xe9/echo"),
]


@MAKES
@CARRIERS
async def test_other_paths_are_closed(tmp_path: Path, make: Any, carrier: CarrierKind) -> None:
    async with with_worker_task(tmp_path, make=make, carrier=carrier) as system:
        for target in CLOSED:
            for method in ("GET", "POST"):
                status = await status_of(system, method, target, system.header())
                assert (target, status) == (target, 404) or status == 400
        assert await status_of(system, "PUT", "/v1/echo", system.header()) == 405
        assert system.model.requests == []


@MAKES
async def test_requests_are_authenticated_and_counted(tmp_path: Path, make: Any) -> None:
    async with with_worker_task(tmp_path, make=make) as system:
        for method in ("GET", "POST", "DELETE"):
            async with system.http.request(method, system.url + "/v1/echo") as answer:
                assert answer.status in (401, 422)
            forged = {"Authorization": system.header()["Authorization"][:-4] + "AAAA"}
            async with system.http.request(method, system.url + "/v1/echo", headers=forged) as answer:
                assert answer.status in (401, 422)
        assert system.model.requests == []
        workload = 7.0 if make is declared else 100.0
        async with system.http.get(system.url + "/v1/a/echo", headers=system.header()) as answer:
            assert answer.status == 200
        async with system.http.post(system.url + "/v1/a/echo", json={}, headers=system.header()) as answer:
            assert answer.status == 200
        await system.reported(2 * workload)
        async with system.http.get(system.loopback_url + "/openapi.json") as answer:
            assert set((await answer.json())["paths"]["/v1/{path}"]) == {"get", "post", "delete"}


def with_function(model_url: str, setup: Setup) -> Built:
    async def told(path: str, n: int = 0) -> dict[str, Any]:
        return {"path": path, "n": n}

    told_below = HandlerConfig("/files/{path}", methods=["GET", "POST"], remote_function=told)
    worker = Worker(WorkerConfig(handlers=[told_below]))
    return worker.backend, worker.routes


async def test_a_function_gets_the_rest_of_the_path(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=with_function) as system:
        for method in ("GET", "POST"):
            url = system.url + "/files/a/b%20c?n=2"
            async with system.http.request(method, url, headers=system.header()) as answer:
                assert await seen(answer) == {"result": {"path": "a/b c", "n": 2}}


async def test_a_more_exact_route_is_another(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=declared) as system:
        assert (await system.call("/v1/exact/echo"))[0] == 200
        await system.reported(3.0)
        async with system.http.get(system.url + "/v1/exact/echo", headers=system.header()) as answer:
            assert answer.status == 200
        await system.reported(10.0)
