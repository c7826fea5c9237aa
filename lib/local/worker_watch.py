"""Asks each worker's address whether the worker is still there, and whether it drains.

Owns these requests and what their answers mean. Reports say neither: a worker that was killed sends none, and
draining has no field (docs/protocol.md, "Worker status"). Does not own what follows from it (engine.py).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import aiohttp
import anyio

from lib.local.engine import LocalEngine
from lib.local.fleet import WorkerRecord
from lib.runtime.clock import sleep

CHECK_INTERVAL_S = 1.0
# A worker that takes longer may be busy: only silence counts against it.
ANSWER_LIMIT_S = 5.0
# `/readyz` answers with the name of the worker's state (docs/operating.md, "States").
_DRAINING = "draining"
_MAX_ANSWER_BYTES = 100


@asynccontextmanager
async def watched_workers(engine: LocalEngine) -> AsyncGenerator[None, None]:
    """Watch the workers of `engine` until the context is left."""
    tls = await asyncio.to_thread(engine.authority.trusting_context)
    # A reused connection may be closed already, which would look like a worker's end.
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=ANSWER_LIMIT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as http:
        # Not in a task group, which would wrap what is raised in the context into an exception group.
        watching = asyncio.create_task(WorkerWatch(engine, http, tls).run())
        try:
            yield
        finally:
            watching.cancel()
            (failure,) = await asyncio.gather(watching, return_exceptions=True)
            if isinstance(failure, Exception):  # which cancellation is not
                raise failure


class WorkerWatch:
    """Tells `engine` what its workers' addresses answer.

    A refused connection means that the worker is gone, but only if its address has answered before: the
    engine may be unable to reach workers that clients can reach.
    """

    def __init__(self, engine: LocalEngine, http: aiohttp.ClientSession, tls: ssl.SSLContext) -> None:
        self._engine = engine
        self._http = http
        self._tls = tls
        self._answered: set[str] = set()
        self._asking: set[int] = set()
        self._drained: dict[int, tuple[str, int]] = {}  # by worker: the address that drained, and its process

    async def run(self) -> None:
        """Ask each worker once a second and after each of its reports, until cancelled."""
        async with anyio.create_task_group() as tasks:

            def ask_reporter(worker: WorkerRecord) -> None:
                tasks.start_soon(self.ask, worker, True)

            self._engine.listeners.append(ask_reporter)
            try:
                while True:
                    for worker in self._engine.workers.values():
                        if not worker.silent:
                            tasks.start_soon(self.ask, worker)
                    await sleep(self._engine.clock, CHECK_INTERVAL_S)
            finally:
                self._engine.listeners.remove(ask_reporter)

    async def ask(self, worker: WorkerRecord, has_just_reported: bool = False) -> None:
        """Ask a worker's address, unless an answer is awaited already, and tell the engine the result."""
        if worker.id in self._asking or worker.last is None or not worker.last.url:
            return
        self._asking.add(worker.id)
        try:
            await self._ask(worker, worker.last.url.rstrip("/"), has_just_reported)
        finally:
            self._asking.remove(worker.id)

    async def _ask(self, worker: WorkerRecord, url: str, has_just_reported: bool) -> None:
        try:
            async with self._http.get(f"{url}/readyz", ssl=self._tls, allow_redirects=False) as answer:
                state = await answer.content.read(_MAX_ANSWER_BYTES)
        except aiohttp.ClientConnectorError as e:
            if isinstance(e.os_error, ConnectionRefusedError):
                self._refused(worker, url, has_just_reported)
            else:
                self._unknown(worker, url, has_just_reported)
        except (aiohttp.ClientError, asyncio.TimeoutError, UnicodeError):
            self._unknown(worker, url, has_just_reported)
        else:
            self._answered.add(url)
            is_draining = answer.status == 503 and state.decode(errors="replace").strip() == _DRAINING
            self._see(worker, url, is_draining)

    def _unknown(self, worker: WorkerRecord, url: str, has_just_reported: bool) -> None:
        """Let a report decide where the address can't be asked: the worker is there.

        It drains if this process has drained at this address before.
        """
        if has_just_reported:
            has_drained = self._drained.get(worker.id) == (url, worker.starts)
            self._engine.see(worker, draining=worker.draining and has_drained)

    def _refused(self, worker: WorkerRecord, url: str, has_just_reported: bool) -> None:
        if url not in self._answered:
            self._engine.see(worker)
            return
        # A worker that has just reported lives. It has closed its port because it stops, and has drained.
        is_draining = worker.draining or has_just_reported
        self._see(worker, url, is_draining, "connection refused")

    def _see(self, worker: WorkerRecord, url: str, is_draining: bool, unreachable: str = "") -> None:
        if is_draining:
            self._drained[worker.id] = (url, worker.starts)
        self._engine.see(worker, draining=is_draining, unreachable=unreachable)
