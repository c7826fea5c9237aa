"""The worker for llama.cpp, the OpenAI worker with llama.cpp's log lines: `python -m workers.llama.server`.

llama-server accepts connections, and answers its health check with 503, before the model is loaded. It logs
a load line afterwards. Some older versions logged theirs before, so that their health check decides; the
first had no health check, and listened only once the model was loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from aiohttp import web

from lib.backend import Backend
from lib.server import run_worker
from workers.openai import server
from workers.openai.passing import FAMILIES

# In the order of versions, the latest first: "llama_server: listening on http://…", "main: server is
# listening on http://…", "llama server listening at http://…", "HTTP server listening".
LOAD_LINES = (
    "llama_server: listening on",
    "server is listening on",
    "llama server listening at",
    "HTTP server listening",
)

LLAMA = server.ServerProfile(
    log="/var/log/portal/llama.log",
    load_lines=LOAD_LINES,
    error_lines=("exiting due to model loading error",),
    families=FAMILIES,
    ignore_eos=True,
)


def build(environ: Mapping[str, str]) -> tuple[Backend, list[web.RouteDef]]:
    """Return the backend and the routes. Raises `SettingsError`, which names every wrong variable."""
    return server.build(environ, LLAMA)


if __name__ == "__main__":
    run_worker(build, os.environ)
