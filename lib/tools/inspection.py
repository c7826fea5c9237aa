"""What `pyworker check` looks at, once a worker's file has made what it would serve.

Owns the order of the checks, and those of settings, declaration and model server. How the worker is got hold
of is `lib.server.inspected_by`'s; log rules are log_replay.py's, the benchmark is benchmark_check.py's.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from aiohttp import web

from lib.backend import Backend
from lib.errors import SettingsError
from lib.model.connection import ModelServer
from lib.model.readiness import Readiness
from lib.model.watch import NO_SUCH_CHECK, HealthWatch
from lib.runtime.clock import Clock, SystemClock
from lib.runtime.settings import Settings
from lib.server import inspected_by
from lib.tools.benchmark_check import check_payload, send_one
from lib.tools.findings import Findings
from lib.tools.log_replay import check_rules, replay
from lib.tools.worker_file import WorkerFailed, WorkerFile, refused_by, run_file

# What an instance sets: elsewhere it is no fault that none of them is there.
INSTANCE_VARIABLES = ("CONTAINER_ID", "PUBLIC_IPADDR", "VAST_TCP_PORT_")


def check_worker(file: WorkerFile, environ: Mapping[str, str], log: Path | None) -> Findings:
    """Everything that can be said of the worker in `file` without serving it.

    Its file is run, as the main program of this process, up to where it would serve. What it prints goes to
    standard error. `log` is a model server's log to replay.
    """
    found = Findings(str(file))
    _check_settings(environ, found)
    inspection = _Inspection(found, log)
    try:
        with inspected_by(inspection.inspect), contextlib.redirect_stdout(sys.stderr):
            run_file(file)
    except WorkerFailed as e:
        found.problem("worker", e.brief)
    except SystemExit as e:
        refused = refused_by(e)
        if refused is not None:
            found.problems("worker", refused.problems)
        elif not inspection.seen or e.code not in (None, 0):
            found.problem("worker", f"it ended by itself before it served, with exit status {e.code}")
    if not inspection.seen and not found.failed:
        found.problem(
            "worker",
            "it ended without serving: call start_server(backend, routes), or run() of a Worker, under "
            'if __name__ == "__main__":',
        )
    return found


def _check_settings(environ: Mapping[str, str], found: Findings) -> None:
    """All of the environment that is missing or malformed; an instance's own, only on an instance."""
    try:
        Settings.from_env(environ)
    except SettingsError as e:
        elsewhere = not any(name.startswith(INSTANCE_VARIABLES) for name in environ)
        for problem in e.problems:
            if elsewhere and problem.startswith(INSTANCE_VARIABLES):
                found.note("settings", f"{problem}; an instance sets it")
            else:
                found.problem("settings", problem)
    else:
        found.ok("settings", "every variable is there and well-formed")


class _Inspection:
    """Looks at one worker; `seen` tells whether it was given one at all."""

    def __init__(self, found: Findings, log: Path | None) -> None:
        self.seen = False
        self._found = found
        self._log = log
        self._clock: Clock = SystemClock()

    async def inspect(self, backend: Backend, routes: Sequence[web.AbstractRouteDef]) -> int:
        """What `inspected_by` is given. The exit status is 0: nothing was served."""
        self.seen = True
        self._check_declaration(backend, routes)
        handler, sendable = backend.benchmark_handler, False
        if handler is None:
            self._found.note("benchmark", f"none: the capacity is given, {backend.max_perf:g} workload/s")
        else:
            sendable = check_payload(handler, self._found)
        if backend.problems():  # of which some say that its URL is none
            self._check_log(backend, False)
            return 0
        async with ModelServer(backend.model_server_url) as server:
            up = await self._is_up(server)
            self._check_log(backend, up)
            if up:
                await self._check_health(backend, server)
            if handler is not None and sendable and (up or not server.url):
                await send_one(handler, server, self._clock, self._found)
        return 0

    def _check_declaration(self, backend: Backend, routes: Sequence[web.AbstractRouteDef]) -> None:
        named = [f"{r.method} {r.path}" for r in routes if isinstance(r, web.RouteDef)]
        if named:
            self._found.ok("worker", f"routes: {', '.join(named)}")
        else:
            self._found.problem("worker", "it has no routes: no client could call it")
        self._found.problems("worker", backend.problems())

    def _check_log(self, backend: Backend, up: bool) -> None:
        """The rules by themselves, and by a log: the one that was given, or the worker's own."""
        rules, own = backend.log_actions, backend.model_log_file
        check_rules(rules, self._found)
        if self._log is not None:
            if not rules:
                self._found.note("log", "the worker has no log rules")
            replay(self._log, rules, self._found)
        elif own is not None and own.exists():
            replay(own, rules, self._found)
        elif own is not None:
            more = ", though the model server is up" if up else ""
            more += "" if own.parent.exists() else ", and neither does its folder"
            hint = "" if up else ": start the model server, or give a log that it wrote by --log"
            self._found.problem("log", f"{own.absolute()} does not exist{more}{hint}")

    async def _is_up(self, server: ModelServer) -> bool:
        if not server.url:
            self._found.note("model server", "none: the worker answers by itself")
            return False
        up = await server.accepts_connections()
        if up:
            self._found.ok("model server", f"{server.url} accepts connections")
        else:
            self._found.note("model server", f"nothing listens at {server.url}: no request was sent")
        return up

    async def _check_health(self, backend: Backend, server: ModelServer) -> None:
        target = backend.config().healthcheck
        if target is None:
            return
        watch = HealthWatch(server, target, Readiness((), False, self._clock), self._clock, clears_all=False)
        began = self._clock.monotonic()
        status, problem = await watch.check()
        if status in NO_SUCH_CHECK:
            self._found.warning("health check", f"the model server has none at {watch.url} ({status})")
        elif problem:
            self._found.problem("health check", f"{watch.url}: {problem}")
        else:
            took_s = self._clock.monotonic() - began
            self._found.ok("health check", f"{watch.url} answered {status} after {took_s:.3f} s")
