"""A reporter that delivers a ledger's numbers to local engines: real sockets, and a manual clock."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import anyio

from lib.engine.reports import (
    COMPLETIONS_INTERVAL_S,
    IDLE_INTERVAL_S,
    LAST_RETRY_S,
    Capacity,
    Reporter,
    WorkerIdentity,
)
from lib.local.engine import LocalEngine
from lib.local.serving import serve_engine
from lib.metrics import Entry, Ledger, Outcome
from tests.guard import GUARD_S
from tests.keys import new_key
from tests.manual_clock import ManualClock

WORKER_ID = 7
KEY = new_key()


@dataclass
class ReportingWorker:
    """A ledger and its reporter. `engines` listen at `urls`; `capacity` is the worker's in the reports."""

    engines: list[LocalEngine]
    urls: list[str]
    clock: ManualClock
    ledger: Ledger
    reporter: Reporter
    engine_clock: ManualClock
    capacity: Capacity = field(default_factory=lambda: Capacity(0.0, 0.0))

    @property
    def engine(self) -> LocalEngine:
        return self.engines[0]

    def accept(self, workload: float = 1.0, request_idx: int | None = None) -> Entry:
        entry = self.ledger.open(request_idx)
        entry.set_workload(workload)
        entry.accept()
        return entry

    def serve(self, workload: float = 1.0, request_idx: int | None = None) -> None:
        """Count one request as served."""
        entry = self.accept(workload, request_idx)
        entry.start()
        entry.set_outcome(Outcome.SERVED)

    def refuse(self, workload: float = 0.0, request_idx: int | None = None) -> None:
        """Count one request as rejected before it was accepted."""
        entry = self.ledger.open(request_idx)
        entry.set_workload(workload)
        entry.set_outcome(Outcome.REJECTED)

    def messages(self, engine: int = 0) -> list[Any]:
        """The status reports that an engine received, oldest first."""
        return [r.message for r in self.engines[engine].worker(WORKER_ID).reports]

    async def reported(self, count: int, engine: int = 0) -> Any:
        """The report number `count` that an engine received, once it is acknowledged."""
        await self.engines[engine].wait_for(lambda: len(self.messages(engine)) >= count)
        await self.idle()
        return self.messages(engine)[count - 1]

    async def idle(self) -> None:
        """Return once the only timer is not a delivery's: the reporter waits for the next report."""
        await self.clock.wait_for_timer(IDLE_INTERVAL_S)

    async def tried(self, count: int) -> None:
        """Return once `count` deliveries were tried, and the reporter waits for the next report."""
        with anyio.fail_after(GUARD_S):
            while len(self.reporter.deliveries) < count:
                await self.clock.wait_for_timer(IDLE_INTERVAL_S)
                await anyio.lowlevel.checkpoint()
        await self.idle()

    async def completions_tried(self, count: int) -> None:
        """Return once `count` deliveries of finished requests were tried, and the reporter waits to retry."""
        with anyio.fail_after(GUARD_S):
            while self.reporter.attempts["/delete_requests/"][1] < count:
                await anyio.lowlevel.checkpoint()
        await self.clock.wait_for_timer(LAST_RETRY_S)

    def delivered_loads(self, engine: int = 0) -> tuple[float, float, float]:
        """The sums of `new_load`, `rej_load` and `cur_perf` that an engine received."""
        totals = self.engines[engine].worker(WORKER_ID).totals
        return totals.new_load, totals.rej_load, totals.cur_perf


@asynccontextmanager
async def reporting_worker(
    engines: int = 1,
    *,
    key_addrs: slice = slice(None),
    status: bool = True,
    completions: bool = False,
    max_pause_s: float = COMPLETIONS_INTERVAL_S,
) -> AsyncGenerator[ReportingWorker, None]:
    """A reporter to a number of engines, of which those in `key_addrs` receive finished requests.

    `status` and `completions` select the tasks that run. By default only status reports do, so that a test
    knows whose timer it waits for.
    """
    async with AsyncExitStack() as stack:
        clock = ManualClock()
        engine_clock = ManualClock()
        served = [LocalEngine(clock=engine_clock, key=KEY) for _ in range(engines)]
        urls = [await stack.enter_async_context(serve_engine(engine)) for engine in served]
        http = await stack.enter_async_context(aiohttp.ClientSession())
        ledger = Ledger(clock)
        worker: ReportingWorker
        reporter = Reporter(
            http,
            urls,
            urls[key_addrs],
            WorkerIdentity(WORKER_ID, "token", "http://127.0.0.1:3000"),
            ledger,
            lambda: worker.capacity,
            clock,
            max_pause_s,
        )
        worker = ReportingWorker(served, urls, clock, ledger, reporter, engine_clock)
        async with anyio.create_task_group() as tasks:
            if status:
                tasks.start_soon(reporter.report_status)
            if completions:
                tasks.start_soon(reporter.report_completions)
            yield worker
            tasks.cancel_scope.cancel()
