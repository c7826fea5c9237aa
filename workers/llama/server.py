"""The worker for llama.cpp: `python -m workers.llama.server`. It is the OpenAI worker with its log lines.

llama-server listens, and answers its health check with 503, before the model is loaded; the line below comes
after that.
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
    """The worker's backend and routes. Raises `SettingsError` where `environ` can't work."""
    return server.build(environ, LLAMA)


if __name__ == "__main__":
    run_worker(build, os.environ)
