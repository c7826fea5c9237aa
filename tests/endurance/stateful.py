"""A worker process under random clients, sessions, cancellations, faults and restarts, with invariants.

The steps are drawn by a seed. After each step, the numbers of `/status` add up. Every few steps all that
holds requests back is taken away; then every client must have its answer, the engine must know an outcome of
each request that fits what its client saw, the engine's sums must be exact, and nothing may be left behind.

tests/e2e/test_stateful.py takes some steps. By hand, many:

    python -m tests.endurance.stateful 2000
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from lib.local.faults import Fault
from tests.endurance.holdings import Holdings, idle_holdings, status_of, until_released, until_status
from tests.endurance.random_clients import LAST_WORKLOAD, PATHS, UPLOAD_WORKLOAD, OpenClient, RandomClients
from tests.endurance.sums import Sums, explanations, sums_of
from tests.fakes.worker import Setup
from tests.guard import GUARD_S
from tests.system import CARRIER, System, WorkerProcess, engine_and_model_server, worker_process

SETUP = Setup(health="/health")
# Steps between two moments of rest.
STEPS_TO_REST = 25
# The most clients and sessions at once.
MOST_OPEN = 12
# What a client was answered in these last seconds before a kill may not have been written down.
UNSETTLED_S = 0.1


@dataclass
class OpenSession:
    """A session as its client knows it."""

    auth: dict[str, Any]
    session_id: str

    @property
    def end(self) -> dict[str, Any]:
        """The body of the call that ends it."""
        return {"session_id": self.session_id, "session_auth": self.auth}


@dataclass
class RandomRun:
    """The state of the clients, and the steps. `steps_done` counts them by name."""

    system: System
    folder: Path
    rng: random.Random
    stack: AsyncExitStack
    steps_done: Counter[str] = field(default_factory=Counter[str])
    told_twice: int = 0
    _open: list[OpenClient] = field(default_factory=list[OpenClient])
    _sessions: list[OpenSession] = field(default_factory=list[OpenSession])
    # Reports that may have been made twice since the last rest, and those that were before.
    _unsure: list[Sums] = field(default_factory=list[Sums])
    _twice: list[Sums] = field(default_factory=list[Sums])
    _before: Holdings | None = None
    _has_model: bool = True

    def __post_init__(self) -> None:
        self.clients = RandomClients(self.system, self.rng)

    @property
    def worker(self) -> WorkerProcess:
        assert self.system.worker is not None
        return self.system.worker

    @property
    def spool(self) -> Path:
        """The worker's folder for bodies."""
        return self.folder / "spool"

    async def play(self, steps: int) -> None:
        """Take `steps` steps. Raises `AssertionError` or `TimeoutError` if an invariant doesn't hold."""
        await self._start()
        for number in range(1, steps + 1):
            (step,) = self.rng.choices(list(STEPS), list(STEPS.values()))
            self.steps_done[step.__name__] += 1
            await step(self)
            await self._check_status()
            if number % STEPS_TO_REST == 0 or number == steps:
                await self._rest()

    # Invariants

    async def _check_status(self) -> None:
        assert self.worker.process.returncode is None
        status = await status_of(self.system)
        requests = status["requests"]
        ended = sum(requests[name] for name in ("served", "errored", "cancelled", "rejected"))
        assert requests["received"] == requests["arriving"] + requests["in_flight"] + ended, status
        assert min(requests.values()) >= 0, status
        assert status["queue"]["working"] + status["queue"]["waiting"] >= 0, status
        assert (status["load"]["current"] > 0) == (requests["in_flight"] > 0), status

    async def _rest(self) -> None:
        """Take away all that holds requests back; check that all ends as it should."""
        system = self.system
        system.engine.faults.clear()
        await self._start_model()
        system.model.release()
        for session in self._sessions:
            await self.clients.call("/session/end", session.end)
        self._sessions.clear()
        with anyio.fail_after(GUARD_S):
            await asyncio.gather(*(each.task for each in self._open))
        self._open.clear()
        await until_status(system, lambda status: status["state"] == "ready")
        assert (await self.clients.ask("/single/echo", LAST_WORKLOAD)).seen == "200"
        await self._until_told()
        assert self._before is not None
        await until_released(system, self.spool, self._before)
        assert "Traceback" not in self.worker.output(), self.worker.output()[-5000:]
        system.model.hold()

    async def _until_told(self) -> None:
        """Wait until the engine knows what it must, and its sums are exact."""
        try:
            twice = await self.system.engine.wait_for(self._explanations, GUARD_S / 2)
        except TimeoutError as e:
            told = self._told()
            sent = self.clients.sent
            wrong = [(each, told.get(i)) for i, each in sent.items() if not each.may_be(told.get(i))]
            sums = sums_of([self.system.totals])
            raise AssertionError(f"{wrong} told: {sums}, right: {self._right()}, {self._unsure}") from e
        self.told_twice += len(twice[0])
        self._twice += twice[0]
        self._unsure.clear()

    def _told(self) -> dict[int, str]:
        """The status of each request that the engine was told; if it was told twice, the same."""
        told: dict[int, str] = {}
        for finished in self.system.engine.finished:
            request = finished.request
            assert told.setdefault(request.request_idx, request.status) == request.status
        return told

    def _right(self) -> Sums:
        told = self._told()
        return sums_of(sent.sums(told.get(index)) for index, sent in self.clients.sent.items())

    def _explanations(self) -> list[tuple[Sums, ...]]:
        """The sets of reports that, made twice, explain the sums; none as long as a status is missing."""
        told = self._told()
        if not all(sent.may_be(told.get(index)) for index, sent in self.clients.sent.items()):
            return []
        right = sums_of([self._right(), *self._twice])
        return explanations(sums_of([self.system.totals]), right, self._unsure)

    # Steps: clients

    async def ask(self) -> None:
        """A client sends a request, and another task reads its answer."""
        if len(self._open) < MOST_OPEN:
            self._open.append(await self.clients.begin(self.rng.choice(list(PATHS))))

    async def leave(self) -> None:
        """A client closes its connection, or its half."""
        if self._open:
            chosen = self._open.pop(self.rng.randrange(len(self._open)))
            chosen.sent.has_left = True
            if self.rng.random() < 0.7:
                chosen.client.leave()
            else:
                chosen.client.half_close()
            with anyio.fail_after(GUARD_S):
                await chosen.task

    async def open_session(self) -> None:
        if len(self._sessions) < MOST_OPEN:
            auth = self.clients.sign(50.0, "/session")
            sent = self.clients.sent[auth["request_idx"]]
            terms = {"lifetime": self.rng.choice([0.1, 3600.0])}
            body = {"auth_data": auth, "payload": terms}
            sent.seen, answer = await self.clients.call("/session/create", body)
            sent.ended_s = anyio.current_time()
            if sent.seen == "201":
                self._sessions.append(OpenSession(auth, answer["session_id"]))

    async def ask_in_session(self) -> None:
        """A request in a session, which may have expired."""
        if self._sessions:
            session = self.rng.choice(self._sessions)
            body = {"workload": 1.0}
            envelope = {"auth_data": session.auth, "payload": body, "session_id": session.session_id}
            status, _ = await self.clients.call("/echo", envelope)
            assert status in ("200", "410", "502", "503"), status

    async def end_session(self) -> None:
        if self._sessions:
            session = self._sessions.pop()
            status, _ = await self.clients.call("/session/end", session.end)
            assert status in ("200", "410"), status

    async def replay(self) -> None:
        await self.clients.replay()

    async def forge(self) -> None:
        await self.clients.forge()

    async def send_half(self) -> None:
        await self.clients.send_half()

    # Steps: the model server and the engine

    async def release(self) -> None:
        self.system.model.release()

    async def hold(self) -> None:
        self.system.model.hold()

    async def emit(self) -> None:
        """A held stream sends one more token."""
        self.system.model.step()

    async def stop_model(self) -> None:
        if self._has_model:
            self._has_model = False
            await self.system.model.stop()

    async def restart_model(self) -> None:
        await self.stop_model()
        await self._start_model()

    async def fail_engine(self) -> None:
        """From now on the engine refuses, is slow or is gone; or it is well again."""
        fault = self.rng.choice([Fault(), Fault(), Fault(refuse=True), Fault(drop=True), Fault(delay_s=0.05)])
        faults = self.system.engine.faults
        faults.reports, faults.completions = fault, fault

    async def lose_an_answer(self) -> None:
        """The engine takes a report and loses its acknowledgement."""
        engine = self.system.engine
        engine.faults.clear()
        engine.faults.completions = Fault(lose=True, times=1)
        engine.faults.reports = Fault(lose=True, times=1)
        reports = self.system.totals.reports
        await self.clients.ask("/error500", 7.0)
        await engine.wait_for(
            lambda: not engine.faults.reports.active and self.system.totals.reports > reports, GUARD_S
        )
        self._note_unsure(2)

    # Steps: the worker

    async def restart(self) -> None:
        """Stop the worker in order, and start another."""
        self.system.engine.faults.clear()  # or else its last reports take 10 s
        self.system.model.release()
        await self._start_model()
        for session in self._sessions:
            self.clients.sent[session.auth["request_idx"]].is_drained = True
        self.worker.terminate()
        assert await self.worker.exit_status() == 0
        await self._start()

    async def kill(self) -> None:
        """Kill the worker with SIGKILL, and start another."""
        self._note_unsure(1)
        reports = self.system.totals.reports
        unsettled_since_s = anyio.current_time() - UNSETTLED_S
        self.worker.process.kill()
        await self.worker.process.wait()
        self.system.engine.faults.clear()
        await self._start_model()
        for session in self._sessions:
            self.clients.sent[session.auth["request_idx"]].is_unsettled = True
        for sent in self.clients.sent.values():
            sent.is_unsettled |= sent.seen is None or sent.ended_s > unsettled_since_s
        self._note_unsure(self.system.totals.reports - reports)  # they were on their way
        await self._start()

    async def _start(self) -> None:
        system, reports = self.system, self.system.totals.reports
        self.spool.mkdir(exist_ok=True)
        self._sessions.clear()
        env = {"CARRIER": CARRIER, "TMPDIR": str(self.spool), "DRAIN_TIMEOUT_S": str(GUARD_S)}
        process = worker_process(system, self.folder, SETUP, env, module="tests.fakes.many_routes")
        system.worker = await self.stack.enter_async_context(process)
        await system.engine.wait_for(
            lambda: system.totals.reports > reports and system.last_report.loadtime > 0, GUARD_S
        )
        if self._before is None:
            assert (await self.clients.ask("/upload/echo", UPLOAD_WORKLOAD)).seen == "200"
            assert (await self.clients.ask("/single/echo", 1.0)).seen == "200"
            self._before = await idle_holdings(system, self.spool)

    async def _start_model(self) -> None:
        if not self._has_model:
            self._has_model = True
            await self.system.model.start()

    def _note_unsure(self, count: int) -> None:
        """Note that the last `count` reports may be made twice."""
        reports = list(self.system.engine.worker(self.system.last_report.id).reports)
        self._unsure += [sums_of([received.message]) for received in reports[len(reports) - count :]]


# The steps, with their weights.
STEPS = {
    RandomRun.ask: 12,
    RandomRun.leave: 4,
    RandomRun.open_session: 2,
    RandomRun.ask_in_session: 2,
    RandomRun.end_session: 1,
    RandomRun.replay: 1,
    RandomRun.forge: 1,
    RandomRun.send_half: 1,
    RandomRun.release: 2,
    RandomRun.hold: 2,
    RandomRun.emit: 2,
    RandomRun.stop_model: 1,
    RandomRun.restart_model: 2,
    RandomRun.fail_engine: 2,
    RandomRun.lose_an_answer: 1,
    RandomRun.restart: 1,
    RandomRun.kill: 1,
}


async def run_steps(folder: Path, steps: int, seed: int) -> RandomRun:
    """Take `steps` random steps with a worker; return what was done. Raises as `RandomRun.play` does."""
    async with engine_and_model_server(folder) as system, AsyncExitStack() as stack:
        run = RandomRun(system, folder, random.Random(seed), stack)
        await run.play(steps)
        return run


async def _main(steps: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = await run_steps(Path(folder), steps, seed)
    print(f"seed {seed}: {dict(run.steps_done)}")
    print(f"{len(run.clients.sent)} requests and sessions; reports told twice: {run.told_twice}")


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6)))
