"""A worker with routes other than POST with JSON: uploads, parameters in the URL, aiohttp handlers."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from lib.backend import Backend
from lib.data_types import ApiPayload, EndpointHandler
from lib.server import start_server
from lib.uploads import Upload
from tests.fakes.worker import JobHandler, RaisingHandler, Setup


@dataclass
class Sound(Upload):
    """A form with a file; its workload grows with its size."""

    def count_workload(self) -> float:
        return self.size_bytes / 1000


@dataclass
class Search(ApiPayload):
    """A payload made of a URL's parameters."""

    id: str = ""
    limit: int = 10
    exact: bool = False
    tags: list[str] = field(default_factory=list[str])
    score: float | None = None

    def count_workload(self) -> float:
        return float(self.limit)


@dataclass(kw_only=True)
class SoundHandler(EndpointHandler[Sound]):
    path: str = "/echo"

    @property
    def endpoint(self) -> str:
        return self.path

    @classmethod
    def payload_cls(cls) -> type[Sound]:
        return Sound


@dataclass(kw_only=True)
class SearchHandler(EndpointHandler[Search]):
    path: str = "/items/{id}/echo"

    @property
    def endpoint(self) -> str:
        return self.path

    @classmethod
    def payload_cls(cls) -> type[Search]:
        return Search


async def bare_answer(request: web.Request) -> web.StreamResponse:
    """Answer with the payload and the cost that a bare handler gets."""
    payload = request["payload"]
    content: Any = payload.size_bytes if isinstance(payload, Upload) else payload
    if request.query.get("raise"):
        raise RuntimeError("bug of a bare route")
    return web.Response(text=json.dumps({"payload": content, "cost": request["auth_data"].cost}), status=203)


def build(model_url: str, setup: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
    """Make the worker for the model server at `model_url`."""
    backend = Backend(model_url, allow_parallel_requests=True, healthcheck_url=setup.health, **setup.backend)
    search = backend.create_handler(SearchHandler(**setup.handler))
    routes: list[web.AbstractRouteDef] = [
        *(
            web.post(f"/{p}", backend.create_handler(JobHandler(path=f"/{p}", **setup.handler)))
            for p in PATHS
        ),
        web.post("/raising", backend.create_handler(RaisingHandler(path="/echo", **setup.handler))),
        *(
            web.post(f"/sound/{p}", backend.create_handler(SoundHandler(path=f"/{p}", **setup.handler)))
            for p in SOUND_PATHS
        ),
        *(web.route(method, "/items/{id}/echo", search) for method in ("GET", "PUT", "DELETE", "PATCH")),
        web.get("/events", backend.create_handler(SearchHandler(path="/stream", **setup.handler))),
        web.get("/own", backend.guard(bare_answer, workload=3.0)),
        web.post("/own", backend.guard(bare_answer, workload=_own_workload)),
    ]
    return backend, routes


PATHS = (
    "echo",
    "held",
    "stream",
    "error500",
    "error422",
    "binary",
    "gzip",
    "close",
    "cut_whole",
    "cut_stream",
)
SOUND_PATHS = ("echo", "held", "stale", "count", "stream", "error500", "close", "cut_stream")


def _own_workload(payload: Any) -> float:
    return float(payload.size_bytes if isinstance(payload, Upload) else payload["work"])


if __name__ == "__main__":
    start_server(
        *build(os.environ["TEST_MODEL_URL"], Setup(**json.loads(os.environ["TEST_WORKER"]))), host="127.0.0.1"
    )
