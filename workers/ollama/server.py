"""The worker for Ollama: `python -m workers.ollama.server`.

Owns Ollama's log lines, and the loading of the model: Ollama listens before it has one, and loads it with the
first request. Requests are in data_types.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from functools import partial

import aiohttp
from aiohttp import web

from lib.backend import Backend
from lib.errors import SettingsError
from lib.server import run_worker
from workers.ollama.benchmark import OllamaBenchmarkHandler
from workers.ollama.handlers import HANDLERS, OllamaGenerateHandler
from workers.openai import server

log = logging.getLogger(__name__)

OLLAMA = server.ServerProfile(
    server_url="http://127.0.0.1:11434",
    log="/var/log/portal/ollama.log",
    load_lines=('msg="Listening on',),
    error_lines=("Error: listen tcp",),
    info_lines=("llama runner started in",),
    health="/api/version",
    handlers=HANDLERS,
    benchmark=OllamaBenchmarkHandler,
)
# Seconds from one attempt to load the model to the next: Ollama has not begun, or the model is not pulled.
RETRY_S = 1.0
# Ollama answers once the model is loaded, which takes minutes for a large one.
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)
MAX_EXCERPT = 300


def build(environ: Mapping[str, str]) -> tuple[Backend, list[web.RouteDef]]:
    """Return the backend and the routes. Raises `SettingsError`, which names every wrong variable."""
    model = environ.get("MODEL_NAME", "").strip()
    missing = () if model else ("MODEL_NAME: missing (the model to load, such as llama3.2:3b)",)
    try:
        backend, routes = server.build(environ, OLLAMA)
    except SettingsError as e:
        raise SettingsError([*e.problems, *missing]) from e
    if missing:
        raise SettingsError(missing)
    backend.lifecycle = partial(model_loaded, backend, model)
    return backend, routes


@asynccontextmanager
async def model_loaded(backend: Backend, model: str) -> AsyncGenerator[None, None]:
    """Entered once Ollama has loaded `model`, which stays loaded."""
    last = ""
    while problem := await _load(backend, model):
        if problem != last:
            log.info("%s is not loaded yet: %s", model, problem)
        last = problem
        await asyncio.sleep(RETRY_S)
    yield


async def _load(backend: Backend, model: str) -> str | None:
    """Ask Ollama to load `model`; return why it did not, or None. A request without a prompt only loads."""
    request = {"model": model, "keep_alive": -1, "stream": False}
    try:
        path = OllamaGenerateHandler.path
        async with backend.session.post(path, json=request, timeout=_NO_TIMEOUT) as answer:
            text = await answer.text(errors="replace")
            return None if answer.status < 300 else f"HTTP {answer.status}: {text[:MAX_EXCERPT].strip()}"
    except (aiohttp.ClientError, OSError) as e:
        return str(e) or type(e).__name__


if __name__ == "__main__":
    run_worker(build, os.environ)
