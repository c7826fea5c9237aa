"""The worker for servers of embeddings, rerankers and classifiers: `python -m workers.embeddings.server`.

Owns the log lines of Text Embeddings Inference (TEI) and of infinity. Routes are in handlers.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from aiohttp import web

from lib.backend import Backend
from lib.server import run_worker
from workers.embeddings.benchmark import EmbeddingsBenchmarkHandler
from workers.embeddings.handlers import HANDLERS
from workers.openai import server

EMBEDDINGS = server.ServerProfile(
    log="/var/log/portal/embeddings.log",
    # TEI's line as JSON (`--json-output`), and as text without and with colours: an escape sequence precedes
    # the word. Last, that of infinity, which runs on uvicorn: it is logged when the model is loaded.
    load_lines=(
        '"message":"Ready","target":"text_embeddings_router',
        ": Ready",
        "\x1b[0m Ready",
        "Application startup complete.",
    ),
    error_lines=("Error: Could not", "Error: Model backend is not healthy", "Application startup failed."),
    info_lines=("Starting model backend", "Warming up model"),
    handlers=HANDLERS,
    benchmark=EmbeddingsBenchmarkHandler,
)


def build(environ: Mapping[str, str]) -> tuple[Backend, list[web.RouteDef]]:
    """Return the backend and the routes. Raises `SettingsError`, which names every wrong variable."""
    return server.build(environ, EMBEDDINGS)


if __name__ == "__main__":
    run_worker(build, os.environ)
