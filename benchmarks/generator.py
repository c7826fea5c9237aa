"""The load generator: a process of its own, so that its CPU time is not counted as the subject's.

usage: python -m benchmarks.generator KEY_FILE

It takes jobs from standard input and writes results to standard output (jobs.py). KEY_FILE has the private
key that requests are signed with, as PEM text.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.http_client import ClosedLoop, HeldStreams, Prober
from benchmarks.jobs import JobResult, LoadJob
from benchmarks.processes import run_fast
from benchmarks.signed_requests import RequestSigner

# Seconds to wait for the next stream to begin. After that no more are expected: a subject may have a limit.
PATIENCE_S = 3.0
# Seconds of probes alone before the large requests.
PROBES_FIRST_S = 0.05


class Driver(ABC):
    """Carries out one job."""

    @abstractmethod
    async def prepare(self) -> None:
        """Open the connections that are not to be measured."""

    @abstractmethod
    async def send(self) -> JobResult:
        """Send the requests; return when they are answered, or when streams are held."""

    @abstractmethod
    def close(self) -> None:
        """Close all connections."""


class RequestsDriver(Driver):
    """Keeps requests in flight until all are sent, with probes meanwhile if the job asks for them."""

    def __init__(self, job: LoadJob, signer: RequestSigner) -> None:
        expected = 401 if job.form == "refused" else 200
        self._job = job
        self._loop = ClosedLoop(job.port, signer.requests(job), job.limit_s, expected, job.events)
        self._probe = signer.probe(job)

    async def prepare(self) -> None:
        await self._loop.connect(self._job.concurrency)

    async def send(self) -> JobResult:
        if self._job.kind != "probed":
            return await self._result()
        async with Prober(self._job.port, self._probe) as prober:
            await asyncio.sleep(PROBES_FIRST_S)
            result = await self._result()
        return replace(result, longest_wait_s=prober.longest_s, error=result.error or prober.error)

    async def _result(self) -> JobResult:
        began_s = time.perf_counter()
        await self._loop.run()
        latencies_s = sorted(self._loop.latencies_s)
        return JobResult(
            answered=len(latencies_s),
            elapsed_s=time.perf_counter() - began_s,
            p50_s=_quantile(latencies_s, 0.5),
            p99_s=_quantile(latencies_s, 0.99),
            error=self._loop.error,
        )

    def close(self) -> None:
        self._loop.close()


class HeldDriver(Driver):
    """Streams that stay open; their connections are part of the measurement."""

    def __init__(self, job: LoadJob, signer: RequestSigner) -> None:
        self._streams = HeldStreams(job.port, signer.requests(job), job.limit_s)

    async def prepare(self) -> None:
        """Open none."""

    async def send(self) -> JobResult:
        await self._streams.open(PATIENCE_S)
        return JobResult(begun=self._streams.begun, error=self._streams.error)

    def close(self) -> None:
        self._streams.close()


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank quantile; 0 of nothing."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


async def main() -> None:
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    signer = RequestSigner(Path(sys.argv[1]))
    while line := await lines.readline():
        job = LoadJob(**json.loads(line))
        driver = (HeldDriver if job.kind == "held" else RequestsDriver)(job, signer)
        await driver.prepare()
        # Otherwise a garbage collection would visit thousands of prepared requests in the middle of a load.
        gc.collect()
        gc.freeze()
        _print("{}")
        await lines.readline()
        result = await driver.send()
        _print(json.dumps(asdict(result)))
        await lines.readline()
        driver.close()
        gc.unfreeze()
        _print("{}")


def _print(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    run_fast(main)
