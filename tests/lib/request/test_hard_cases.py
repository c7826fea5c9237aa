"""Hard cases of a request's path: failures after the answer, odd middlewares, the stop, memory."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from lib.access.authenticator import Admission
from lib.access.body import BodyReader
from lib.access.payload import PayloadReader
from lib.backend import Backend, ModelCaller
from lib.data_types import JsonDataException
from lib.model.readiness import State
from lib.request.exchange import Exchange
from lib.uploads import Upload
from tests.fakes.worker import Job, JobHandler, Setup, build
from tests.system import GUARD_S, System, with_worker_task

Made = tuple[Backend, list[web.AbstractRouteDef]]


def made(change: Callable[[Backend], list[web.AbstractRouteDef] | None]) -> Callable[[str, Setup], Made]:
    """The tests' worker, with `change` made to its backend and the routes that it returns."""

    def make(url: str, setup: Setup) -> Made:
        backend, routes = build(url, setup)
        return backend, [*routes, *(change(backend) or [])]

    return make


async def until(condition: Callable[[], bool]) -> None:
    """Return once `condition` holds. Nothing tells when that is, so it is looked at again and again."""
    with anyio.fail_after(GUARD_S):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def until_ready(system: System) -> None:
    assert system.running is not None
    readiness = system.running.readiness
    assert await readiness.until(lambda: readiness.state is State.READY, 30.0)


class UploadHandler(JobHandler):
    @property
    def accepts_uploads(self) -> bool:
        return True

    def read_upload(self, upload: Any) -> Job:
        return Job()


@pytest.mark.parametrize("policy", ["cancel", "finish"])
async def test_an_upload_that_cannot_be_deleted_does_not_end_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, policy: Any
) -> None:
    unlink = Path.unlink

    def failing(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        if path.name.startswith("pyworker-body-"):
            raise PermissionError(1, "not allowed")

    monkeypatch.setattr(Path, "unlink", failing)

    def change(backend: Backend) -> list[web.AbstractRouteDef]:
        return [web.post("/up", backend.create_handler(UploadHandler(on_disconnect=policy)))]

    async with with_worker_task(tmp_path, make=made(change)) as system:
        headers = {**system.header(1.0), "Content-Type": "image/png"}
        async with system.http.post(system.url + "/up", data=b"1234", headers=headers) as answer:
            assert answer.status == 200
        await system.reported(served=1.0)
        assert (await system.call("/echo", 3.0))[0] == 200
    assert "can't be deleted: not allowed" in caplog.text


class FailingAtTheEnd(PayloadReader):
    """Fails once the payload is no longer needed."""

    def __init__(self) -> None:
        bodies = BodyReader(1000, 10.0)
        super().__init__(bodies, bodies)

    @asynccontextmanager
    async def receive(
        self, request: web.Request, admission: Admission, accepts_uploads: bool
    ) -> AsyncGenerator[dict[str, Any] | Upload, None]:
        async with super().receive(request, admission, accepts_uploads) as received:
            yield received
        raise LookupError("a bug at the end")


@pytest.mark.parametrize("path", ["/echo", "/finish/echo"])
async def test_an_error_after_the_answer_ends_its_connection_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    async with with_worker_task(tmp_path) as system:
        assert system.running is not None
        system.running.payloads = FailingAtTheEnd()
        job: dict[str, Any] = {"workload": 3.0, "data": {}}
        async with system.http.post(system.url + path, json=job, headers=system.header(3.0)) as answer:
            assert answer.status == 200
            await answer.read()
        await system.reported(served=3.0)
        assert await state_of(system) == "ready"
    assert "an error after its answer" in caplog.text
    assert "a bug at the end" in caplog.text


async def state_of(system: System) -> str:
    async with aiohttp.ClientSession() as http, http.get(system.url + "/readyz") as answer:
        return await answer.text()


@pytest.mark.parametrize("session_id", [None, "unknown"])
@pytest.mark.parametrize("path", ["/echo", "/session/create"])
async def test_null_as_auth_data_is_no_internal_error(
    tmp_path: Path, path: str, session_id: str | None
) -> None:
    async with with_worker_task(tmp_path, engine="none", wait=False) as system:
        await until_ready(system)
        body: dict[str, Any] = {"auth_data": None, "payload": {}, "session_id": session_id}
        async with system.http.post(system.url + path, json=body) as answer:
            assert answer.status in (200, 201, 410, 422)


async def retry(request: web.Request, handler: Handler) -> web.StreamResponse:
    response = await handler(request)
    return await handler(request) if response.status >= 500 else response


async def background(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer from a cache, and refresh it."""
    _TASKS.add(asyncio.ensure_future(handler(request)))
    return web.json_response({"cached": True})


_TASKS: set[asyncio.Future[Any]] = set()


@pytest.mark.parametrize("middleware", [retry, background])
async def test_a_request_counts_once_however_often_a_middleware_calls(
    tmp_path: Path, middleware: Any
) -> None:
    def change(backend: Backend) -> None:
        backend.middlewares.append(middleware)

    async with with_worker_task(tmp_path, make=made(change)) as system:
        await system.call("/error500", 3.0)
        await asyncio.gather(*_TASKS, return_exceptions=True)
        assert system.backend is not None
        ledger = system.backend.metrics
        assert ledger.received <= 1
        assert ledger.accepted_load <= 3.0
        assert ledger.unfinished == 0


class Lifetime(JobHandler):
    """Notes the order in which its lifetime and its request end; `is_entered` False: it never begins."""

    notes: list[str]
    is_entered = True

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        if not self.is_entered:
            await anyio.sleep_forever()
        yield
        self.notes.append("lifetime left")

    @asynccontextmanager
    async def call_model(self, model: ModelCaller, payload: Job) -> AsyncGenerator[Any, None]:
        try:
            await anyio.sleep_forever()
            yield web.Response()
        finally:
            self.notes.append("request ended")


@pytest.mark.parametrize("on_disconnect", ["cancel", "finish"])
async def test_a_handler_s_lifetime_ends_after_the_requests_that_were_cut(
    tmp_path: Path, on_disconnect: Any
) -> None:
    handler = Lifetime(on_disconnect=on_disconnect)
    handler.notes = []

    def change(backend: Backend) -> list[web.AbstractRouteDef]:
        return [web.post("/slow", backend.create_handler(handler))]

    async with with_worker_task(tmp_path, make=made(change), drain_timeout_s=0.1) as system:
        request = asyncio.ensure_future(system.call("/slow"))
        assert system.backend is not None
        lanes = system.backend.lanes
        await until(lambda: lanes.working > 0)
        assert system.stop is not None
        system.stop.ask()
        await asyncio.gather(request, return_exceptions=True)
    assert handler.notes == ["request ended", "lifetime left"]


class Endless(Lifetime):
    """A lifetime that never ends by itself."""

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        yield
        self.notes.append("lifetime left")
        await anyio.sleep_forever()


async def test_a_second_signal_does_not_wait_for_a_lifetime(tmp_path: Path) -> None:
    handler = Endless()
    handler.notes = []

    def change(backend: Backend) -> list[web.AbstractRouteDef]:
        return [web.post("/endless", backend.create_handler(handler))]

    async with with_worker_task(tmp_path, make=made(change)) as system:
        assert system.stop is not None
        system.stop.ask()
        await until(lambda: handler.notes == ["lifetime left"])
        system.stop.ask()
    assert system.exit_status == 1


async def test_an_entered_lifecycle_is_left_though_a_handler_never_got_ready(tmp_path: Path) -> None:
    handler, notes = Lifetime(), list[str]()
    handler.notes, handler.is_entered = notes, False

    @asynccontextmanager
    async def lifecycle() -> AsyncGenerator[None, None]:
        yield
        notes.append("lifecycle left")

    def change(backend: Backend) -> list[web.AbstractRouteDef]:
        backend.lifecycle = lifecycle
        return [web.post("/slow", backend.create_handler(handler))]

    async with with_worker_task(tmp_path, make=made(change), wait=False) as system:
        assert system.running is not None
        readiness = system.running.readiness
        await until(lambda: readiness.missing == ("handlers",))
    assert notes == ["lifecycle left"]


async def test_a_request_whose_client_left_needs_no_garbage_collector(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        port = int(system.url.rsplit(":", 1)[1])
        assert system.backend is not None
        lanes, ledger = system.backend.lanes, system.backend.metrics
        gc.collect()
        gc.disable()
        try:
            for _ in range(10):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                body = json.dumps(system.envelope()).encode()
                writer.write(
                    b"POST /held HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                )
                await until(lambda: lanes.working > 0)
                writer.transport.abort()
                await until(lambda: ledger.unfinished == 0)
            await system.reported()
            left = sum(isinstance(o, Exchange) for o in gc.get_objects())
        finally:
            gc.enable()
    assert left <= 3  # the last ones may still be ending


async def answer_slowly(request: web.Request, handler: Handler) -> web.StreamResponse:
    await _MAY_ANSWER.wait()
    return web.json_response({"cached": True})


_MAY_ANSWER = asyncio.Event()


async def test_a_drain_waits_for_a_middleware_s_own_answer(tmp_path: Path) -> None:
    def change(backend: Backend) -> None:
        backend.middlewares.append(answer_slowly)

    _MAY_ANSWER.clear()
    async with with_worker_task(tmp_path, make=made(change)) as system:
        request = asyncio.ensure_future(system.call("/echo"))
        assert system.backend is not None
        assert system.stop is not None
        assert system.running is not None
        ledger, readiness = system.backend.metrics, system.running.readiness
        await until(lambda: ledger.unfinished == 1)
        system.stop.ask()
        await until(lambda: readiness.state is State.DRAINING)
        _MAY_ANSWER.set()
        assert await request == (200, b'{"cached": true}')


async def swap(request: web.Request, handler: Handler) -> web.StreamResponse:
    return await handler(request.clone())


async def swap_and_judge(request: web.Request, handler: Handler) -> web.StreamResponse:
    response = await handler(request.clone())
    request["outcome"] = "errored"
    return response


async def test_a_middleware_may_judge_the_request_that_it_replaced(tmp_path: Path) -> None:
    def change(backend: Backend) -> None:
        backend.middlewares.append(swap_and_judge)

    async with with_worker_task(tmp_path, make=made(change)) as system:
        assert (await system.call("/echo"))[0] == 200
        await system.engine.wait_for(lambda: system.engine.finished)
        assert system.engine.finished[0].request.status == "Error"


@pytest.mark.parametrize("path", ["/echo", "/error500", "/close", "/stream"])
@pytest.mark.parametrize("fields", [{}, {"keepalive_s": 30.0}, {"on_disconnect": "finish"}])
async def test_no_request_needs_the_garbage_collector(
    tmp_path: Path, path: str, fields: dict[str, Any]
) -> None:
    def change(backend: Backend) -> None:
        backend.middlewares.append(swap)

    setup = Setup(health="/health", handler=fields)
    async with with_worker_task(tmp_path, setup, make=made(change)) as system:
        system.model.release()
        await system.call(path)
        gc.collect()
        gc.disable()
        try:
            for _ in range(10):
                await system.call(path)
            await system.engine.wait_for(lambda: len(system.engine.finished) == 11)
            left = sum(isinstance(o, Exchange) for o in gc.get_objects())
        finally:
            gc.enable()
    assert left <= 3  # the last ones may still be ending


class Unserialisable(JobHandler):
    def read_payload(self, req_data: dict[str, Any]) -> Job:
        circle: dict[Any, Any] = {("a", "key"): 1}
        circle["itself"] = circle
        raise JsonDataException(circle)


async def test_a_refusal_that_is_not_json_is_sent_as_text(tmp_path: Path) -> None:
    def change(backend: Backend) -> list[web.AbstractRouteDef]:
        return [web.post("/odd", backend.create_handler(Unserialisable()))]

    async with with_worker_task(tmp_path, make=made(change)) as system:
        status, body = await system.call("/odd")
        assert (status, list(json.loads(body))) == (422, ["('a', 'key')", "itself"])
