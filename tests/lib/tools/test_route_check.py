"""The findings of `pyworker check` about the speed of routes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from lib.backend import Backend
from lib.tools.findings import Findings
from lib.tools.route_check import check_speed
from lib.worker import HandlerConfig, Worker, WorkerConfig
from tests.fakes.plain_handler import PlainHandler
from tests.seams.api_key import ApiKey

URL = "http://127.0.0.1:1"
READY_MADE = sorted(path.parent.name for path in Path("workers").glob("*/server.py"))


def texts(backend: Backend, routes: list[Any]) -> list[str]:
    found = Findings("worker.py")
    check_speed(backend, routes, found)
    prefix = f"note     {'speed':<13} "
    assert all(line.startswith(prefix) for line in found.lines()[:-1])
    return [line.removeprefix(prefix) for line in found.lines()[:-1]]


async def plain(_request: web.Request) -> web.Response:
    return web.Response()


async def nothing(request: web.Request, handler: Handler) -> web.StreamResponse:
    return await handler(request)


def one() -> int:
    return 1


class Attached(PlainHandler):
    remote_function = one


class Dispatching(PlainHandler):
    async def call_remote_dispatch_function(self, params: dict[str, Any]) -> Any:
        return len(params)


def test_each_reason_is_named_once_with_its_routes() -> None:
    backend = Backend(URL)
    fast = backend.create_handler(PlainHandler(idempotent=True))
    routes = [
        web.post("/fast", fast),
        web.post("/voices/{id}", fast),
        web.get("/fast", fast),
        web.put("/fast", fast),
        web.post("/plain", plain),
        web.post("/guarded", backend.guard(plain)),
        web.post("/long", backend.create_handler(PlainHandler(keepalive_s=1.0))),
        web.post("/kept", backend.create_handler(PlainHandler(on_disconnect="finish"))),
        web.static("/files", "."),
    ]
    assert texts(backend, routes) == [
        "fast routes: POST /fast",
        "slower routes, because the path has parameters: POST /voices/{id}",
        "slower routes, because the method is not POST: GET /fast, PUT /fast",
        "slower routes, because the function is a plain aiohttp handler: POST /plain",
        "slower routes, because a Python function answers: POST /guarded",
        "slower routes, because keepalive_s is set: POST /long",
        "slower routes, because on_disconnect is 'finish': POST /kept",
    ]


def test_middlewares_and_an_authenticator_make_every_route_slower() -> None:
    for backend, what in (
        (Backend(URL), "middlewares"),
        (Backend(URL, authenticator=ApiKey("k")), "an authenticator of its own"),
    ):
        if what == "middlewares":
            backend.middlewares.append(nothing)
        routes = [web.post("/a", backend.create_handler(PlainHandler()))]
        assert texts(backend, routes) == [f"slower routes, because the worker has {what}: POST /a"]
        assert backend.direct_routes(routes) == {}


def test_declared_routes_are_checked_too() -> None:
    handlers = [
        HandlerConfig("/a"),
        HandlerConfig("/b", remote_function=one),
        HandlerConfig("/c", handler_class=Attached),
        HandlerConfig("/d", handler_class=Dispatching),
        HandlerConfig("/e", response_generator=lambda request, answer: web.Response()),
    ]
    worker = Worker(WorkerConfig(URL, model_healthcheck_url="/health", handlers=handlers))
    assert texts(worker.backend, worker.routes) == [
        "fast routes: POST /a",
        "slower routes, because a Python function answers: POST /b, POST /c, POST /d",
        "slower routes, because the handler calls the model or makes the answer itself: POST /e",
    ]


@pytest.mark.parametrize("name", READY_MADE)
def test_what_is_noted_of_ready_made_workers_is_what_they_do(name: str) -> None:
    backend, routes = importlib.import_module(f"workers.{name}.server").build(
        {"COMFYUI_DIALECT": "native", "MODEL_NAME": "model"}
    )
    direct = [f"POST {path}" for path in backend.direct_routes(routes)]
    noted = [text for text in texts(backend, routes) if text.startswith("fast")]
    assert noted == ([f"fast routes: {', '.join(direct)}"] if direct else [])
