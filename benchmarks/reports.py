"""The cost of a status report, and the memory used over thousands of reports.

usage: python -m benchmarks.reports [-n REPORTS]

Requests are added to a ledger and ended, and reported to a local engine over a real socket, without the
pauses between reports. Prints the CPU time per report (reporter and engine together) and the resident memory
at each step.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable

import aiohttp
import anyio
import psutil

from lib.engine.reports import DELIVERY_TIMEOUT_S, Capacity, Reporter, WorkerIdentity
from lib.local.engine import LocalEngine
from lib.local.serving import serve_engine
from lib.metrics import Ledger, Outcome
from lib.runtime.clock import SystemClock, Timer

STEPS = 4
REQUESTS_PER_REPORT = 1  # few, as the local engine in this process remembers every request


class NoDelayClock(SystemClock):
    """A clock whose delays end immediately, except the time-out of a delivery."""

    def call_later(self, delay_s: float, callback: Callable[[], object]) -> Timer:
        if delay_s >= DELIVERY_TIMEOUT_S:
            return super().call_later(delay_s, callback)
        return asyncio.get_running_loop().call_soon(callback)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the cost of a status report.")
    parser.add_argument("-n", type=int, default=2000, help="number of reports (default 2000)")
    asyncio.run(run(parser.parse_args().n))


async def run(count: int) -> None:
    engine, clock = LocalEngine(report_limit=10), NoDelayClock()
    ledger = Ledger(clock)
    async with serve_engine(engine) as url, aiohttp.ClientSession() as http:
        identity = WorkerIdentity(1, "", "http://127.0.0.1:1")
        reporter = Reporter(http, [url], [url], identity, ledger, lambda: Capacity(1.0, 100.0), clock)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reporter.report_status)
            tasks.start_soon(reporter.report_completions)
            print(f"{REQUESTS_PER_REPORT} request per report; resident memory in MiB, CPU in µs per report")
            for step in range(1, STEPS + 1):
                target = count * step // STEPS
                began, before = time.process_time(), engine.worker(1).totals.reports
                while (reports := engine.worker(1).totals.reports) < target:
                    work(ledger, reports)
                    await engine.wait_for(lambda seen=reports: engine.worker(1).totals.reports > seen)
                cpu_us = (time.process_time() - began) / (target - before) * 1e6
                memory = psutil.Process().memory_info().rss / 2**20
                print(f"  after {target:6} reports: {memory:7.1f} MiB, {cpu_us:7.0f} µs")
            tasks.cancel_scope.cancel()


def work(ledger: Ledger, number: int) -> None:
    for index in range(REQUESTS_PER_REPORT):
        entry = ledger.open(number * REQUESTS_PER_REPORT + index + 1)
        entry.set_workload(1.0)
        entry.accept()
        entry.start()
        entry.set_outcome(Outcome.SERVED)


if __name__ == "__main__":
    main()
