"""The checks of `pyworker check`, made when a worker's file has built its backend and routes.

Owns the order of the checks, and the checks of settings, declaration and model server. How the worker is
intercepted before it serves is in lib/tools/file_inspection.py; the checks of log rules are in
lib/tools/log_replay.py, those of the benchmark in lib/tools/benchmark_check.py, those of the lifecycle and
the handlers' `running` in lib/tools/context_check.py, those of the routes' speed in lib/tools/route_check.py,
those of what is without effect in lib/tools/no_effect_check.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
from aiohttp import web

from lib.backend import Backend
from lib.data_types import EndpointHandler
from lib.errors import SettingsError
from lib.model.connection import ModelServer
from lib.model.readiness import Readiness
from lib.model.watch import NO_SUCH_CHECK, HealthWatch
from lib.request.lanes import lane_of
from lib.runtime.clock import Clock, SystemClock
from lib.runtime.settings import Settings
from lib.tools.benchmark_check import check_payload, send_one
from lib.tools.context_check import contexts_entered, has_contexts
from lib.tools.deployment_target import DeploymentTarget
from lib.tools.file_inspection import NotServed, inspect_file
from lib.tools.findings import Findings
from lib.tools.log_replay import check_rules, replay
from lib.tools.no_effect_check import check_effects
from lib.tools.route_check import check_speed
from lib.tools.worker_file import WorkerFile
from lib.worker import ROUTE_WITHOUT_HANDLERS

# Variables that only an instance sets. If none of them is set, their absence is a note, not a problem.
INSTANCE_VARIABLES = ("CONTAINER_ID", "PUBLIC_IPADDR", "VAST_TCP_PORT_")


def check_worker(
    file: WorkerFile | DeploymentTarget, environ: Mapping[str, str], log: Path | None
) -> Findings:
    """Check the worker in `file`, or the deployment, without serving it, and return the findings.

    A file is run as the main program of this process, up to where it would serve. Its output goes to
    standard error. `log` is a model server's log to replay, in place of the worker's own.
    """
    found = Findings(str(file))
    _check_settings(environ, found)
    try:
        inspect_file(file, _Inspection(found, log).inspect)
    except NotServed as e:
        found.problems("worker", e.problems)
    return found


def _check_settings(environ: Mapping[str, str], found: Findings) -> None:
    """Check the environment; variables that an instance sets are required on an instance only."""
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
        found.ok("settings", "all variables are valid")


class _Inspection:
    """The checks of one worker."""

    def __init__(self, found: Findings, log: Path | None) -> None:
        self._found = found
        self._log = log
        self._clock: Clock = SystemClock()

    async def inspect(self, backend: Backend, routes: Sequence[web.AbstractRouteDef]) -> int:
        """Run all checks. The exit status is 0, as nothing is served."""
        self._check_declaration(backend, routes)
        handler, sendable = backend.benchmark_handler, False
        if handler is None:
            self._found.note(
                "benchmark", f"none: the worker states its capacity, {backend.max_perf:g} workload/s"
            )
        else:
            sendable = check_payload(handler, self._found)
        if backend.config().problems():  # one of them may be that the model server's URL is malformed
            self._check_log(backend, False)
            return 0
        async with ModelServer(backend.model_server_url) as server:
            up = await self._is_up(server)
            self._check_log(backend, up)
            if up:
                await self._check_health(backend, server)
            to_enter = has_contexts(backend.config())
            if (up or not server.url) and (to_enter or sendable):
                await self._enter(backend, handler if sendable else None, server)
            elif to_enter:
                self._found.note(
                    "lifecycle", "neither it nor running() of a handler was entered, without a model server"
                )
        return 0

    async def _enter(
        self, backend: Backend, handler: EndpointHandler[Any] | None, server: ModelServer
    ) -> None:
        """Enter the contexts that a worker enters, and send the payload of `handler`; without an engine."""
        settings = Settings.from_env({"ENGINE": "none"})
        with tempfile.TemporaryDirectory() as directory:
            async with (
                anyio.create_task_group() as tasks,
                backend.run_with(settings, Path(directory), tasks.start_soon),
                contexts_entered(backend.config(), self._clock, self._found) as entered,
            ):
                if entered and handler is not None:
                    await send_one(handler, server, self._clock, self._found)

    def _check_declaration(self, backend: Backend, routes: Sequence[web.AbstractRouteDef]) -> None:
        named = [r for r in routes if isinstance(r, web.RouteDef)]
        if not named:
            self._found.problem("worker", "it has no routes, so no client could call it")
        elif all(r.kwargs.get("name") == ROUTE_WITHOUT_HANDLERS for r in named):
            self._found.problem(
                "worker",
                f"it declares no handlers, so its only route is {_listed(named)}: add a HandlerConfig for "
                "each route of the model server to handlers=[…]",
            )
        elif not any(lane_of(backend.served, r) for r in named):
            self._found.problem(
                "worker",
                f"no handler serves {_listed(named)}, so requests are neither authenticated nor counted: "
                "make one by backend.create_handler(…) or backend.guard(…)",
            )
        else:
            self._found.ok("worker", f"routes: {_listed(named)}")
        self._found.problems("worker", backend.config().problems())
        check_effects(backend, routes, self._found)
        check_speed(backend, routes, self._found)

    def _check_log(self, backend: Backend, up: bool) -> None:
        """Check the log rules, and replay a log with them: the one of `--log`, or the worker's own."""
        rules, own = backend.log_actions, backend.model_log_file
        check_rules(rules, self._found)
        if self._log is not None:
            if not rules:
                self._found.note("log", "the worker has no log rules")
            replay(self._log, rules, self._found)
        elif own is not None and own.exists():
            replay(own, rules, self._found)
        elif own is not None:
            more = ", although the model server is up" if up else ""
            more += "" if own.parent.exists() else ", and neither does its folder"
            hint = "" if up else ": start the model server, or name one of its logs with --log"
            self._found.problem("log", f"{own.absolute()} does not exist{more}{hint}")

    async def _is_up(self, server: ModelServer) -> bool:
        if not server.url:
            self._found.note("model server", "none: the worker computes the answers itself")
            return False
        up = await server.accepts_connections()
        if up:
            self._found.ok("model server", f"{server.url} accepts connections")
        else:
            self._found.note("model server", f"nothing listens at {server.url}, so no request was sent")
        return up

    async def _check_health(self, backend: Backend, server: ModelServer) -> None:
        for target in backend.config().health_checks:
            await self._check_one_health(server, target)

    async def _check_one_health(self, server: ModelServer, target: str) -> None:
        readiness = Readiness((), False, self._clock)
        watch = HealthWatch(server, (target,), readiness, self._clock, clears_all=False)
        began = self._clock.monotonic()
        status, problem = await watch.check()
        if status in NO_SUCH_CHECK:
            self._found.warning(
                "health check", f"the model server has no health check at {watch.url} ({status})"
            )
        elif problem:
            self._found.problem("health check", f"{watch.url}: {problem}")
        else:
            took_s = self._clock.monotonic() - began
            self._found.ok("health check", f"{watch.url} answered {status} after {took_s:.3f} s")


def _listed(routes: Sequence[web.RouteDef]) -> str:
    return ", ".join(f"{route.method} {route.path}" for route in routes)
