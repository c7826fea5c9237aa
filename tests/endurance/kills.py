"""A worker under load that is killed at random moments: after each restart, the engine's totals are right.

tests/e2e/test_killed.py kills it a few times. By hand, often:

    python -m tests.endurance.kills 50

A report whose acknowledgement was lost with the worker is told again: the protocol has no number by which the
engine could know it. Only such a difference is allowed, and it is counted.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import anyio

from tests.endurance.sums import Sums, explanations, sums_of
from tests.fakes.worker import Setup
from tests.guard import GUARD_S
from tests.system import System, engine_and_model_server, restarted

CLIENTS = 12
SETUP = Setup(health="/health", handler={"max_concurrency": 4})
# The statuses of requests for these paths, by what becomes of them at the worker.
STATUSES = {"/echo": "Success", "/error500": "Error", "/error422": "Success"}
# The longest load before a kill, in seconds.
LOAD_S = 1.5
# What a client was answered in these last seconds before a kill may not have been written down.
UNSETTLED_S = 0.1
# More than all that is withdrawn after it was told: with it, no deficit is left.
LAST_WORKLOAD = 100_000.0


@dataclass
class Sent:
    """A request of a client; `status` is that of its whole answer, None without one."""

    path: str
    workload: float
    status: int | None = None
    ended_s: float = 0.0
    is_unsettled: bool = False


@dataclass
class KillsResult:
    """The number of requests by the status that the engine was told, and of reports that were told twice."""

    statuses: Counter[str] = field(default_factory=Counter[str])
    kills: int = 0
    told_twice: int = 0


async def kill_at_random_points(system: System, folder: Path, kills: int, seed: int) -> KillsResult:
    """Kill workers `kills` times.

    Raises `AssertionError` for a wrong status, and `TimeoutError` if the sums don't become right.
    """
    system.model.speed_s = 0.005
    run = _Run(system, folder, random.Random(seed))
    for _ in range(kills):
        await run.kill_one()
    async with restarted(system, folder, SETUP):
        await run.send("/echo", LAST_WORKLOAD)
        await run.check(has_deficit=False)
    run.result.statuses.update(run.told.values())
    return run.result


class _Run:
    """The clients and the lives of the worker, one after the other."""

    def __init__(self, system: System, folder: Path, rng: random.Random) -> None:
        self.result = KillsResult()
        self._system = system
        self._folder = folder
        self._rng = rng
        self._sent: dict[int, Sent] = {}
        # The last reports before kills since the last check: each may be told twice.
        self._unsure: list[Sums] = []
        self._told_twice: list[Sums] = []

    @property
    def told(self) -> dict[int, str]:
        """The status of each request that the engine was told; if it was told twice, the same."""
        told: dict[int, str] = {}
        for completion in self._system.engine.finished:
            request = completion.request
            assert told.setdefault(request.request_idx, request.status) == request.status
        return told

    async def kill_one(self) -> None:
        """Start a worker, check what it tells, and kill it under load."""
        async with restarted(self._system, self._folder, SETUP) as worker:
            if self._rng.random() < 0.7:  # or else it may die before it has told what the last one had not
                await self.check()
            unsettled_since_s = 0.0
            async with anyio.create_task_group() as clients:
                for _ in range(CLIENTS):
                    clients.start_soon(self._client)
                await asyncio.sleep(self._rng.uniform(0.0, LOAD_S))
                last = self._system.last_report
                self._unsure.append(sums_of([last]))
                unsettled_since_s = anyio.current_time() - UNSETTLED_S
                worker.process.kill()
                await worker.process.wait()
                clients.cancel_scope.cancel()
            for sent in self._sent.values():
                sent.is_unsettled |= sent.ended_s > unsettled_since_s
        self.result.kills += 1

    async def send(self, path: str, workload: float) -> None:
        """Send a request; it is remembered, whatever becomes of it."""
        envelope = self._system.envelope(workload)
        sent = self._sent[envelope["auth_data"]["request_idx"]] = Sent(path, workload)
        async with self._system.http.post(self._system.url + path, json=envelope) as answer:
            await answer.read()
            sent.status, sent.ended_s = answer.status, anyio.current_time()

    async def check(self, *, has_deficit: bool = True) -> None:
        """Wait until the engine knows of each request that was answered, and the sums are right."""
        answered = {idx for idx, sent in self._sent.items() if sent.status is not None}
        await self._system.engine.wait_for(lambda: answered <= self.told.keys(), GUARD_S)
        for idx in answered:
            sent, status = self._sent[idx], self.told[idx]
            expected = "Rejected" if sent.status in (429, 503) else STATUSES[sent.path]
            assert status == expected or (sent.is_unsettled and status == "Error"), (sent, status)
        twice = await self._system.engine.wait_for(lambda: self._explanations(has_deficit), GUARD_S)
        self.result.told_twice += len(twice[0])
        self._told_twice += twice[0]
        self._unsure.clear()

    async def _client(self) -> None:
        while True:
            with suppress(aiohttp.ClientError):  # the worker is dead
                await self.send(self._rng.choice(list(STATUSES)), float(self._rng.randint(1, 1000)))

    def _explanations(self, has_deficit: bool) -> list[tuple[Sums, ...]]:
        """The sets of last reports that explain the sums if each was told twice; an empty set, as a rule."""
        right = sums_of([self._right_sums(), *self._told_twice])
        return explanations(sums_of([self._system.totals]), right, self._unsure, has_deficit=has_deficit)

    def _right_sums(self) -> Sums:
        new = rejected = served = 0.0
        for idx, status in self.told.items():
            sent = self._sent[idx]
            if status == "Rejected":
                rejected += sent.workload
            elif status == "Error":
                new += sent.workload
            elif sent.path == "/echo":  # the others are served without work
                new += sent.workload
                served += sent.workload
        return Sums(new, rejected, served)


async def _main(kills: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with engine_and_model_server(Path(folder)) as system:
            result = await kill_at_random_points(system, Path(folder), kills, seed)
    print(f"{result.kills} kills, seed {seed}: the totals are right")
    print(f"requests: {dict(result.statuses)}; reports told twice: {result.told_twice}")


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1))
