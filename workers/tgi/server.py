"""The worker for Hugging Face Text Generation Inference: `python -m workers.tgi.server`.

Owns TGI's log lines and the defaults of the settings. Requests are in data_types.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from aiohttp import web

from lib.backend import Backend
from lib.model_settings import ModelSettings
from lib.server import run_worker
from workers.tgi.benchmark import TgiBenchmarkHandler
from workers.tgi.handlers import TgiHandler, TgiStreamHandler

MODEL_SERVER_URL = "http://127.0.0.1:5001"
MODEL_LOG = "/tmp/tgi.log"
# TGI logs JSON (`--json-output`), whose target is the router or one of its modules, or text, whose middle
# differs by version: "INFO text_generation_router::server: router/src/server.rs:2210: Connected". The text
# has colours by default, also in a file. Then an escape sequence precedes the word.
LOAD_LINES = ('"message":"Connected","target":"text_generation_router', ": Connected", "\x1b[0m Connected")
ERROR_LINES = ("Error: WebserverFailed", "Error: DownloadError")
INFO_LINES = ('"message":"Download',)
HEALTH = "/health"
# Seconds. The wait is estimated from the tokens that requests may generate. Most generate far fewer, so that
# the estimate is a multiple of the real wait.
MAX_QUEUE_TIME_S = 600.0
# Seconds. Between the parts of a stream are a few tokens, which take a small part of it on a busy server too.
MODEL_STALL_TIMEOUT_S = 120.0


def build(environ: Mapping[str, str]) -> tuple[Backend, list[web.RouteDef]]:
    """Return the backend and the routes. Raises `SettingsError`, which names every wrong variable."""
    settings = ModelSettings.from_env(
        environ,
        server_url=MODEL_SERVER_URL,
        log=MODEL_LOG,
        load_lines=LOAD_LINES,
        error_lines=ERROR_LINES,
        info_lines=INFO_LINES,
        health=HEALTH,
        max_queue_time=MAX_QUEUE_TIME_S,
    )
    generate = TgiHandler(health=settings.health, max_queue_time=settings.max_queue_time)
    stream = TgiStreamHandler(health=settings.health, max_queue_time=settings.max_queue_time)
    backend = Backend(
        model_server_url=settings.server_url,
        model_log_file=settings.log,
        allow_parallel_requests=True,  # TGI batches concurrent requests
        benchmark_handler=TgiBenchmarkHandler(health=settings.health),
        log_actions=settings.log_actions,
        model_stall_timeout_s=MODEL_STALL_TIMEOUT_S,
    )
    routes = [
        web.post("/generate", backend.create_handler(generate)),
        web.post("/generate_stream", backend.create_handler(stream)),
    ]
    return backend, routes


if __name__ == "__main__":
    run_worker(build, os.environ)
