"""The worker for vLLM: `python -m workers.vllm.server`. It is the OpenAI worker with its log lines."""

from __future__ import annotations

import os
from collections.abc import Mapping

from aiohttp import web

from lib.backend import Backend
from lib.server import run_worker
from workers.openai import server

VLLM = server.ServerProfile(
    log="/var/log/portal/vllm.log",
    load_lines=("Application startup complete.",),
    # The first is the process manager's on an instance; the second is what vLLM's own crashes begin with.
    error_lines=("INFO exited: vllm", "RuntimeError: Engine"),
    info_lines=("Starting to load model", "Loading weights took"),
    ignore_eos=True,
)


def build(environ: Mapping[str, str]) -> tuple[Backend, list[web.RouteDef]]:
    """The worker's backend and routes. Raises `SettingsError` where `environ` can't work."""
    return server.build(environ, VLLM)


if __name__ == "__main__":
    run_worker(build, os.environ)
