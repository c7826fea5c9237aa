"""The worker for every OpenAI-compatible model server: `python -m workers.openai.server`.

Owns the settings and what differs between model servers (`ServerProfile`). workers.vllm, workers.sglang,
workers.llama, workers.ollama, workers.embeddings and workers.whisper are this worker with another profile.
The routes are in handlers.py and passing.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from lib.backend import Backend
from lib.errors import SettingsError
from lib.model_settings import EnvironmentReader, ModelSettings
from lib.server import run_worker
from workers.openai.benchmark import OpenAIBenchmarkHandler
from workers.openai.handlers import HANDLERS, GetHandler, OpenAIHandler
from workers.openai.passing import FAMILIES, Passed, PassHandler, pass_routes, routes_of

MODEL_SERVER_URL = "http://127.0.0.1:18000"
MODEL_HEALTH = "/health"
# Seconds. The wait is estimated from the tokens that requests may generate. Most generate far fewer, so that
# the estimate is a multiple of the real wait.
MAX_QUEUE_TIME_S = 600.0
# Seconds. Between the parts of a stream are a few tokens, which take a small part of it on a busy server too.
MODEL_STALL_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class ServerProfile:
    """One model server's address, log file, log lines, routes and benchmark.

    `log` "": no log is read unless `MODEL_LOG` is set. `families` are passed on beside the routes of
    `handlers`. `benchmark` makes the benchmark's handler of the fields `model_name` and `health`; None:
    completions (benchmark.py). `ignore_eos`: the server supports that field, which the completions of the
    benchmark have.
    """

    server_url: str = MODEL_SERVER_URL
    log: str = ""
    load_lines: tuple[str, ...] = ()
    error_lines: tuple[str, ...] = ()
    info_lines: tuple[str, ...] = ()
    health: str = MODEL_HEALTH
    handlers: Sequence[type[OpenAIHandler]] = HANDLERS
    families: Sequence[Passed] = ()
    benchmark: Callable[..., OpenAIHandler] | None = None
    ignore_eos: bool = False


# Any server. It is ready when its health check succeeds. The error lines are vLLM's, which is often run with
# this worker; they are used only if `MODEL_LOG` is set.
ANY = ServerProfile(error_lines=("INFO exited: vllm", "RuntimeError: Engine"), families=FAMILIES)


def build(environ: Mapping[str, str], profile: ServerProfile = ANY) -> tuple[Backend, list[web.RouteDef]]:
    """Return the backend and the routes. Raises `SettingsError`, which names every wrong variable."""
    settings, passed = _settings(environ, profile)
    model_name = environ.get("MODEL_NAME", "").strip()
    common: Mapping[str, Any] = {
        "model_name": model_name,
        "health": settings.health,
        "max_queue_time": settings.max_queue_time,
    }
    benchmark = profile.benchmark or partial(OpenAIBenchmarkHandler, ignore_eos=profile.ignore_eos)
    backend = Backend(
        model_server_url=settings.server_url,
        model_log_file=settings.log,
        allow_parallel_requests=True,
        benchmark_handler=benchmark(model_name=model_name, health=settings.health),
        log_actions=settings.log_actions,
        model_stall_timeout_s=MODEL_STALL_TIMEOUT_S,
    )
    routes: list[web.RouteDef] = []
    for handler in (handler_class(**common) for handler_class in profile.handlers):
        answer = backend.create_handler(handler)
        routes.append(web.post(handler.path, answer))
        if isinstance(handler, GetHandler):
            routes.append(web.get(handler.path, answer))

    def make(kind: type[PassHandler], route: str) -> Handler:
        return backend.create_handler(kind(route=route, **common))

    return backend, [*routes, *routes_of((*profile.families, *passed), routes, make)]


def _settings(environ: Mapping[str, str], profile: ServerProfile) -> tuple[ModelSettings, tuple[Passed, ...]]:
    """Return the model server's settings and the routes of `MODEL_PASS_ROUTES`. Raises `SettingsError`."""
    read = EnvironmentReader(environ)
    passed = read.value("MODEL_PASS_ROUTES", pass_routes, (), "further routes of the model server")
    has_log = bool(profile.log or environ.get("MODEL_LOG"))
    try:
        settings = ModelSettings.from_env(
            environ,
            server_url=profile.server_url,
            log=profile.log,
            load_lines=profile.load_lines,
            error_lines=profile.error_lines if has_log else (),
            info_lines=profile.info_lines,
            health=profile.health,
            max_queue_time=MAX_QUEUE_TIME_S,
        )
    except SettingsError as e:
        raise SettingsError([*read.problems, *e.problems]) from e
    read.finish()
    return settings, passed


if __name__ == "__main__":
    run_worker(build, os.environ)
