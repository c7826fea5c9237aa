"""The worker for servers that transcribe speech: `python -m workers.whisper.server`.

Owns the log lines of speaches (once faster-whisper-server) and of whisper.cpp's server. Routes are in
handlers.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from aiohttp import web

from lib.backend import Backend
from lib.server import run_worker
from workers.openai import server
from workers.whisper.benchmark import WhisperBenchmarkHandler
from workers.whisper.handlers import HANDLERS

WHISPER = server.ServerProfile(
    log="/var/log/portal/whisper.log",
    # uvicorn's line, on which speaches runs, and whisper.cpp's.
    load_lines=("Application startup complete.", "whisper server listening at"),
    error_lines=(
        "Application startup failed.",
        "error: failed to initialize whisper context",
        "couldn't bind to server socket",
    ),
    handlers=HANDLERS,
    benchmark=WhisperBenchmarkHandler,
)


def build(environ: Mapping[str, str]) -> tuple[Backend, list[web.RouteDef]]:
    """Return the backend and the routes. Raises `SettingsError`, which names every wrong variable."""
    return server.build(environ, WHISPER)


if __name__ == "__main__":
    run_worker(build, os.environ)
