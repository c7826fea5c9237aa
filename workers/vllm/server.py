"""The worker for vLLM, the OpenAI worker with vLLM's log lines: `python -m workers.vllm.server`."""

from __future__ import annotations

import os
from collections.abc import Mapping

from aiohttp import web

from lib.backend import Backend
from lib.server import run_worker
from workers.openai import server
from workers.openai.passing import FAMILIES

VLLM = server.ServerProfile(
    log="/var/log/portal/vllm.log",
    load_lines=("Application startup complete.",),
    # The process manager of an instance logs the first line when vLLM exits. vLLM's crashes begin with the
    # second.
    error_lines=("INFO exited: vllm", "RuntimeError: Engine"),
    info_lines=("Starting to load model", "Loading weights took"),
    families=FAMILIES,
    ignore_eos=True,
)


def build(environ: Mapping[str, str]) -> tuple[Backend, list[web.RouteDef]]:
    """Return the backend and the routes. Raises `SettingsError`, which names every wrong variable."""
    return server.build(environ, VLLM)


if __name__ == "__main__":
    run_worker(build, os.environ)
