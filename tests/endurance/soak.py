"""A worker process under mixed load for minutes, with faults in turn: nothing grows, and no unit is lost.

    python -m tests.endurance.soak 30

Each minute has a quiet part, in which the latency of honest requests is measured, a part with a fault, and a
rest, in which all requests end: then the engine must know an outcome of each that fits what its client saw,
its sums must be exact, and a line is printed. In the end the second half of the minutes is compared with the
first. tests/e2e/test_soak.py runs short minutes.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import anyio
import anyio.lowlevel
import psutil

from lib.local.faults import Fault
from tests.endurance.holdings import idle_holdings, until_status
from tests.endurance.random_clients import LAST_WORKLOAD, RandomClients
from tests.endurance.sums import Sums, sums_of
from tests.fakes.raw_client import connected
from tests.fakes.worker import Setup
from tests.guard import GUARD_S
from tests.system import CARRIER, System, with_worker_process

SETUP = Setup(health="/health")
# Honest clients at once, and the mean of their pauses in seconds.
CLIENTS = 8
PAUSE_S = 0.1
# The parts of a minute: quiet, and with a fault. What follows is the rest.
QUIET_SHARE = 0.4
FAULT_SHARE = 0.5
# Clients of a fault at once.
FAULTY_CLIENTS = 4
CLIENT_STALL_S = 1.0
# How many of the requests are followed by a session.
SESSION_SHARE = 0.05
# What honest clients ask for; all of it is answered at once.
PATHS = ("/echo", "/echo", "/echo", "/stream", "/single/echo", "/upload/echo", "/finish/stream", "/error422")
# How much more the second half may have than the first.
MEMORY_FACTOR, MEMORY_MIB = 1.05, 8.0
LATENCY_FACTOR, LATENCY_S = 1.5, 0.005
THREADS = 5  # those of the pool come and go


@dataclass(frozen=True)
class Minute:
    """The measurements of a minute. Latencies are those of its quiet part, in seconds."""

    fault: str
    requests: int
    memory_mib: float
    descriptors: int
    tasks: int
    threads: int
    p50_s: float
    p99_s: float

    def line(self) -> str:
        """The measurements as text."""
        return (
            f"{self.fault:15} {self.requests:7} requests {self.memory_mib:7.1f} MiB "
            f"{self.descriptors:4} descriptors {self.tasks:4} tasks {self.threads:4} threads  "
            f"p50 {self.p50_s * 1e3:6.1f} ms  p99 {self.p99_s * 1e3:6.1f} ms"
        )


def growth(minutes: Sequence[Minute]) -> list[str]:
    """Lines on what has grown from the first half of `minutes` to the second.

    The first turn of faults is left out.
    """
    counted = minutes[len(FAULTS) :]
    first, second = counted[: len(counted) // 2], counted[(len(counted) + 1) // 2 :]
    if not first:
        return []
    memory = [median(minute.memory_mib for minute in half) for half in (first, second)]
    latency = [median(minute.p99_s for minute in half) for half in (first, second)]
    found: list[str] = []
    if memory[1] > memory[0] * MEMORY_FACTOR + MEMORY_MIB:
        found.append(f"memory: from {memory[0]:.1f} to {memory[1]:.1f} MiB")
    if latency[1] > latency[0] * LATENCY_FACTOR + LATENCY_S:
        found.append(f"p99: from {latency[0] * 1e3:.1f} to {latency[1] * 1e3:.1f} ms")
    for name, more in (("descriptors", 0), ("tasks", 0), ("threads", THREADS)):
        most: list[int] = [max(getattr(minute, name) for minute in half) for half in (first, second)]
        if most[1] > most[0] + more:
            found.append(f"{name}: from {most[0]} to {most[1]}")
    return found


class Soak:
    """The load of a system whose worker is ready. A minute takes `minute_s` seconds."""

    def __init__(self, system: System, spool: Path, minute_s: float, seed: int) -> None:
        self.system = system
        self._rng = random.Random(seed)
        self._clients = RandomClients(system, self._rng)
        self._spool = spool
        self._minute_s = minute_s
        self._latencies: list[float] = []
        self._right = Sums(0.0, 0.0, 0.0)  # of all requests until the last rest
        self._is_quiet = self._has_ended = False

    async def minute(self, number: int) -> Minute:
        """Run a minute, with the fault of this number. Raises `AssertionError` for a wrong status or sum."""
        name, fault = FAULTS[number % len(FAULTS)]
        self._latencies.clear()
        self._has_ended = False
        self.system.model.release()
        async with anyio.create_task_group() as group:
            for _ in range(CLIENTS):
                group.start_soon(self._be_honest)
            self._is_quiet = True
            await anyio.sleep(self._minute_s * QUIET_SHARE)
            self._is_quiet = False
            with anyio.move_on_after(self._minute_s * FAULT_SHARE):
                await fault(self)
            await self._end_faults()
            self._has_ended = True
        requests = len(self._clients.sent)
        await self._settle()
        assert self.system.worker is not None
        assert "Traceback" not in self.system.worker.output()
        process = psutil.Process(self.system.worker.process.pid)
        held = await idle_holdings(self.system, self._spool)
        percent = quantiles(self._latencies, n=100)
        return Minute(
            fault=name,
            requests=requests,
            memory_mib=process.memory_info().rss / 2**20,
            descriptors=held.descriptors,
            tasks=len(held.tasks),
            threads=process.num_threads(),
            p50_s=percent[49],
            p99_s=percent[98],
        )

    async def _be_honest(self) -> None:
        while not self._has_ended:
            began_s, is_quiet = time.monotonic(), self._is_quiet
            await self._clients.ask(self._rng.choice(PATHS))
            if is_quiet and self._is_quiet:
                self._latencies.append(time.monotonic() - began_s)
            if self._rng.random() < SESSION_SHARE:
                await self._clients.work_in_session()
            await anyio.sleep(self._rng.expovariate(1 / PAUSE_S))

    async def _end_faults(self) -> None:
        self.system.engine.faults.clear()
        self.system.model.release()
        await until_status(self.system, lambda status: status["state"] == "ready")

    async def _settle(self) -> None:
        """Wait until the engine knows each outcome, and its sums are exact; forget these requests."""
        assert (await self._clients.ask("/single/echo", LAST_WORKLOAD)).seen == "200"
        engine, totals, sent = self.system.engine, self.system.totals, self._clients.sent
        told: dict[int, str] = {}
        right = self._right

        def is_right() -> bool:
            nonlocal told, right
            finished = (ended.request for ended in engine.finished)
            told = {request.request_idx: request.status for request in finished}
            right = sums_of([self._right, *(each.sums(told.get(index)) for index, each in sent.items())])
            all_fit = all(each.may_be(told.get(index)) for index, each in sent.items())
            return all_fit and sums_of([totals]) == right

        try:
            await engine.wait_for(is_right, GUARD_S / 2)
        except TimeoutError as e:
            wrong = [(each, told.get(i)) for i, each in sent.items() if not each.may_be(told.get(i))]
            raise AssertionError(f"{wrong} told: {sums_of([totals])}, right: {right}") from e
        self._right = right
        sent.clear()
        self.system.model.requests.clear()

    # Faults: each goes on until it is cancelled.

    async def model_dies(self) -> None:
        """The model server dies in the middle of what it holds, and comes again."""
        model = self.system.model
        while True:
            model.hold()
            await anyio.sleep(0.2)
            with anyio.CancelScope(shield=True):
                await model.stop()
                model.release()
                await anyio.sleep(0.5)
                await model.start()
            await anyio.sleep(1.0)

    async def engine_is_gone(self) -> None:
        """The engine is gone, refuses, is slow, and is well."""
        faults = self.system.engine.faults
        while True:
            for fault in (Fault(drop=True), Fault(refuse=True), Fault(delay_s=0.2), Fault()):
                faults.reports, faults.completions = fault, fault
                await anyio.sleep(1.0)

    async def clients_read_nothing(self) -> None:
        """Clients take nothing of a flood, until the worker gives them up."""
        await self._at_once(self._read_nothing)

    async def clients_leave(self) -> None:
        """Clients leave at any moment of their requests."""
        await self._at_once(self._leave)

    async def strangers_knock(self) -> None:
        """Strangers forge signatures, and clients use theirs twice."""
        await self._at_once(self._knock)

    async def _read_nothing(self) -> None:
        async with connected(self.system.url, limit=1024) as client:
            auth = self._clients.sign(1.0, "/flood")
            self._clients.sent[auth["request_idx"]].has_left = True
            await client.post("/flood", {"auth_data": auth, "payload": {"workload": 1.0}})
            await anyio.sleep(2 * CLIENT_STALL_S)

    async def _leave(self) -> None:
        client = await self._clients.begin(self._rng.choice(("/bytewise", "/binary", "/upload/binary")))
        client.sent.has_left = True
        await anyio.sleep(self._rng.uniform(0.0, 0.01))
        client.client.leave()
        await client.task

    async def _knock(self) -> None:
        await self._clients.forge()
        await self._clients.send_half()
        await self._clients.replay()

    async def _at_once(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work` again and again, several at once. What has begun is ended, since it is counted."""

        async def repeat() -> None:
            while True:
                with anyio.CancelScope(shield=True):
                    await work()
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            for _ in range(FAULTY_CLIENTS):
                group.start_soon(repeat)


FAULTS: tuple[tuple[str, Callable[[Soak], Awaitable[None]]], ...] = (
    ("model dies", Soak.model_dies),
    ("engine is gone", Soak.engine_is_gone),
    ("slow clients", Soak.clients_read_nothing),
    ("clients leave", Soak.clients_leave),
    ("strangers", Soak.strangers_knock),
)


async def run_soak(folder: Path, minutes: int, minute_s: float, seed: int) -> AsyncGenerator[Minute, None]:
    """Run a worker for `minutes` of `minute_s` seconds each; yield each. Raises as `Soak.minute` does."""
    spool = folder / "spool"
    await anyio.Path(spool).mkdir()
    env = {"CARRIER": CARRIER, "TMPDIR": str(spool), "CLIENT_STALL_TIMEOUT_S": str(CLIENT_STALL_S)}
    module = "tests.fakes.many_routes"
    async with with_worker_process(folder, SETUP, env, module=module) as system:
        soak = Soak(system, spool, minute_s, seed)
        for number in range(minutes):
            yield await soak.minute(number)


async def _main(minutes: int, seed: int) -> int:
    done: list[Minute] = []
    with tempfile.TemporaryDirectory() as folder:
        async with aclosing(run_soak(Path(folder), minutes, 60.0, seed)) as running:
            async for minute in running:
                done.append(minute)
                print(minute.line(), flush=True)
                # What this process keeps of a minute must not slow down the clients of the next ones.
                gc.collect()
                gc.freeze()
    grown = growth(done)
    print(f"seed {seed}: {sum(minute.requests for minute in done)} requests, the sums are exact")
    if len(done) < 2 + len(FAULTS):
        print(f"too few minutes to compare: at least {2 + len(FAULTS)}")
    print(*(grown or ["nothing has grown"]), sep="\n")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)))
