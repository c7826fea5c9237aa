"""The hello_world worker: `python -m workers.hello_world.server`.

Read data_types.py first: what a request is. Here is where it goes, and how to see that the model server
is ready. A worker is these two files; copy them to begin your own (README.md tells the steps).
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

# Where the model server is and what it writes into its log. Each can be overridden by environment.
MODEL_SERVER_URL = "http://127.0.0.1:5001"
MODEL_LOG = "/tmp/hello_world.log"
MODEL_LOAD_LINE = "infer server has started"
MODEL_ERROR_LINE = "Exception: corrupted model file"
MODEL_INFO_LINE = "loading model"
MODEL_HEALTH = "/health"
# A chat's user won't wait longer, in seconds: refused at once, another worker may take the request.
MAX_QUEUE_TIME_S = 60.0


@dataclass(kw_only=True)
class GenerateHandler(EndpointHandler[InputData]):
    """One route of the worker. Only `endpoint` and `payload_cls` are required.

    The answer is passed on as the model server gives it, status and headers included, streamed if it
    streams. To change it, define `generate_client_response`; to speak to the model server in another way
    than by one POST, define `call_model`.
    """

    health: str | None = MODEL_HEALTH

    @property
    def endpoint(self) -> str:
        """1. Where on the model server the payload is POSTed to."""
        return "/generate"

    @property
    def healthcheck_endpoint(self) -> str | None:
        """2. What is asked every 10 s whether the model server is well. Left out, nothing is."""
        return self.health

    @classmethod
    def payload_cls(cls) -> type[InputData]:
        """3. Which class reads the payload."""
        return InputData

    def make_benchmark_payload(self) -> InputData:
        """4. What the benchmark sends, each time anew. Left out, it is the payload class's `for_test()`."""
        payload = InputData.for_test()
        payload.prompt = some_words(self.benchmark_words)
        return payload


@dataclass(kw_only=True)
class GenerateStreamHandler(GenerateHandler):
    """The second route differs in nothing but its address: a streamed answer needs no code."""

    @property
    def endpoint(self) -> str:
        return "/generate_stream"


def build(environ: Mapping[str, str]) -> tuple[Backend, list[web.RouteDef]]:
    """The worker's backend and routes. Raises `SettingsError` where `environ` can't work."""
    # 1. What an operator may override, and what holds otherwise.
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

    # 3. The backend that they share. The benchmark measures by one handler what the machine can do.
    backend = Backend(
        model_server_url=settings.server_url,
        model_log_file=settings.log,
        allow_parallel_requests=True,  # the model server takes many at once
        benchmark_handler=generate,
        log_actions=settings.log_actions,
    )

    # 4. The routes that clients call. `GET /ping` and the management routes are there without a word.
    routes = [
        web.post("/generate", backend.create_handler(generate)),
        web.post("/generate_stream", backend.create_handler(generate_stream)),
    ]
    return backend, routes


if __name__ == "__main__":
    run_worker(build, os.environ)
