"""A worker with a route for each way of carrying a request, whose reports follow each other quickly.

`GET /holdings` says which tasks and how many descriptors the process has, for tests of what is left behind.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
from aiohttp import web
from anyio.to_thread import run_sync as in_thread

from lib.access.spool import sweep
from lib.backend import Backend
from lib.life.stop import Stop
from lib.runtime.logs import configure_logging
from lib.runtime.settings import from_environment
from lib.server import serve
from tests.fakes import worker
from tests.fakes.varied_routes import SoundHandler
from tests.fakes.worker import JobHandler, Setup

# The pause between two reports. Others wait for about a second, and tests with them.
REPORT_PAUSE_S = 0.02
PATHS = (*worker.PATHS, "garbage", "interim", "control", "unasked", "error401", "error429")
# The beginnings of paths, with the fields of their handlers. All handlers of `/single` share one slot, and so
# do those of `/brief`, where nobody waits long.
KINDS: dict[str, dict[str, Any]] = {
    "": {},
    "/single": {"allow_parallel_requests": False},
    "/brief": {"allow_parallel_requests": False, "max_queue_time": 0.2},
    "/beating": {"keepalive_s": 0.1},
    "/finish": {"on_disconnect": "finish"},
    "/idempotent": {"idempotent": True},
}


async def holdings(request: web.Request) -> web.Response:
    """Answer with the names of the process's tasks, and the number of its descriptors."""
    tasks = [getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks()]
    return web.json_response({"tasks": sorted(tasks), "descriptors": len(os.listdir("/proc/self/fd"))})


def build(model_url: str, setup: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
    """Make the worker: each path of the model server at `model_url` with each of `KINDS`, and uploads."""
    backend = Backend(model_url, allow_parallel_requests=True, healthcheck_url=setup.health, **setup.backend)
    routes: list[web.AbstractRouteDef] = [web.get("/holdings", holdings)]
    for path in PATHS:
        routes += [
            web.post(f"{kind}/{path}", backend.create_handler(JobHandler(path=f"/{path}", **fields)))
            for kind, fields in KINDS.items()
        ]
        routes.append(web.post(f"/upload/{path}", backend.create_handler(SoundHandler(path=f"/{path}"))))
    routes.append(web.post("/raising", backend.create_handler(worker.RaisingHandler(path="/echo"))))
    return backend, routes


async def _serve(backend: Backend, routes: list[web.AbstractRouteDef]) -> int:
    settings = replace(from_environment(), max_report_pause_s=REPORT_PAUSE_S)
    configure_logging(settings.log_level, settings.log_format)
    warnings.filterwarnings("ignore", message=".*RequestKey")
    await in_thread(sweep)
    stop, loop = Stop(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.ask)
    return await serve(backend, routes, settings, stop, directory=Path.cwd(), host="127.0.0.1")


if __name__ == "__main__":
    made = build(os.environ["TEST_MODEL_URL"], Setup(**json.loads(os.environ["TEST_WORKER"])))
    raise SystemExit(anyio.run(_serve, *made, backend_options={"use_uvloop": True}))
