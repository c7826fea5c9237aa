"""`pyworker run --local`: runs a worker together with a local engine.

Owns the output and how both are stopped. Does not own: ports and variables (lib/local/local_worker_env.py),
the search for the worker's file (lib/tools/worker_file.py).
"""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import anyio

from lib.client import LOCAL_ENGINE
from lib.local.local_worker_env import WORKER_ID, LocalInstance, local_instance
from lib.local.processes import attached, on_stop_signal
from lib.local.screen import Screen
from lib.local.serving import DEFAULT_PORT
from lib.routes.headline import headline
from lib.runtime.settings import ports_in
from lib.tools.command import EXIT_SIGNAL
from lib.tools.file_inspection import NOT_SERVED
from lib.tools.status_page import NoStatus, fetch, fetch_examples

# Seconds between two lines about the state of a worker that is not ready.
READINESS_INTERVAL_S = 15.0


def run_with_local_engine(
    target: str,
    display_name: str,
    environ: Mapping[str, str],
    interval_s: float = READINESS_INTERVAL_S,
    command: str = "run",
    sample: str | None = None,
) -> int:
    """Run `pyworker run target`, or another `command`, with a local engine; return the exit status.

    `display_name` is the worker's name in the output. The requests that it suggests have the benchmark's
    payload or else, if given, the JSON `sample`. Raises `SettingsError` for invalid ports in `environ`.
    """
    return asyncio.run(_run((command, target), display_name, environ, Screen(), interval_s, sample))


async def _run(
    words: Sequence[str],
    display_name: str,
    environ: Mapping[str, str],
    screen: Screen,
    interval_s: float,
    sample: str | None,
) -> int:
    wanted = ports_in(environ)
    command = [sys.executable, "-m", "lib.tools.cli", *words]
    async with (
        local_instance(environ, DEFAULT_PORT, wanted) as instance,
        attached(command, instance.environ) as worker,
    ):
        signals: list[int] = []
        on_stop_signal(partial(_end, worker, signals))
        _introduce(instance, display_name, wanted, screen)
        async with anyio.create_task_group() as group:
            group.start_soon(_report_readiness, instance, screen, interval_s, sample)
            await worker.wait()
            group.cancel_scope.cancel()
        status = await worker.wait()
        if not signals:
            screen.line(f"The worker ended by itself, with exit status {status}.")
            if status == 0 and instance.engine.worker(WORKER_ID).last is None:
                screen.line(f"It did not serve: {NOT_SERVED}.")
    return status if status >= 0 else EXIT_SIGNAL - status


def _end(worker: asyncio.subprocess.Process, signals: list[int], signum: int) -> None:
    """Send the worker SIGTERM: the first one makes it drain, the second one stops it immediately."""
    signals.append(signum)
    if worker.returncode is None:
        worker.send_signal(signal.SIGTERM)


def _introduce(instance: LocalInstance, display_name: str, wanted: tuple[int, int], screen: Screen) -> None:
    screen.title(f"{display_name} on this machine, with a local engine")
    screen.item("worker", f"{instance.worker_url}{_port_note(wanted[0], instance.port)}")
    screen.item(
        "its status", f"{instance.loopback_url}/status{_port_note(wanted[1], instance.loopback_port)}"
    )
    engine_port = int(instance.engine_url.rsplit(":", 1)[1])
    screen.item(
        "engine",
        f"{instance.engine_url}  stands in for the serverless engine{_port_note(DEFAULT_PORT, engine_port)}",
    )
    screen.line()
    screen.line("Ctrl-C stops both. To see the worker's state, run in another terminal:")
    screen.line()
    screen.command(f"pyworker status --port {instance.loopback_port}")
    screen.line()


def _port_note(wanted: int, actual: int) -> str:
    return "" if wanted == actual else f"  (port {wanted} is taken)"


async def _report_readiness(
    instance: LocalInstance, screen: Screen, interval_s: float, sample: str | None
) -> None:
    """Print the worker's state at intervals until it is ready, then how to send it a request."""
    engine = instance.engine
    while True:
        try:
            await engine.wait_for(lambda: engine.worker(WORKER_ID).state == "ready", interval_s)
            break
        except TimeoutError:
            try:
                screen.line(f"Not ready yet: {headline(await fetch(instance.loopback_url))}")
            except NoStatus:
                screen.line("Not ready yet: the worker doesn't listen yet.")
    try:
        routes = [str(route) for route in (await fetch(instance.loopback_url))["routes"]]
        commands = [_suggestion(example, sample) for example in await fetch_examples(instance.loopback_url)]
    except NoStatus:  # it has ended
        return
    screen.title(
        f"The worker is ready. It takes {', '.join(routes)}. Send it a request from another terminal:"
    )
    engine_arg = "-l" if instance.engine_url == LOCAL_ENGINE else f"--engine {instance.engine_url}"
    for command in [c for c in commands if c] or ["pyworker request ROUTE JSON"]:
        screen.command(f"{command} {engine_arg}")
    screen.line()


def _suggestion(example: Mapping[str, Any], sample: str | None) -> str | None:
    """The command that sends a request the worker accepts; None where no payload for it is known."""
    method, path, payload = example["method"], example["path"], example["payload"]
    if "{" in path:  # a part of the path would have to be made up
        return None
    text = sample if payload is None else json.dumps(payload, ensure_ascii=False)
    if text is None and not example["accepts_uploads"]:
        return None
    what = "--file file=@PATH" if text is None else shlex.quote(text)
    return f"pyworker request {path} {what}" + ("" if method == "POST" else f" --method {method}")
