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
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from lib.client import LOCAL_ENGINE
from lib.local.local_worker_env import WORKER_ID, LocalInstance, local_instance
from lib.local.processes import attached, on_stop_signal
from lib.local.screen import Screen
from lib.local.serving import DEFAULT_PORT
from lib.routes.headline import headline
from lib.runtime.clock import SystemClock
from lib.runtime.settings import ports_in
from lib.tools.command import EXIT_SIGNAL
from lib.tools.source_watch import QUICK_CHANGES, SourceWatch
from lib.tools.status_page import NoStatus, fetch, fetch_examples

# Seconds between two lines about the state of a worker that is not ready.
READINESS_INTERVAL_S = 15.0
# Seconds that requests may go on after a change. It is below END_LIMIT_S, so that there is time for the
# worker's lifecycles before the process is killed.
DRAIN_S = 2


def run_with_local_engine(
    target: str,
    display_name: str,
    environ: Mapping[str, str],
    interval_s: float = READINESS_INTERVAL_S,
    command: str = "run",
    sample: str | None = None,
    *,
    watched: Path | None = None,
) -> int:
    """Run `pyworker run target`, or another `command`, with a local engine; return the exit status.

    `display_name` is the worker's name in the output. The requests that it suggests have the benchmark's
    payload or else, if given, the JSON `sample`. With `watched`, the worker is restarted when a Python file
    in or below this folder changes, also after it has ended by itself; the engine goes on. Raises
    `SettingsError` for invalid ports in `environ`.
    """
    sources = None
    if watched is not None:
        sources = SourceWatch(watched, SystemClock())
        environ = {**environ, "DRAIN_TIMEOUT_S": environ.get("DRAIN_TIMEOUT_S") or str(DRAIN_S)}
    return asyncio.run(_run((command, target), display_name, environ, interval_s, sample, sources))


async def _run(
    words: Sequence[str],
    display_name: str,
    environ: Mapping[str, str],
    interval_s: float,
    sample: str | None,
    sources: SourceWatch | None,
) -> int:
    wanted, screen = ports_in(environ), Screen()
    command = [sys.executable, "-m", "lib.tools.cli", *words]
    async with local_instance(environ, DEFAULT_PORT, wanted) as instance:
        _introduce(instance, display_name, wanted, screen)
        report_readiness = partial(_report_readiness, instance, screen, interval_s, sample)
        run = _LocalRun(command, instance, screen, report_readiness, sources)
        on_stop_signal(run.stop)
        return await run.until_end()


class _LocalRun:
    """A worker beside a local engine: one process after another, if its `sources` are watched."""

    def __init__(
        self,
        command: Sequence[str],
        instance: LocalInstance,
        screen: Screen,
        report_readiness: Callable[[], Coroutine[Any, Any, None]],
        sources: SourceWatch | None,
    ) -> None:
        self._command = command
        self._instance = instance
        self._screen = screen
        self._report_readiness = report_readiness
        self._sources = sources
        self._process: asyncio.subprocess.Process | None = None
        self._stopped = anyio.Event()

    def stop(self, signum: int) -> None:
        """Send the worker SIGTERM: the first one makes it drain, the second one stops it immediately."""
        self._stopped.set()
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    async def until_end(self) -> int:
        """Run the worker, again after each change; return the exit status of the last process."""
        while True:
            status = await self._run_once()
            if self._stopped.is_set():
                break
            if status is None:  # a file has changed
                continue
            self._screen.line(f"The worker ended by itself, with exit status {status}.")
            if self._sources is None:
                break
            self._screen.line("Waiting for a change of its files.")
            if not await self._until_changed():
                break
        if status is None:  # a signal came while the worker was being ended for a change
            return 0
        return status if status >= 0 else EXIT_SIGNAL - status

    async def _run_once(self) -> int | None:
        """Run a process of the worker to its end; return its status, or None if a change ended it."""
        if self._sources is not None:
            self._sources.worker_started()
        async with attached(self._command, self._instance.environ) as self._process:
            if self._stopped.is_set():  # before there was a process
                self._process.send_signal(signal.SIGTERM)
            async with anyio.create_task_group() as group:
                group.start_soon(self._report_readiness)
                if self._sources is not None:
                    group.start_soon(self._cancel_at_change, group.cancel_scope)
                await self._process.wait()
                group.cancel_scope.cancel()
            # After a signal, the change of a file does not cut the worker's drain short.
            if self._stopped.is_set():
                await self._process.wait()
            return self._process.returncode

    async def _cancel_at_change(self, scope: anyio.CancelScope) -> None:
        if await self._until_changed():
            scope.cancel()

    async def _until_changed(self) -> bool:
        """Wait until a file changes and print it; False if a signal comes before."""
        assert self._sources is not None
        changed: list[str] = []
        async with anyio.create_task_group() as group:

            async def watch(sources: SourceWatch = self._sources) -> None:
                while sources.ignores(paths := await sources.changed()):
                    self._screen.line(
                        f"Changed soon after {QUICK_CHANGES} starts in a row: {', '.join(paths)}. "
                        "No longer watched, until this command is started anew."
                    )
                changed.extend(paths)
                group.cancel_scope.cancel()

            group.start_soon(watch)
            await self._stopped.wait()
            group.cancel_scope.cancel()
        if changed:
            self._screen.line(f"Changed: {', '.join(changed)}. The worker is started anew.")
        return bool(changed)


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
    since_s = engine.clock.monotonic()

    def is_ready() -> bool:
        """Whether this process, and not one before it, has reported that it is ready."""
        worker = engine.worker(WORKER_ID)
        return bool(worker.reports) and worker.reports[-1].received_s > since_s and worker.state == "ready"

    while True:
        try:
            await engine.wait_for(is_ready, interval_s)
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
    screen.line(f"Or from a browser, with each route's fields: {instance.engine_url}/docs")
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
