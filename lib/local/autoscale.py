"""`pyworker engine --autoscale`: workers on this machine, started and stopped by the target capacity.

Owns when one is started, which one is stopped, and how long a failing one is left alone. What a worker is
made of is the launcher's; the rest of the plan is shown, not acted on.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from lib.local.engine import Autoscale, LocalEngine
from lib.local.hello_world import hello_world
from lib.local.local_worker_env import instance_variables, with_code
from lib.local.plan import Plan
from lib.local.processes import (
    END_LIMIT_S,
    Child,
    ChildFailed,
    Interrupted,
    free_port,
    python_module,
    while_running,
)
from lib.runtime.clock import sleep

# How often the plan is looked at, in seconds: workers report as often under load.
LOOK_S = 1.0
# A worker is stopped once it was too many for so long, in seconds: loads pause, and starting one takes time.
PATIENCE_S = 20.0
# After a worker failed, so long until the next is started, in seconds; twice as long each time.
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
# Requests in progress have so long to end when their worker is stopped, in seconds.
DRAIN_S = 10
# Ids far from those of workers that are started by hand.
FIRST_ID = 101
TOKENS_PER_S = 250

# Starts a worker of this id; the block is left to stop it.
Launch = Callable[[int], AbstractAsyncContextManager[Sequence[Child]]]


@dataclass(frozen=True)
class _Running:
    """A worker's processes; whoever gives `stop` a signal's number has them ended."""

    worker_id: int
    stop: asyncio.Future[int]


class Autoscaler:
    """Keeps as many workers of `endpoint` running as the plan wants ready, at least 1 and at most `most`.

    Workers that others started count, but are never stopped. `tell` is called with a line for each change.
    """

    def __init__(
        self,
        engine: LocalEngine,
        endpoint: str,
        most: int,
        launch: Launch,
        tell: Callable[[str], object],
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._engine = engine
        self._endpoint = endpoint
        self._most = most
        self._launch = launch
        self._tell = tell
        self._patience_s = patience_s
        self._running: dict[int, _Running] = {}
        self._too_many_since_s: float | None = None
        self._pause_s = FIRST_PAUSE_S
        self._not_before_s = 0.0

    async def run(self) -> None:
        """Start and stop workers until cancelled; all have ended then."""
        async with anyio.create_task_group() as tasks:
            try:
                while True:
                    self._look(tasks)
                    await sleep(self._engine.clock, LOOK_S)
            finally:
                for running in self._running.values():
                    _stop(running)

    def _look(self, tasks: TaskGroup) -> None:
        endpoint = self._engine.groups.named(self._endpoint)
        if endpoint is None:  # it was removed, and comes back with the next report
            return
        plan, now_s = self._engine.plan_of(endpoint), self._engine.clock.monotonic()
        kept = self._kept()
        if any(self._engine.worker(running.worker_id).state == "ready" for running in kept):
            self._pause_s = FIRST_PAUSE_S
        wanted = self._wanted(plan)
        if len(kept) <= wanted:
            self._too_many_since_s = None
        elif self._too_many_since_s is None:
            self._too_many_since_s = now_s
        if len(kept) < wanted and now_s >= self._not_before_s:
            self._start(wanted - len(kept), plan, tasks)
        elif self._too_many_since_s is not None and now_s - self._too_many_since_s >= self._patience_s:
            self._end(kept[wanted:], plan)
        self._engine.autoscale = Autoscale(self._endpoint, self._most, len(self._kept()), wanted)

    def _kept(self) -> list[_Running]:
        """Those that are not being stopped, the oldest first."""
        return [running for running in self._running.values() if not running.stop.done()]

    def _wanted(self, plan: Plan) -> int:
        """Without one nobody could report a load, and one tells how much one can do."""
        others = sum(
            worker.state == "ready" and worker.id not in self._running
            for worker in self._engine.fleet.members(self._endpoint)
        )
        ready = 1 if plan.exploring else plan.workers_ready_wanted
        return min(self._most, max(ready - others, 0 if others else 1))

    def _start(self, count: int, plan: Plan, tasks: TaskGroup) -> None:
        free = (i for i in range(FIRST_ID, FIRST_ID + self._most) if i not in self._running)
        for worker_id in list(free)[:count]:
            why = "to be measured" if plan.exploring else plan.reason
            self._say(f"starting worker {worker_id}: {why}")
            self._engine.expect(worker_id)
            running = _Running(worker_id, asyncio.get_running_loop().create_future())
            self._running[worker_id] = running
            tasks.start_soon(self._keep, running)

    def _end(self, workers: Sequence[_Running], plan: Plan) -> None:
        for running in workers:
            self._say(f"stopping worker {running.worker_id}: {plan.reason}")
            self._engine.retire(running.worker_id)
            _stop(running)

    async def _keep(self, running: _Running) -> None:
        """A worker, from its start to its end; cancelled, it is ended as it would be otherwise."""
        with anyio.CancelScope(shield=True):
            try:
                async with self._launch(running.worker_id) as children:
                    await while_running(anyio.sleep_forever(), children, running.stop)
            except Interrupted:
                pass
            except ChildFailed as e:
                self._not_before_s = self._engine.clock.monotonic() + self._pause_s
                self._say(f"worker {running.worker_id}, again in {self._pause_s:g} s: {e}")
                self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            finally:
                del self._running[running.worker_id]

    def _say(self, what: str) -> None:
        self._tell(f"autoscale: {what}")
        if endpoint := self._engine.groups.named(self._endpoint):
            self._engine.note("info0", endpoint, f"autoscale: {what}")


def _stop(running: _Running) -> None:
    if not running.stop.done():
        running.stop.set_result(signal.SIGTERM)


def hello_worlds(engine_url: str, environ: Mapping[str, str], directory: Path) -> Launch:
    """Workers hello_world, each with a model server of its own; they share a benchmark's result."""

    @asynccontextmanager
    async def launch(worker_id: int) -> AsyncGenerator[Sequence[Child], None]:
        async with hello_world(
            engine_url,
            environ,
            _folder(directory, worker_id),
            TOKENS_PER_S,
            worker_id=worker_id,
            variables={"BENCHMARK_DIR": str(directory)},
            drain_s=DRAIN_S,
        ) as running:
            yield running.children

    return launch


def workers_of(target: str, engine_url: str, environ: Mapping[str, str], directory: Path) -> Launch:
    """Workers of the file `target`, which find their model server by `environ`, all the same one."""

    @asynccontextmanager
    async def launch(worker_id: int) -> AsyncGenerator[Sequence[Child], None]:
        with free_port() as port, free_port() as loopback_port:
            variables = {
                "BENCHMARK_DIR": str(directory),
                **with_code(environ),
                **instance_variables(engine_url, port, loopback_port, worker_id),
                "DRAIN_TIMEOUT_S": str(DRAIN_S),
            }
            log = _folder(directory, worker_id) / "worker.log"
            command = ("lib.tools.cli", "run", target)
            async with python_module(
                "worker", *command, environ=variables, log=log, end_limit_s=DRAIN_S + END_LIMIT_S
            ) as child:
                yield [child]

    return launch


def _folder(directory: Path, worker_id: int) -> Path:
    folder = directory / f"worker-{worker_id}"
    folder.mkdir(exist_ok=True)
    return folder
