"""A worker whose routes read and call what older workers do: metrics, sessions, the semaphore."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Dict, Type  # noqa: UP035 - as written years ago

from aiohttp import ClientResponse, web

from lib.backend import Backend
from lib.data_types import ApiPayload, EndpointHandler, RequestMetrics
from lib.server import start_server


class Text(ApiPayload):
    def __init__(self, text: str) -> None:
        self.text = text

    @classmethod
    def from_json_msg(cls, json_msg: Dict[str, Any]) -> "Text":  # noqa: UP006
        return cls(json_msg["text"])

    def generate_payload_json(self) -> Dict[str, Any]:  # noqa: UP006
        return {"text": self.text}

    def count_workload(self) -> float:
        return float(len(self.text))


def count_again(backend: Backend) -> None:
    """Count a request that the worker counts, or one of its benchmark: this must count nothing."""
    metrics: Any = backend.metrics
    metrics._request_start(workload=7.0, reqnum=1)
    metrics._request_success(workload=7.0)
    metrics._request_end(workload=7.0, reqnum=1)
    metrics._request_reject(workload=7.0)


class TextHandler(EndpointHandler[Text]):
    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @property
    def endpoint(self) -> str:
        return "/echo"

    @classmethod
    def payload_cls(cls) -> Type[Text]:  # noqa: UP006
        return Text

    async def generate_client_response(
        self, client_request: web.Request, model_response: ClientResponse
    ) -> web.Response:
        count_again(self.backend)
        return web.Response(body=await model_response.read())


class CallingHandler(TextHandler):
    """Counts each call of the model, and each client that leaves."""

    has_benchmark = False

    @property
    def endpoint(self) -> str:
        return "/held"

    def make_benchmark_payload(self) -> Text:
        return Text("benchmark")

    @asynccontextmanager
    async def call_model(self, model: Any, payload: Text) -> AsyncGenerator[Any, None]:
        count_again(self.backend)
        async with model.post_json(self.endpoint, payload.generate_payload_json()) as answer:
            yield answer

    async def on_client_disconnect(self, payload: Text) -> None:
        count_again(self.backend)
        await self.backend.session.post("/interrupt")


class Routes:
    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.metrics: Any = backend.metrics

    async def facts(self, _: web.Request) -> web.Response:
        model, system, backend = self.metrics.model_metrics, self.metrics.system_metrics, self.backend
        return web.json_response(
            {
                "id": self.metrics.id,
                "url": self.metrics.url,
                "report_addr": [self.metrics.report_addr, backend.report_addr],
                "mtoken": backend.mtoken,
                "version": backend.version,
                "reqnum": backend.reqnum,
                "sessions": {name: session.lifetime for name, session in backend.sessions.items()},
                "locked": backend.sem.locked(),
                "loaded": [system.model_is_loaded, (system.model_loading_time or 0.0) > 0],
                "error": [model.is_errored, model.error_msg],
                "max_throughput": model.max_throughput,
                "pending": [model.workload_pending, model.cur_load, model.wait_time],
                "working": [r.workload for r in model.requests_working.values()],
                "idxs": model.working_request_idxs,
                "served": model.workload_served,
                "errored": model.workload_errored,
                "cancelled": model.workload_cancelled,
                "rejected": model.workload_rejected,
                "received": model.workload_received,
            }
        )

    async def by_numbers(self, request: web.Request) -> web.Response:
        """Counts its request by workload and reqnum, as the oldest workers do."""
        call = await request.json()
        workload, reqnum = float(call["workload"]), int(call["reqnum"])
        self.metrics._request_start(workload=workload, reqnum=reqnum)
        try:
            if call["ends"] in ("success", "errored", "canceled"):
                getattr(self.metrics, f"_request_{call['ends']}")(workload=workload)
            if call["ends"] == "twice":
                self.metrics._request_start(workload=workload, reqnum=reqnum)
                self.metrics._request_errored(workload=workload)
                self.metrics._request_success(workload=workload)
        finally:
            self.metrics._request_end(workload, reqnum)
        return web.json_response({})

    async def by_object(self, request: web.Request) -> web.Response:
        """Counts its request by an object, as later workers do."""
        call = await request.json()
        counted = RequestMetrics(call["request_idx"], call["reqnum"], call["workload"])
        if call["ends"] == "reject":
            self.metrics._request_reject(counted)
        else:
            self.metrics._request_start(counted)
            getattr(self.metrics, f"_request_{call['ends']}")(counted)
            self.metrics._request_end(counted)
        return web.json_response({"status": counted.status, "success": counted.success})

    async def unended(self, request: web.Request) -> web.Response:
        """Starts to count a request of the engine's, and never ends it."""
        self.metrics._request_start(RequestMetrics((await request.json())["request_idx"], 3, 12.0))
        return web.json_response({})

    async def in_turn(self, request: web.Request) -> web.Response:
        """Asks the model server when no handler does."""
        async with self.backend.sem, self.backend.session.post("/echo", json={"own": True}) as answer:
            return web.json_response({"locked": self.backend.sem.locked(), "status": answer.status})


def make(model_url: str, **options: Any) -> tuple[Backend, list[web.AbstractRouteDef]]:
    backend = Backend(model_url, healthcheck_url="/health", max_perf=50.0, **options)
    routes = Routes(backend)
    return backend, [
        web.post("/text", backend.create_handler(TextHandler(backend))),
        web.post("/call", backend.create_handler(CallingHandler(backend))),
        web.get("/facts", routes.facts),
        web.post("/by_numbers", routes.by_numbers),
        web.post("/by_object", routes.by_object),
        web.post("/in_turn", routes.in_turn),
        web.post("/unended", routes.unended),
    ]


if __name__ == "__main__":
    backend, routes = make(os.environ["TEST_MODEL_URL"])
    own: Any = backend.metrics
    known = {"id": own.id, "url": own.url, "mtoken": backend.mtoken, "sessions": len(backend.sessions)}
    print("before the start:", known)  # noqa: T201 - as such workers do
    start_server(backend, routes, host="127.0.0.1")
