"""The hello_world worker: `python -m workers.hello_world.server`.

Read data_types.py first: it defines a request. This file defines the routes, and how the worker sees that the
model server is ready. A worker consists of these two files. README.md describes how to make your own from
them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web

from lib.backend import Backend
from lib.data_types import EndpointHandler
from lib.model_settings import ModelSettings
from lib.server import run_worker
from lib.words import some_words
from workers.hello_world.data_types import InputData

# The model server's address and log lines. Environment variables override each of them (README.md).
MODEL_SERVER_URL = "http://127.0.0.1:5001"
MODEL_LOG = "/tmp/hello_world.log"
MODEL_LOAD_LINE = "infer server has started"
MODEL_ERROR_LINE = "Exception: corrupted model file"
MODEL_INFO_LINE = "loading model"
MODEL_HEALTH = "/health"
# Seconds. A chat's user won't wait longer. A request that would is refused immediately, so that its client
# can ask another worker.
MAX_QUEUE_TIME_S = 60.0


@dataclass(kw_only=True)
class GenerateHandler(EndpointHandler[InputData]):
    """One route of the worker. Only `endpoint` and `payload_cls` are required.

    The client gets the model server's answer unchanged, with status and headers, and as a stream if it is
    one. To judge the answer by its content, define `scan_answer`; to change it, `generate_client_response`.
    To choose the path by the payload, define `endpoint_for`; to call the model server in another way than by
    one POST, `call_model`.
    """

    health: str | None = MODEL_HEALTH

    @property
    def endpoint(self) -> str:
        """1. The model server's path, to which payloads are POSTed."""
        return "/generate"

    @property
    def healthcheck_endpoint(self) -> str | None:
        """2. The model server's health check, called every 10 s; None: there is none."""
        return self.health

    @classmethod
    def payload_cls(cls) -> type[InputData]:
        """3. The class of the payload."""
        return InputData

    def make_benchmark_payload(self) -> InputData:
        """4. Return a request for the benchmark. By default it is `for_test()` of the payload class."""
        payload = InputData.for_test()
        payload.prompt = some_words(self.benchmark_words)
        return payload


@dataclass(kw_only=True)
class GenerateStreamHandler(GenerateHandler):
    """The second route, which differs only in its path: a streamed answer needs no code."""

    @property
    def endpoint(self) -> str:
        return "/generate_stream"


def build(environ: Mapping[str, str]) -> tuple[Backend, list[web.RouteDef]]:
    """Return the backend and the routes. Raises `SettingsError`, which names every wrong variable."""
    # 1. The settings: an environment variable where it is set, or else these defaults.
    settings = ModelSettings.from_env(
        environ,
        server_url=MODEL_SERVER_URL,
        log=MODEL_LOG,
        load_lines=[MODEL_LOAD_LINE],
        error_lines=[MODEL_ERROR_LINE],
        info_lines=[MODEL_INFO_LINE],
        health=MODEL_HEALTH,
        max_queue_time=MAX_QUEUE_TIME_S,
    )

    # 2. A handler for each route.
    generate = GenerateHandler(health=settings.health, max_queue_time=settings.max_queue_time)
    generate_stream = GenerateStreamHandler(health=settings.health, max_queue_time=settings.max_queue_time)

    # 3. The backend that they share. The benchmark measures the machine's throughput with one handler: one
    #    that streams, so that it sees the tokens as they are generated.
    backend = Backend(
        model_server_url=settings.server_url,
        model_log_file=settings.log,
        allow_parallel_requests=True,  # the model server handles several requests at the same time
        benchmark_handler=generate_stream,
        log_actions=settings.log_actions,
    )

    # 4. The routes that clients call. `GET /ping` and the management routes are added automatically.
    routes = [
        web.post("/generate", backend.create_handler(generate)),
        web.post("/generate_stream", backend.create_handler(generate_stream)),
    ]
    return backend, routes


if __name__ == "__main__":
    run_worker(build, os.environ)
