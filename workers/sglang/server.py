"""The worker for SGLang, the OpenAI worker with SGLang's log lines: `python -m workers.sglang.server`."""

from __future__ import annotations

import os
from collections.abc import Mapping

from aiohttp import web

from lib.backend import Backend
from lib.server import run_worker
from workers.openai import server
from workers.openai.passing import FAMILIES

SGLANG = server.ServerProfile(
    log="/var/log/portal/sglang.log",
    load_lines=("The server is fired up and ready to roll!",),
    # Logged by the server's main process when one of its worker processes has died.
    error_lines=("Received sigquit from a child process",),
    info_lines=("Load weight begin", "Load weight end"),
    families=FAMILIES,
    ignore_eos=True,
)


def build(environ: Mapping[str, str]) -> tuple[Backend, list[web.RouteDef]]:
    """Return the backend and the routes. Raises `SettingsError`, which names every wrong variable."""
    return server.build(environ, SGLANG)


if __name__ == "__main__":
    run_worker(build, os.environ)
