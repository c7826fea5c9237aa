"""`pyworker run --local`: a worker, and the local engine beside it.

Owns what is said of them and how both end. Ports and variables are instance.py's; which file the worker is,
is the command line's.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Mapping
from functools import partial

import anyio

from lib.client import LOCAL_ENGINE
from lib.local.local_worker_env import WORKER_ID, Instance, local_instance
from lib.local.processes import attached, signals_asked
from lib.local.screen import Screen
from lib.local.serving import DEFAULT_PORT
from lib.runtime.settings import ports_in
from lib.tools.command import EXIT_SIGNAL
from lib.tools.status_page import NoStatus, fetch, headline

# A worker that is not ready by then is asked what it waits for, in seconds; and again after as long.
PATIENCE_S = 15.0


def run_beside(target: str, shown: str, environ: Mapping[str, str], patience_s: float = PATIENCE_S) -> int:
    """Run `pyworker run target` beside a local engine until it ends; gives its exit status.

    `shown` is what the worker is called. Raises `SettingsError` for ports in `environ` that are none.
    """
    return asyncio.run(_run(target, shown, environ, Screen(), patience_s))


async def _run(target: str, shown: str, environ: Mapping[str, str], screen: Screen, patience_s: float) -> int:
    wanted = ports_in(environ)
    command = [sys.executable, "-m", "lib.tools.cli", "run", target]
    async with (
        local_instance(environ, DEFAULT_PORT, wanted) as instance,
        attached(command, instance.environ) as worker,
    ):
        signals: list[int] = []
        signals_asked(partial(_end, worker, signals))
        _introduce(instance, shown, wanted, screen)
        async with anyio.create_task_group() as group:
            group.start_soon(_tell_when_ready, instance, screen, patience_s)
            await worker.wait()
            group.cancel_scope.cancel()
        status = await worker.wait()
        if not signals:
            screen.line(f"The worker ended by itself, with exit status {status}.")
    return status if status >= 0 else EXIT_SIGNAL - status


def _end(worker: asyncio.subprocess.Process, signals: list[int], signum: int) -> None:
    """Ask the worker to finish what it has; a second time it stops at once."""
    signals.append(signum)
    if worker.returncode is None:
        worker.send_signal(signal.SIGTERM)


def _introduce(instance: Instance, shown: str, wanted: tuple[int, int], screen: Screen) -> None:
    screen.title(f"{shown} on this machine, with a local engine beside it")
    screen.item("worker", f"{instance.worker_url}{_moved(wanted[0], instance.port)}")
    screen.item("its status", f"{instance.loopback_url}/status{_moved(wanted[1], instance.loopback_port)}")
    engine_port = int(instance.engine_url.rsplit(":", 1)[1])
    screen.item(
        "engine",
        f"{instance.engine_url}  stands in for the serverless engine{_moved(DEFAULT_PORT, engine_port)}",
    )
    screen.line()
    screen.line("Ctrl-C ends both. What the worker is doing, in another terminal:")
    screen.line()
    screen.command(f"pyworker status --port {instance.loopback_port}")
    screen.line()


def _moved(wanted: int, had: int) -> str:
    return "" if wanted == had else f"  (port {wanted} is taken)"


async def _tell_when_ready(instance: Instance, screen: Screen, patience_s: float) -> None:
    """Say that the worker is ready and how to send it a request; until then, now and then, why it isn't."""
    engine = instance.engine
    while True:
        try:
            await engine.wait_for(lambda: engine.worker(WORKER_ID).state == "ready", patience_s)
            break
        except TimeoutError:
            try:
                screen.line(f"Not ready yet: {headline(await fetch(instance.loopback_url))}")
            except NoStatus:
                screen.line("Not ready yet: the worker doesn't listen yet.")
    try:
        routes = [str(route) for route in (await fetch(instance.loopback_url))["routes"]]
    except NoStatus:  # it ended meanwhile
        return
    screen.title(
        f"The worker is ready. It takes {', '.join(routes)}. Send it a request from another terminal:"
    )
    engine_arg = "-l" if instance.engine_url == LOCAL_ENGINE else f"--engine {instance.engine_url}"
    for path in (route.partition(" ")[2] for route in routes if route.startswith("POST ")):
        screen.command(f'pyworker request {path} \'{{"name": "value"}}\' {engine_arg}')
    screen.line()
