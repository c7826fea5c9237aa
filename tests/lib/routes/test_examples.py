from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from lib.backend import Backend
from lib.data_types import ApiPayload
from lib.routes.examples import MAX_EXAMPLE, examples_route
from lib.uploads import Upload
from lib.worker import BenchmarkConfig, HandlerConfig, Worker, WorkerConfig
from tests.workers.test_imports import WORKERS

URL = "http://127.0.0.1:1"
SAMPLE = {"text": "Once", "count": 2}


@dataclass
class Text(ApiPayload):
    text: str
    count: int

    def count_workload(self) -> float:
        return float(self.count)

    @classmethod
    def for_test(cls) -> Text:
        return cls("own", 1)


@dataclass
class Number(ApiPayload):
    number: int

    def count_workload(self) -> float:
        return float(self.number)


async def examples(backend: Backend, routes: Sequence[web.AbstractRouteDef]) -> dict[str, Any]:
    """The answer of `/examples`, by path."""
    app = web.Application()
    app.add_routes([examples_route(backend, routes)])
    async with TestClient(TestServer(app)) as client, client.get("/examples") as answer:
        assert answer.status == 200
        listed: list[dict[str, Any]] = await answer.json()
    return {each.pop("path"): each for each in listed}


async def declared(*handlers: HandlerConfig) -> dict[str, Any]:
    worker = Worker(WorkerConfig(URL, model_healthcheck_url="/health", handlers=list(handlers)))
    return await examples(worker.backend, worker.routes)


async def test_the_benchmarks_payload_is_the_example_of_each_route_that_accepts_it() -> None:
    benchmark = BenchmarkConfig(dataset=[SAMPLE])
    found = await declared(
        HandlerConfig("/benchmarked", benchmark_config=benchmark),
        HandlerConfig("/any", method="PUT"),
        HandlerConfig("/own", payload_class=Text),
        HandlerConfig("/other", payload_class=Number),
        HandlerConfig("/upload", payload_class=Upload),
    )
    assert found == {
        "/benchmarked": {"method": "POST", "payload": SAMPLE, "accepts_uploads": False},
        "/any": {"method": "PUT", "payload": SAMPLE, "accepts_uploads": False},
        "/own": {"method": "POST", "payload": {"text": "own", "count": 1}, "accepts_uploads": False},
        "/other": {"method": "POST", "payload": None, "accepts_uploads": False},
        "/upload": {"method": "POST", "payload": None, "accepts_uploads": True},
    }


async def test_without_a_benchmark_there_is_no_example() -> None:
    assert (await declared(HandlerConfig("/any")))["/any"]["payload"] is None


async def test_an_example_that_is_too_long_to_read_is_left_out() -> None:
    benchmark = BenchmarkConfig(dataset=[{"text": "x" * MAX_EXAMPLE}])
    found = await declared(HandlerConfig("/benchmarked", benchmark_config=benchmark))
    assert found["/benchmarked"]["payload"] is None


async def test_functions_of_the_authors_own_have_no_example() -> None:
    async def plain(_request: web.Request) -> web.Response:
        return web.Response()

    async def guarded(_request: web.Request) -> web.Response:
        return web.Response()

    benchmarked = Worker(
        WorkerConfig(
            URL,
            model_healthcheck_url="/health",
            handlers=[HandlerConfig("/a", benchmark_config=BenchmarkConfig(dataset=[SAMPLE]))],
        )
    )
    guard = web.post("/guarded", benchmarked.backend.guard(guarded))
    found = await examples(benchmarked.backend, [web.get("/plain", plain), guard])
    assert found == {}


@pytest.mark.parametrize("name", WORKERS)
async def test_each_ready_made_worker_has_an_example_for_the_route_of_its_benchmark(name: str) -> None:
    environ = {
        "MODEL_SERVER_URL": URL,
        "MODEL_NAME": "tiny",
        "MODEL_LOG": "/tmp/m.log",
        "COMFYUI_DIALECT": "native",
    }
    backend, routes = importlib.import_module(f"workers.{name}.server").build(environ)
    found = await examples(backend, routes)
    assert [path for path, example in found.items() if example["payload"] is not None]
