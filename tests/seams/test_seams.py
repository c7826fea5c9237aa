"""Each extension point takes a custom part: one file beside this one, and one line here that installs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from aiohttp import web
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from lib.backend import Backend
from lib.model.readiness import State
from tests.fakes.worker import Setup, build
from tests.seams.api_key import ApiKey
from tests.seams.noting_engine import NotingEngine
from tests.seams.recorded_answer import RecordedHandler
from tests.seams.tracing import Tracing
from tests.system import System, with_worker_task

Made = tuple[Backend, list[web.AbstractRouteDef]]


def changed(change: Callable[[Backend], object]) -> Callable[[str, Setup], Made]:
    """The tests' worker, with `change` made to its backend."""

    def make(url: str, setup: Setup) -> Made:
        backend, routes = build(url, setup)
        change(backend)
        return backend, routes

    return make


async def until_ready(system: System) -> None:
    assert system.running is not None
    readiness = system.running.readiness
    assert await readiness.until(lambda: readiness.state is State.READY, 30.0)


async def test_an_authenticator_is_one_file_and_one_line(tmp_path: Path) -> None:
    make = changed(lambda backend: setattr(backend, "authenticator", ApiKey("secret")))
    async with with_worker_task(tmp_path, make=make) as system:
        job = {"workload": 4.0, "data": {"a": 1}}
        for headers, status in ({}, 401), ({"X-Api-Key": "wrong"}, 401), ({"X-Api-Key": "secret"}, 200):
            async with system.http.post(system.url + "/echo", json=job, headers=headers) as answer:
                assert answer.status == status
                assert status == 200 or "API key" in (await answer.json())["error"]
        await system.reported(served=4.0)
        assert system.totals.cur_perf == 4.0


async def test_an_engine_is_one_file_and_one_line(tmp_path: Path) -> None:
    make = changed(lambda backend: setattr(backend, "engine", NotingEngine(backend.metrics)))
    async with with_worker_task(tmp_path, make=make, wait=False, unsecured=True) as system:
        await until_ready(system)
        assert (await system.call("/echo", 4.0))[0] == 200
        assert (await system.call("/error500", 1.0))[0] == 500
    assert system.backend is not None
    engine = system.backend.engine
    assert isinstance(engine, NotingEngine)
    assert max(engine.loads) == 4.0
    assert engine.loads[-1] == 0.0
    assert [entry.status for entry in engine.finished] == ["Success", "Error"]
    assert engine.errors
    assert system.engine.finished == []


async def test_an_observer_is_one_file_and_one_line(tmp_path: Path) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracer = provider.get_tracer("test")
    make = changed(lambda backend: backend.observers.append(Tracing(tracer)))
    async with with_worker_task(tmp_path, make=make) as system:
        assert (await system.call("/echo", 4.0))[0] == 200
        assert (await system.call("/error500", 1.0))[0] == 500
        await system.reported(served=4.0)
    served, failed = spans.get_finished_spans()
    assert served.name == "POST /echo"
    assert served.attributes is not None
    assert served.attributes["http.response.status_code"] == 200
    assert [event.name for event in served.events] == ["accepted", "started", "first byte"]
    assert (served.status.is_ok, failed.status.is_ok) == (True, False)
    assert failed.status.description == "Error"


async def test_a_model_answer_without_a_model_server(tmp_path: Path) -> None:
    def make(url: str, setup: Setup) -> Made:
        backend, routes = build(url, setup)
        return backend, [*routes, web.post("/recorded", backend.create_handler(RecordedHandler()))]

    async with with_worker_task(tmp_path, make=make) as system:
        async with system.post("/recorded", 4.0) as answer:
            assert (answer.status, answer.content_type) == (200, "text/event-stream")
            assert answer.headers["X-Source"] == "recorded"
            assert await answer.read() == b"data: 1\n\ndata: 2\n\n"
        await system.reported(served=4.0)
        assert system.totals.cur_perf == 4.0
