"""`pyworker engine --autoscale`: starts and stops workers on this machine by the target capacity.

Owns when a worker is started, which one is stopped, and the delay before a failed one is replaced. Does not
own the plan (scaling_plan.py); only its target capacity is acted on.
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

from lib.local.engine import AutoscaleStatus, LocalEngine
from lib.local.hello_world import hello_world
from lib.local.local_worker_env import instance_variables, with_code_path
from lib.local.processes import (
    END_LIMIT_S,
    Child,
    ChildFailed,
    Interrupted,
    free_port,
    python_module,
    while_running,
)
from lib.local.scaling_plan import ScalingPlan
from lib.runtime.backoff import Backoff
from lib.runtime.clock import sleep

# Seconds between two checks of the plan. Under load, workers report once a second.
CHECK_INTERVAL_S = 1.0
# A surplus worker is stopped after this many seconds: load may return, and starting a worker takes time.
SCALE_DOWN_DELAY_S = 20.0
# Seconds from a worker's failure to the next start; doubled with each failure, up to the maximum.
FIRST_RETRY_DELAY_S = 1.0
MAX_RETRY_DELAY_S = 60.0
# Seconds that a stopping worker has to finish its requests.
DRAIN_S = 10
# Far from the ids of workers that are started by hand.
FIRST_ID = 101
TOKENS_PER_S = 250

# Starts a worker with this id; leaving the context stops it.
Launch = Callable[[int], AbstractAsyncContextManager[Sequence[Child]]]


@dataclass(frozen=True)
class _RunningWorker:
    """A worker started here. Setting `stop` to a signal number ends its processes."""

    worker_id: int
    stop: asyncio.Future[int]


class Autoscaler:
    """Keeps 1 to `max_workers` workers of `endpoint` running: as many as the plan wants ready.

    Workers started elsewhere count towards that number and are never stopped. `write_line` receives a line
    for each change.
    """

    def __init__(
        self,
        engine: LocalEngine,
        endpoint: str,
        max_workers: int,
        launch: Launch,
        write_line: Callable[[str], object],
        *,
        scale_down_delay_s: float = SCALE_DOWN_DELAY_S,
    ) -> None:
        self._engine = engine
        self._endpoint = endpoint
        self._max_workers = max_workers
        self._launch = launch
        self._write_line = write_line
        self._scale_down_delay_s = scale_down_delay_s
        self._running: dict[int, _RunningWorker] = {}
        self._surplus_since_s: float | None = None
        self._backoff = _new_backoff()
        self._next_start_s = 0.0

    async def run(self) -> None:
        """Start and stop workers until cancelled; returns after all of them have ended."""
        async with anyio.create_task_group() as tasks:
            try:
                while True:
                    self._adjust(tasks)
                    await sleep(self._engine.clock, CHECK_INTERVAL_S)
            finally:
                for running in self._running.values():
                    _stop(running)

    def _adjust(self, tasks: TaskGroup) -> None:
        endpoint = self._engine.groups.endpoint_named(self._endpoint)
        if endpoint is None:  # removed; the next report makes it again
            return
        plan, now_s = self._engine.plan_of(endpoint), self._engine.clock.monotonic()
        active = self._not_stopping()
        if any(self._engine.worker(running.worker_id).state == "ready" for running in active):
            self._backoff = _new_backoff()
        wanted = self._wanted(plan)
        if len(active) <= wanted:
            self._surplus_since_s = None
        elif self._surplus_since_s is None:
            self._surplus_since_s = now_s
        if len(active) < wanted and now_s >= self._next_start_s:
            self._start(wanted - len(active), plan, tasks)
        elif self._surplus_since_s is not None and now_s - self._surplus_since_s >= self._scale_down_delay_s:
            self._stop_workers(active[wanted:], plan)
        self._engine.autoscale = AutoscaleStatus(
            self._endpoint, self._max_workers, len(self._not_stopping()), wanted
        )

    def _not_stopping(self) -> list[_RunningWorker]:
        """The workers started here that are not being stopped, oldest first."""
        return [running for running in self._running.values() if not running.stop.done()]

    def _wanted(self, plan: ScalingPlan) -> int:
        """The number of workers to run here.

        At least one worker is needed to report a load. While none is measured, one is enough to find
        out a worker's performance.
        """
        others = sum(
            worker.state == "ready" and worker.id not in self._running
            for worker in self._engine.fleet.members(self._endpoint)
        )
        ready = 1 if plan.exploring else plan.workers_ready_wanted
        return min(self._max_workers, max(ready - others, 0 if others else 1))

    def _start(self, count: int, plan: ScalingPlan, tasks: TaskGroup) -> None:
        free = (i for i in range(FIRST_ID, FIRST_ID + self._max_workers) if i not in self._running)
        for worker_id in list(free)[:count]:
            why = "to measure its performance" if plan.exploring else plan.reason
            self._log(f"starting worker {worker_id}: {why}")
            self._engine.reinstate(worker_id)
            running = _RunningWorker(worker_id, asyncio.get_running_loop().create_future())
            self._running[worker_id] = running
            tasks.start_soon(self._run_worker, running)

    def _stop_workers(self, workers: Sequence[_RunningWorker], plan: ScalingPlan) -> None:
        for running in workers:
            self._log(f"stopping worker {running.worker_id}: {plan.reason}")
            self._engine.retire(running.worker_id)
            _stop(running)

    async def _run_worker(self, running: _RunningWorker) -> None:
        """Run a worker until it ends or `stop` is set. On cancellation it is stopped in the usual way."""
        with anyio.CancelScope(shield=True):
            try:
                async with self._launch(running.worker_id) as children:
                    await while_running(anyio.sleep_forever(), children, running.stop)
            except Interrupted:
                pass
            except ChildFailed as e:
                delay_s = self._backoff.next_s()
                self._next_start_s = self._engine.clock.monotonic() + delay_s
                self._log(f"worker {running.worker_id} failed, next start in {delay_s:g} s: {e}")
            finally:
                del self._running[running.worker_id]

    def _log(self, text: str) -> None:
        self._write_line(f"autoscale: {text}")
        if endpoint := self._engine.groups.endpoint_named(self._endpoint):
            self._engine.note("info0", endpoint, f"autoscale: {text}")


def _stop(running: _RunningWorker) -> None:
    if not running.stop.done():
        running.stop.set_result(signal.SIGTERM)


def hello_world_launcher(engine_url: str, environ: Mapping[str, str], directory: Path) -> Launch:
    """Launch hello_world workers, each with its own model server; they share one benchmark result."""

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


def worker_file_launcher(target: str, engine_url: str, environ: Mapping[str, str], directory: Path) -> Launch:
    """Launch workers from the file `target`; all use the model server that `environ` names."""

    @asynccontextmanager
    async def launch(worker_id: int) -> AsyncGenerator[Sequence[Child], None]:
        folder = _folder(directory, worker_id)
        with free_port() as port, free_port() as loopback_port:
            variables = {
                "BENCHMARK_DIR": str(directory),
                **with_code_path(environ),
                **instance_variables(engine_url, port, loopback_port, folder, worker_id),
                "DRAIN_TIMEOUT_S": str(DRAIN_S),
            }
            log = folder / "worker.log"
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


def _new_backoff() -> Backoff:
    return Backoff(FIRST_RETRY_DELAY_S, MAX_RETRY_DELAY_S, jitter=0.0)
