"""The worker for SGLang: `python -m workers.sglang.server`. It is the OpenAI worker with its log lines."""

from __future__ import annotations

import os
from collections.abc import Mapping

from aiohttp import web

from lib.backend import Backend
from lib.server import run_worker
from workers.openai import server

SGLANG = server.ServerProfile(
    log="/var/log/portal/sglang.log",
    load_lines=("The server is fired up and ready to roll!",),
    # What the server's main process says when one of those that do the work has died.
    error_lines=("Received sigquit from a child process",),
    info_lines=("Load weight begin", "Load weight end"),
    ignore_eos=True,
)


def build(environ: Mapping[str, str]) -> tuple[Backend, list[web.RouteDef]]:
    """The worker's backend and routes. Raises `SettingsError` where `environ` can't work."""
    return server.build(environ, SGLANG)


if __name__ == "__main__":
    run_worker(build, os.environ)
