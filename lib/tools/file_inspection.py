"""Running a worker's file up to where it would serve, and a function with the worker instead.

Owns the reasons why a file does not get there. How a file is run is in lib/tools/worker_file.py, how its
worker is intercepted in lib/server.py (`inspected_by`).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from aiohttp import web

from lib.backend import Backend
from lib.errors import refusals_collected
from lib.server import Inspector, inspected_by
from lib.tools.deployment_target import DeploymentTarget
from lib.tools.worker_file import WorkerFailed, WorkerFile, run_file, settings_error_in

# The remedy for a file that ends without serving its worker.
NOT_SERVED = 'call start_server(backend, routes), or run() of a Worker, under if __name__ == "__main__":'


class NotServed(Exception):
    """The file did not get to where it would serve, or not well; `problems` says why, a line each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def inspect_file(file: WorkerFile | DeploymentTarget, inspector: Inspector) -> None:
    """Run `file` as the main program of this process, or a deployment; call `inspector` where it would serve.

    The file's output goes to standard error. Raises `NotServed`.
    """
    inspected: list[Backend] = []

    async def inspect(backend: Backend, routes: Sequence[web.AbstractRouteDef]) -> int:
        inspected.append(backend)
        return await inspector(backend, routes)

    try:
        with inspected_by(inspect), refusals_collected(), contextlib.redirect_stdout(sys.stderr):
            file.run() if isinstance(file, DeploymentTarget) else run_file(file)
    except WorkerFailed as e:
        raise NotServed(e.brief) from e
    except SystemExit as e:
        refused = settings_error_in(e)
        if refused is not None:
            raise NotServed(*refused.problems) from e
        if not inspected or e.code not in (None, 0):
            raise NotServed(f"it exited before it served, with status {e.code}") from e
    if not inspected:
        raise NotServed(f"it ended without serving: {NOT_SERVED}")
