"""An author's middlewares: they wrap every authenticated request, and no other."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from lib.backend import Backend
from lib.errors import TooBusy
from lib.metrics import Outcome
from lib.model.readiness import State
from lib.server import inspected_by, run_server
from tests.event_loop import until
from tests.fakes.worker import Setup, build
from tests.system import with_worker_task


def with_middlewares(*middlewares: Middleware) -> Any:
    def make(url: str, setup: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
        backend, routes = build(url, setup)
        backend.middlewares.extend(middlewares)
        return backend, routes

    return make


def noting(name: str, notes: list[str]) -> Middleware:
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        notes.append(f"{name} in: {request['payload']['workload']:g} of {request['auth_data'].endpoint}")
        response = await handler(request)
        notes.append(f"{name} out: {response.status}")
        return response

    return middleware


async def test_the_first_is_the_outermost(tmp_path: Path) -> None:
    notes: list[str] = []
    make = with_middlewares(noting("outer", notes), noting("inner", notes))
    async with with_worker_task(tmp_path, make=make) as system:
        assert (await system.call("/echo", 3.0))[0] == 200
        endpoint = system.auth()["endpoint"]
    assert notes == [
        f"outer in: 3 of {endpoint}",
        f"inner in: 3 of {endpoint}",
        "inner out: 200",
        "outer out: 200",
    ]


@pytest.mark.parametrize("body", [{}, {"auth_data": {}, "payload": {}}, None])
async def test_no_unauthenticated_request_reaches_them(tmp_path: Path, body: Any) -> None:
    notes: list[str] = []
    async with with_worker_task(tmp_path, make=with_middlewares(noting("m", notes))) as system:
        if body is None:
            body = system.envelope(3.0)
            body["auth_data"]["cost"] = 1e6  # signed for less
        async with system.http.post(system.url + "/echo", json=body) as answer:
            assert answer.status in (401, 422)
    assert notes == []


async def forbid(request: web.Request, handler: Handler) -> web.StreamResponse:
    return web.json_response({"error": "not you"}, status=403)


async def raise_forbidden(request: web.Request, handler: Handler) -> web.StreamResponse:
    raise web.HTTPForbidden(text=json.dumps({"error": "not you"}), content_type="application/json")


@pytest.mark.parametrize("middleware", [forbid, raise_forbidden])
async def test_a_middleware_may_answer_without_load(tmp_path: Path, middleware: Middleware) -> None:
    async with with_worker_task(tmp_path, make=with_middlewares(middleware)) as system:
        assert await system.call("/echo", 3.0) == (403, b'{"error": "not you"}')
        await system.engine.wait_for(lambda: len(system.engine.finished) == 1)
        await system.reported()
        totals = system.totals
        assert (totals.new_load, totals.cur_perf, totals.rej_load) == (0.0, 0.0, 0.0)
        assert system.model.requests == [] or all(r.path != "/echo" for r in system.model.requests)


async def buggy(request: web.Request, handler: Handler) -> web.StreamResponse:
    raise RuntimeError("a middleware's bug")


async def _replaces_a_refusal(request: web.Request, handler: Handler) -> web.StreamResponse:
    answer = handler(request)
    try:
        return await answer
    except TooBusy:
        return web.json_response("fallback")


async def _does_not_wait(request: web.Request, handler: Handler) -> web.StreamResponse:
    answer: Any = handler(request)
    answer.close()
    return web.json_response("own")


@pytest.mark.parametrize(
    ("middleware", "answer"), [(_replaces_a_refusal, "fallback"), (_does_not_wait, "own")]
)
async def test_nothing_is_done_before_the_answer_is_awaited(
    tmp_path: Path, middleware: Middleware, answer: str
) -> None:
    setup = Setup(health="/health", backend={"max_wait_time": 0.0})
    async with with_worker_task(tmp_path, setup, make=with_middlewares(middleware)) as system:
        assert system.backend is not None
        metrics = system.backend.metrics
        held = metrics.open()
        held.set_workload(1000.0)
        held.accept()
        status, body = await system.call("/echo", 3.0)
        assert (status, json.loads(body)) == (200, answer)
        assert metrics.received == 1  # only the one that is held
        held.set_outcome(Outcome.CANCELLED)


async def test_an_exception_is_a_500(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with with_worker_task(tmp_path, make=with_middlewares(buggy)) as system:
        status, body = await system.call("/echo", 3.0)
        assert (status, json.loads(body)["error"]) == (500, "internal error")
        await system.engine.wait_for(lambda: len(system.engine.finished) == 1)
        assert system.engine.finished[0].request.status == "Error"
    assert "a middleware's bug" in caplog.text


async def add_header(request: web.Request, handler: Handler) -> web.StreamResponse:
    response = await handler(request)
    response.headers["X-Added"] = "yes"
    return response


async def test_an_answer_that_is_not_streamed_can_be_changed(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=with_middlewares(add_header)) as system:
        async with system.post("/echo", 3.0) as answer:
            assert (answer.status, answer.headers["X-Added"]) == (200, "yes")
        await system.reported(served=3.0)


async def rename(request: web.Request, handler: Handler) -> web.StreamResponse:
    return await handler(request.clone(headers={**request.headers, "X-Request-Id": "renamed"}))


@pytest.mark.parametrize("keepalive_s", [None, 0.1])
async def test_a_middleware_may_pass_on_another_request(tmp_path: Path, keepalive_s: float | None) -> None:
    setup = Setup(health="/health", handler={"keepalive_s": keepalive_s})
    async with with_worker_task(tmp_path, setup, make=with_middlewares(rename)) as system:
        status, _ = await system.call("/echo", 3.0)
        assert status == 200
        seen = next(r for r in system.model.requests if r.path == "/echo")
        assert seen.header("X-Request-Id") == "renamed"
        await system.reported(served=3.0)


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
    async with with_worker_task(tmp_path, make=with_middlewares(middleware)) as system:
        await system.call("/error500", 3.0)
        await asyncio.gather(*_TASKS, return_exceptions=True)
        assert system.backend is not None
        ledger = system.backend.metrics
        assert ledger.received <= 1
        assert ledger.accepted_load <= 3.0
        assert ledger.unfinished == 0


async def answer_slowly(request: web.Request, handler: Handler) -> web.StreamResponse:
    await _MAY_ANSWER.wait()
    return web.json_response({"cached": True})


_MAY_ANSWER = asyncio.Event()


async def test_a_drain_waits_for_a_middlewares_own_answer(tmp_path: Path) -> None:
    _MAY_ANSWER.clear()
    async with with_worker_task(tmp_path, make=with_middlewares(answer_slowly)) as system:
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


async def swap_and_judge(request: web.Request, handler: Handler) -> web.StreamResponse:
    response = await handler(request.clone())
    request["outcome"] = "errored"
    return response


async def test_a_middleware_may_judge_the_request_that_it_replaced(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=with_middlewares(swap_and_judge)) as system:
        assert (await system.call("/echo"))[0] == 200
        await system.engine.wait_for(lambda: system.engine.finished)
        assert system.engine.finished[0].request.status == "Error"


async def test_start_server_accepts_middlewares(tmp_path: Path) -> None:
    """`run_server` adds them to the backend's; `pyworker check` sees them there."""
    seen: list[Any] = []

    async def inspect(backend: Backend, routes: Any) -> int:
        seen.extend(backend.middlewares)
        return 0

    backend, routes = build("http://127.0.0.1:1", Setup(health="/health"))
    with inspected_by(inspect):
        assert await run_server(backend, routes, middlewares=[forbid]) == 0
    assert seen == [forbid]


async def forgetful(request: web.Request, handler: Handler) -> Any:
    await handler(request)


async def wrong(request: web.Request, handler: Handler) -> Any:
    return (await handler(request)).status


@pytest.mark.parametrize(
    ("middleware", "message"),
    [
        (forgetful, "forgetful returned None, not a response: is a `return` missing?"),
        (wrong, "wrong returned an object of int, not a response: return a web.Response"),
        (partial(forgetful), "forgetful returned None"),
    ],
)
async def test_a_result_that_is_no_response_names_the_middleware(
    tmp_path: Path, middleware: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with with_worker_task(tmp_path, make=with_middlewares(middleware)) as system:
        assert (await system.call("/echo", 3.0))[0] == 500
    assert message in caplog.text


class WithCall:
    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return await handler(request)


async def one_argument(request: web.Request) -> Any: ...


@pytest.mark.parametrize(
    ("middleware", "problem"),
    [
        (WithCall, "middlewares[0] is a class: give an object, WithCall()"),
        (one_argument, "middlewares[0] can't be called with 2 arguments"),
        ("name", "middlewares[0] is 'name', not a function"),
        (None, "middlewares[0] is None, not a function"),
    ],
)
def test_a_middleware_that_could_not_be_called_is_a_problem(middleware: Any, problem: str) -> None:
    backend = Backend(None)
    backend.middlewares.append(middleware)
    assert backend.config().problems() == [problem]


def returns_awaitable(request: web.Request, handler: Handler) -> Any:
    return handler(request)


@pytest.mark.parametrize(
    "middleware",
    [forgetful, web.middleware(forgetful), WithCall(), partial(WithCall()), returns_awaitable],
)
def test_other_middlewares_are_no_problem(middleware: Any) -> None:
    backend = Backend(None)
    backend.middlewares.append(middleware)
    assert backend.config().problems() == []
