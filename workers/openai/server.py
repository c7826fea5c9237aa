"""The worker for every OpenAI-compatible model server: `python -m workers.openai.server`.

Owns how a server shows its state, by default and by environment; workers.vllm, workers.sglang and
workers.llama are settings on it. The routes are in handlers.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web

from lib.backend import Backend
from lib.model_settings import ModelSettings
from lib.server import run_worker
from workers.openai.benchmark import OpenAIBenchmarkHandler
from workers.openai.handlers import HANDLERS, ModelsHandler

MODEL_SERVER_URL = "http://127.0.0.1:18000"
MODEL_HEALTH = "/health"
# Requests are counted by what they may generate, and most generate far less: a wait by estimate, in seconds,
# is a multiple of the real one.
MAX_QUEUE_TIME_S = 600.0


@dataclass(frozen=True, kw_only=True)
class ServerProfile:
    """What is special about one model server: its log, what it writes there, and what it takes.

    `log` "": there is none unless `MODEL_LOG` names it. `ignore_eos`: it takes that field (benchmark.py).
    """

    log: str = ""
    load_lines: tuple[str, ...] = ()
    error_lines: tuple[str, ...] = ()
    info_lines: tuple[str, ...] = ()
    ignore_eos: bool = False


# Any server: its health check tells when it is loaded. Whoever names its log often runs vLLM under this name.
ANY = ServerProfile(error_lines=("INFO exited: vllm", "RuntimeError: Engine"))


def build(environ: Mapping[str, str], profile: ServerProfile = ANY) -> tuple[Backend, list[web.RouteDef]]:
    """The worker's backend and routes. Raises `SettingsError` where `environ` can't work."""
    has_log = bool(profile.log or environ.get("MODEL_LOG"))
    settings = ModelSettings.from_env(
        environ,
        server_url=MODEL_SERVER_URL,
        log=profile.log,
        load_lines=profile.load_lines,
        error_lines=profile.error_lines if has_log else (),
        info_lines=profile.info_lines,
        health=MODEL_HEALTH,
        max_queue_time=MAX_QUEUE_TIME_S,
    )
    model_name = environ.get("MODEL_NAME", "").strip()
    handlers = [
        handler(model_name=model_name, health=settings.health, max_queue_time=settings.max_queue_time)
        for handler in HANDLERS
    ]
    backend = Backend(
        model_server_url=settings.server_url,
        model_log_file=settings.log,
        allow_parallel_requests=True,
        benchmark_handler=OpenAIBenchmarkHandler(
            model_name=model_name, health=settings.health, ignore_eos=profile.ignore_eos
        ),
        log_actions=settings.log_actions,
    )
    routes: list[web.RouteDef] = []
    for handler in handlers:
        answer = backend.create_handler(handler)
        routes.append(web.post(handler.path, answer))
        if isinstance(handler, ModelsHandler):
            routes.append(web.get(handler.path, answer))
    return backend, routes


if __name__ == "__main__":
    run_worker(build, os.environ)
