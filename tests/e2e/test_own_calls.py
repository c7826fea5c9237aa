"""Handlers with their own way of calling the model server (`call_model`)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from aiohttp import web

from lib.backend import Backend
from lib.errors import ModelDown
from lib.model.connection import ModelServer, ModelSession
from lib.worker import HandlerConfig, Worker, WorkerConfig
from tests.fakes.mortal_model import mortal_model
from tests.fakes.raw_client import connected
from tests.fakes.worker import Job, JobHandler, Setup
from tests.system import GUARD_S, PortLease, with_worker_task


@dataclass(kw_only=True)
class TwoCalls(JobHandler):
    """Calls the model server twice, first through `backend.session` at the URL `first`."""

    backend: Backend
    first: str

    @asynccontextmanager
    async def call_model(self, model: Any, payload: Job) -> AsyncGenerator[Any, None]:
        if payload.data.get("socket"):
            async with self.backend.session.ws_connect(self.first):
                pass
        async with self.backend.session.post(self.first, json={}) as answer:
            seen = json.loads(await answer.read())
        async with model.post_json("/echo", {"first": seen["path"]}) as answer:
            yield answer


def two_calls(first: str) -> Any:
    def make(model_url: str, setup: Setup) -> tuple[Backend, list[web.RouteDef]]:
        backend = Backend(model_url, healthcheck_url=setup.health)
        handler = TwoCalls(backend=backend, first=first)
        return backend, [web.post("/two", backend.create_handler(handler))]

    return make


async def test_an_answer_to_a_handlers_own_call_is_never_compressed(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=two_calls("/echo")) as system:
        async with system.post("/two", headers={"Accept-Encoding": "gzip", "X-Request-Id": "id-7"}) as answer:
            seen = await answer.json()
        assert (answer.status, json.loads(seen["body"])) == (200, {"first": "/echo"})
        assert "Accept-Encoding" not in seen["headers"]
        assert seen["headers"]["X-Request-Id"] == "id-7"


async def test_a_server_that_cannot_be_reached_is_a_502(tmp_path: Path) -> None:
    lease = PortLease()
    try:
        async with with_worker_task(
            tmp_path, make=two_calls(f"http://127.0.0.1:{lease.port}/echo")
        ) as system:
            for data in ({}, {"socket": True}):
                async with system.post("/two", data=data) as answer:
                    assert answer.status == 502
                    assert "could not be reached" in (await answer.json())["error"]
            await system.engine.wait_for(lambda: len(system.engine.finished) == 2)
            assert {f.request.status for f in system.engine.finished} == {"Error"}
    finally:
        lease.close()


async def test_a_refused_websocket_is_a_502(tmp_path: Path) -> None:
    async with (
        with_worker_task(tmp_path, make=two_calls("/missing")) as system,
        system.post("/two", data={"socket": True}) as answer,
    ):
        assert answer.status == 502


@pytest.mark.parametrize("data", [{}, {"socket": True}], ids=["request", "websocket"])
async def test_own_calls_notice_that_the_server_is_dead_and_are_not_all_tried_then(
    tmp_path: Path, data: dict[str, Any]
) -> None:
    def make(_: str, setup: Setup) -> tuple[Backend, list[web.RouteDef]]:
        return two_calls("/echo")(model.url, setup)

    with closing(PortLease()) as lease:
        async with (
            mortal_model(lease.port) as model,
            with_worker_task(tmp_path, make=make) as system,
        ):
            await model.kill()
            statuses = list[int]()
            with anyio.fail_after(GUARD_S):
                while 503 not in statuses:
                    statuses.append((await system.call("/two", data=data))[0])
            assert set(statuses[:-1]) == {502}
            assert "refuses connections" in await system.errored()
            async with anyio.create_task_group() as tasks:

                async def ask() -> None:
                    async with system.post("/two", data=data) as answer:
                        statuses.append(answer.status)
                        assert (answer.status == 503) == ("Retry-After" in answer.headers)

                statuses.clear()
                for _ in range(20):
                    tasks.start_soon(ask)
            assert statuses.count(503) >= 19
            await model.start()
            await system.reported()
            assert system.backend is not None
            async with system.backend.session.post("/echo", json={}) as answer:
                assert answer.status == 200


def route_that_calls(kind: str, model_url: str) -> tuple[Backend, list[web.AbstractRouteDef]]:
    """A worker whose route /own of this kind calls the model server, and catches nothing."""

    async def function() -> str:
        async with backend.session.get("/echo") as answer:
            return await answer.text()

    async def bare(_: web.Request) -> web.StreamResponse:
        return web.Response(text=await function())

    handler = (
        HandlerConfig("/own", remote_function=function) if kind == "function" else HandlerConfig("/echo")
    )
    config = WorkerConfig(model_url, model_healthcheck_url="/health", handlers=[handler])
    worker = Worker(config)
    backend = worker.backend
    routes: dict[str, list[web.AbstractRouteDef]] = {
        "plain": [web.post("/own", bare)],
        "guarded": [web.post("/own", backend.guard(bare, workload=1.0))],
    }
    return backend, [*worker.routes, *routes.get(kind, [])]


@pytest.mark.parametrize("kind", ["plain", "guarded", "function"])
async def test_a_route_that_catches_no_failed_call_answers_503_while_the_server_is_down(
    tmp_path: Path, kind: str
) -> None:
    def make(_: str, __: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
        return route_that_calls(kind, model.url)

    with closing(PortLease()) as lease:
        async with (
            mortal_model(lease.port) as model,
            with_worker_task(tmp_path, make=make) as system,
        ):
            await model.kill()
            with anyio.fail_after(GUARD_S):
                while (await system.call("/own"))[0] != 503:
                    pass
                said = set[str]()
                # Every half second a call is tried.
                while len(said) < 2:
                    async with system.post("/own") as answer:
                        assert (answer.status, "Retry-After" in answer.headers) == (503, True)
                        said.add((await answer.json())["error"].split(" is down: ")[1])
            assert said == {"this request was not tried", "it refuses connections"}
            await model.start()
            await system.reported()
            assert (await system.call("/own"))[0] == 200


async def test_an_own_call_that_was_not_tried_is_one_of_aiohttps_errors_too(tmp_path: Path) -> None:
    with closing(PortLease()) as lease:
        url = f"http://127.0.0.1:{lease.port}"
        async with ModelServer(url) as server:
            server.reach.is_down = True
            for call in (ModelSession(server).get, ModelSession(server).ws_connect):
                with pytest.raises(aiohttp.ClientConnectionError, match="was not tried"):
                    await call("/echo")
            with pytest.raises(ModelDown):
                await server.websocket("/echo", 1)


@dataclass(kw_only=True)
class Careless(JobHandler):
    """Raises while it cleans up after a cancellation, or awaits a task of its own that was cancelled."""

    @asynccontextmanager
    async def call_model(self, model: Any, payload: Job) -> AsyncGenerator[Any, None]:
        if payload.data.get("called off") == "first":
            await _called_off()
        try:
            async with super().call_model(model, payload) as answer:
                yield answer
        finally:
            if payload.data.get("untidy"):
                raise RuntimeError("clean-up bug")
        if payload.data.get("called off") == "last":
            await _called_off()


async def _called_off() -> None:
    own = asyncio.ensure_future(asyncio.Event().wait())
    own.cancel()
    await own


def careless(**fields: Any) -> Any:
    def make(model_url: str, setup: Setup) -> tuple[Backend, list[web.RouteDef]]:
        backend = Backend(model_url, healthcheck_url=setup.health)
        return backend, [web.post("/held", backend.create_handler(Careless(path="/held", **fields)))]

    return make


WAYS = pytest.mark.parametrize("fields", [{}, {"keepalive_s": 30.0}, {"on_disconnect": "finish"}])


@WAYS
async def test_a_call_that_was_cancelled_by_the_author_is_a_500(
    tmp_path: Path, fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with with_worker_task(tmp_path, make=careless(**fields)) as system:
        async with system.post("/held", data={"called off": "first"}) as answer:
            assert (answer.status, (await answer.json())["error"]) == (500, "internal error")
        system.model.release()
        assert (await system.call("/held"))[0] == 200  # the slot is free again
        await system.engine.wait_for(lambda: len(system.engine.finished) == 2)
        assert [f.request.status for f in system.engine.finished] == ["Error", "Success"]
    assert "the handler's own code was cancelled" in caplog.text


async def test_a_cancelled_own_call_is_an_error_after_its_client_left_too(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=careless(on_disconnect="finish")) as system:
        async with connected(system.url) as client:
            await client.post("/held", system.envelope(data={"called off": "last"}))
            await system.model.until(lambda: system.model.working == 1)
            client.leave()
        async with system.http.get(system.url + "/ping") as answer:
            assert answer.status == 200  # the worker has noticed by now that the client left
        system.model.release()
        await system.engine.wait_for(lambda: system.engine.finished)
        assert system.engine.finished[0].request.status == "Error"


@pytest.mark.parametrize("fields", [{}, {"keepalive_s": 30.0}, {"keepalive_s": 0.1}])
async def test_an_authors_exception_after_the_client_left_is_not_a_failure(
    tmp_path: Path, fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with with_worker_task(tmp_path, make=careless(**fields)) as system:
        async with connected(system.url) as client:
            await client.post("/held", system.envelope(data={"untidy": True}))
            await system.model.until(lambda: system.model.working == 1)
            if fields.get("keepalive_s") == 0.1:
                await client.head()  # a newline has been sent
            client.leave()
            await system.engine.wait_for(lambda: system.engine.finished)
        assert system.engine.finished[0].request.status == "Cancelled"
    assert "raised RuntimeError after its client had left" in caplog.text


@WAYS
async def test_an_authors_exception_after_the_worker_cut_the_request_is_a_failure(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    async with (
        with_worker_task(tmp_path, make=careless(**fields), drain_timeout_s=0.1) as system,
        connected(system.url) as client,
    ):
        await client.post("/held", system.envelope(data={"untidy": True}))
        await system.model.until(lambda: system.model.working == 1)
        assert system.stop is not None
        system.stop.ask()
        await system.engine.wait_for(lambda: system.engine.finished)
        assert system.engine.finished[0].request.status == "Error"


@dataclass(kw_only=True)
class Twice(JobHandler):
    """Begins an answer, then returns or raises another one, as `way` says."""

    way: str

    async def generate_client_response(self, client_request: web.Request, model_response: Any) -> Any:
        first = web.StreamResponse()
        await first.prepare(client_request)
        await first.write(b"half")
        if self.way == "raises":
            raise web.HTTPConflict(text="not now")
        another = web.Response(text="another")
        if self.way == "prepares":
            await another.prepare(client_request)
        return another


@pytest.mark.parametrize("way", ["raises", "returns", "prepares"])
async def test_a_second_answer_is_never_written_into_the_first(tmp_path: Path, way: str) -> None:
    def make(model_url: str, setup: Setup) -> tuple[Backend, list[web.RouteDef]]:
        backend = Backend(model_url, healthcheck_url=setup.health)
        return backend, [web.post("/twice", backend.create_handler(Twice(path="/echo", way=way)))]

    async with with_worker_task(tmp_path, make=make) as system, connected(system.url) as client:
        await client.post("/twice", system.envelope())
        assert (await client.head()).status == 200
        assert await client.rest() == b"4\r\nhalf\r\n"
        await system.engine.wait_for(lambda: system.engine.finished)
        assert system.engine.finished[0].request.status == "Error"


async def test_a_handler_on_two_routes_has_one_limit(tmp_path: Path) -> None:
    def make(model_url: str, setup: Setup) -> tuple[Backend, list[web.RouteDef]]:
        backend = Backend(model_url, healthcheck_url=setup.health, allow_parallel_requests=True)
        handler = JobHandler(path="/held", max_concurrency=2)
        return backend, [web.post(path, backend.create_handler(handler)) for path in ("/one", "/other")]

    async with with_worker_task(tmp_path, make=make) as system, anyio.create_task_group() as tasks:
        for path in ("/one", "/one", "/other", "/other"):
            tasks.start_soon(system.call, path)
        await system.engine.wait_for(lambda: system.last_report.num_requests_working == 4)
        assert system.backend is not None
        assert (system.backend.lanes.waiting, system.backend.lanes.working) == (2, 2)
        system.model.release()
        await system.reported(served=4.0)
