"""The tests' worker: a route for every path of the fake model server, set up by `TEST_WORKER` (JSON).

It runs as a worker process, or as a worker task made by `build`. Its handlers and its payload are written
as an author would write them.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from lib.backend import Backend
from lib.data_types import ApiPayload, EndpointHandler, JsonDataException, LogAction
from lib.server import start_server
from lib.worker import BenchmarkConfig, HandlerConfig, LogActionConfig, Worker, WorkerConfig

PATHS = (
    *("echo", "held", "stream", "flood", "bytewise", "gzip", "brotli", "gzip_stream", "binary", "accepted"),
    *("empty", "redirect", "error500", "error422", "hop", "close", "half_head", "once", "stale"),
    *("cut_stream", "reset_stream", "cut_whole", "cut_large", "silent_stream", "missing"),
)
READY_LINE = "model is ready"
ERROR_LINE = "CUDA error"

# Calls of each author function in this process, for tests that run the worker as a task.
AUTHOR_CALLS: Counter[str] = Counter()


@dataclass
class Job(ApiPayload):
    """`workload` units of work on `data`."""

    workload: float = 1.0
    data: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def from_json_msg(cls, json_msg: dict[str, Any]) -> Job:
        AUTHOR_CALLS["from_json_msg"] += 1
        return super().from_json_msg(json_msg)

    def count_workload(self) -> float:
        AUTHOR_CALLS["count_workload"] += 1
        return self.workload

    @classmethod
    def for_test(cls) -> Job:
        return cls(workload=10.0, data={"test": True})


@dataclass
class JobHandler(EndpointHandler[Job]):
    path: str = "/echo"

    @property
    def endpoint(self) -> str:
        return self.path

    @property
    def healthcheck_endpoint(self) -> str | None:
        return None

    @classmethod
    def payload_cls(cls) -> type[Job]:
        return Job


class RaisingHandler(JobHandler):
    """Raises as its payload says."""

    has_benchmark = False

    @classmethod
    def get_data_from_request(cls, req_data: dict[str, Any]) -> Any:
        AUTHOR_CALLS["get_data_from_request"] += 1
        data = req_data["payload"].get("data", {})
        if data.get("raise") == "parser":
            raise RuntimeError("parser bug")
        if data.get("raise") == "json":
            raise JsonDataException({"payload": {"data": "not like this"}})
        if data.get("raise") == "json-exception":
            raise JsonDataException({"payload": {"data": ValueError("an exception as a message")}})
        return super().get_data_from_request(req_data)

    async def generate_client_response(self, client_request: web.Request, model_response: Any) -> Any:
        body = json.loads(json.loads(await model_response.read())["body"])
        what = body["data"].get("raise")
        if what == "response":
            raise RuntimeError("response bug")
        if what == "midway":
            response = web.StreamResponse()
            await response.prepare(client_request)
            await response.write(b"half")
            raise RuntimeError("response bug after the status line")
        if what == "http":
            conflict = web.HTTPConflict(text="not now")
            conflict.set_cookie("tried", "1")
            raise conflict
        if what == "query":
            return web.json_response({"path": client_request.path_qs, "query": dict(client_request.query)})
        if what in ("errored", "served"):
            client_request["outcome"] = what
        return web.json_response({"raised": False}, status=body["data"].get("status", 200))


@dataclass
class StoppingHandler(JobHandler):
    """Tells the model server to stop the job of a client that left; raises if the job says so."""

    backend: Backend | None = None

    async def on_client_disconnect(self, payload: Job) -> None:
        assert self.backend is not None
        async with self.backend.session.post("/interrupt", json=payload.data):
            if payload.data.get("raise"):
                raise RuntimeError("stop bug")


@dataclass(kw_only=True)
class Setup:
    """A worker's settings: `handler` are keywords of every handler, `backend` those of the backend.

    `declared` makes the same worker from a declaration.
    """

    declared: bool = False
    log: str | None = None
    health: str | None = None
    model_path: str = ""
    benchmark: str | None = None
    handler: dict[str, Any] = field(default_factory=dict[str, Any])
    backend: dict[str, Any] = field(default_factory=dict[str, Any])


def build(model_url: str, setup: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
    """Make the worker for the model server at `model_url`."""
    if setup.declared:
        worker = declare(model_url, setup)
        return worker.backend, worker.routes
    options: dict[str, Any] = {
        "allow_parallel_requests": True,
        "healthcheck_url": setup.health,
        **setup.backend,
    }
    if setup.log is not None:
        options["model_log_file"] = setup.log
        options["log_actions"] = [(LogAction.ModelLoaded, READY_LINE), (LogAction.ModelError, ERROR_LINE)]
    if setup.benchmark is not None:
        options["benchmark_handler"] = JobHandler(path=setup.benchmark, **setup.handler)
    backend = Backend(model_url + setup.model_path, **options)
    routes: list[web.AbstractRouteDef] = [
        web.post(f"/{path}", backend.create_handler(JobHandler(path=f"/{path}", **setup.handler)))
        for path in PATHS
    ]
    finish: dict[str, Any] = {**setup.handler, "on_disconnect": "finish"}
    for path in ("held", "stream", "echo"):
        handler = JobHandler(path=f"/{path}", **finish)
        routes.append(web.post(f"/finish/{path}", backend.create_handler(handler)))
    for path in ("held", "stream"):
        stopping = StoppingHandler(path=f"/{path}", backend=backend, **setup.handler)
        routes.append(web.post(f"/stopping/{path}", backend.create_handler(stopping)))
    raising = RaisingHandler(path="/echo", **setup.handler)
    routes.append(web.post("/raising", backend.create_handler(raising)))
    return backend, routes


def altered_worker(
    change: Callable[[Backend], list[web.AbstractRouteDef] | None],
) -> Callable[[str, Setup], tuple[Backend, list[web.AbstractRouteDef]]]:
    """Return a `build` that applies `change` to the backend, and adds the routes that `change` returns."""

    def make(model_url: str, setup: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
        backend, routes = build(model_url, setup)
        return backend, [*routes, *(change(backend) or [])]

    return make


def declare(model_url: str, setup: Setup) -> Worker:
    """Declare the same worker, without the handlers that stop the model, which need a class."""
    backend: dict[str, Any] = {"allow_parallel_requests": True, **setup.backend}
    handler: dict[str, Any] = {"max_queue_time": None, **setup.handler}
    handler.setdefault("allow_parallel_requests", backend.pop("allow_parallel_requests"))
    runs, at_once = handler.pop("benchmark_runs", 8), handler.pop("benchmark_concurrency", None)
    finish: dict[str, Any] = {**handler, "on_disconnect": "finish"}
    benchmark = BenchmarkConfig(runs=runs, concurrency=at_once)
    lines = LogActionConfig(on_load=[READY_LINE], on_error=[ERROR_LINE]) if setup.log else LogActionConfig()
    return Worker(
        WorkerConfig(
            model_server_url=model_url + setup.model_path,
            model_log_file=setup.log,
            model_healthcheck_url=setup.health,
            log_action_config=lines,
            handlers=[
                *(
                    HandlerConfig(
                        f"/{path}",
                        payload_class=Job,
                        benchmark_config=benchmark if setup.benchmark == f"/{path}" else None,
                        **handler,
                    )
                    for path in PATHS
                ),
                *(
                    HandlerConfig(f"/finish/{p}", payload_class=Job, **finish)
                    for p in ("held", "stream", "echo")
                ),
                HandlerConfig("/raising", handler_class=RaisingHandler, **handler),
            ],
            **backend,
        )
    )


if __name__ == "__main__":
    start_server(
        *build(os.environ["TEST_MODEL_URL"], Setup(**json.loads(os.environ["TEST_WORKER"]))), host="127.0.0.1"
    )
