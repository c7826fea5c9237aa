"""The worker for llama.cpp, the OpenAI worker with llama.cpp's log lines: `python -m workers.llama.server`.

llama-server accepts connections, and answers its health check with 503, before the model is loaded. It logs
the load line below afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from aiohttp import web

from lib.backend import Backend
from lib.server import run_worker
from workers.openai import server

LLAMA = server.ServerProfile(
    log="/var/log/portal/llama.log",
    load_lines=("server is listening on",),
    error_lines=("exiting due to model loading error",),
    ignore_eos=True,
)


def build(environ: Mapping[str, str]) -> tuple[Backend, list[web.RouteDef]]:
    """Return the backend and the routes. Raises `SettingsError`, which names every wrong variable."""
    return server.build(environ, LLAMA)


if __name__ == "__main__":
    run_worker(build, os.environ)
