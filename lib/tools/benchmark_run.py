"""The benchmark of `pyworker benchmark`: a worker's own or a deployment's, without the worker around it.

Owns the conditions under which it can be measured, and the messages where it can't. How it is measured is in
lib/model/benchmark.py, when a worker does it in lib/model/benchmark_keeper.py; the report is in
lib/tools/benchmark_report.py.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
from aiohttp import web
from anyio.to_thread import run_sync as in_thread

from lib.backend import Backend
from lib.errors import SettingsError
from lib.life.running_worker import RunningWorker
from lib.model import benchmark_store
from lib.model.benchmark import BenchmarkFailed, Measurement
from lib.model.benchmark_keeper import BenchmarkKeeper
from lib.model.benchmark_store import BenchmarkInputs, Result
from lib.model.connection import ModelServer
from lib.model.readiness import Readiness
from lib.model.watch import NO_SUCH_CHECK, HealthWatch
from lib.runtime.clock import Clock, SystemClock
from lib.runtime.excerpt import excerpt
from lib.runtime.file_limit import raise_file_limit
from lib.runtime.logs import TextFormatter, configure_logging
from lib.runtime.settings import Settings
from lib.tools.context_check import contexts_entered
from lib.tools.deployment_target import DeploymentTarget
from lib.tools.file_inspection import NotServed, inspect_file
from lib.tools.findings import Findings, Level
from lib.tools.interrupts import on_ctrl_c
from lib.tools.worker_file import WorkerFile

# The variables that matter to a benchmark. Others are about the engine and the ports, which it does without.
VARIABLES = (
    *("BENCHMARK_TARGET_S", "BENCHMARK_TIME_LIMIT_S", "BENCHMARK_DIR"),
    *("MODEL_NAME", "MODEL_ID", "MODEL_API_KEY", "MODEL_TIMEOUT_S", "MODEL_STALL_TIMEOUT_S"),
)
MAX_MESSAGE = 400
_BENCHMARK_LOGGER = "lib.model.benchmark"
# The probable meaning of a status of the model server, by its first digits.
_HINTS = {
    "401": "the model server at {url} wants a key: see MODEL_API_KEY",
    "403": "the model server at {url} wants a key: see MODEL_API_KEY",
    "404": "{url} may be another server, or have no such model: see MODEL_SERVER_URL and MODEL_NAME",
    "5": "the model server at {url} may still be loading; see its log",
}


class CannotMeasure(Exception):
    """Nothing could be measured; the text is one line that says why."""


class BenchmarkInterrupted(Exception):
    """Ctrl-C has stopped the benchmark."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport:
    """A benchmark and what it depends on. `saved` is an earlier result for the same inputs, or None.

    `result` is the measurement as it would be saved in `directory`, `is_saved` whether it was.
    """

    worker: str
    settings: Settings
    inputs: BenchmarkInputs
    measured: Measurement
    result: Result
    saved: Result | None
    directory: Path
    is_saved: bool


def run_benchmark(
    file: WorkerFile | DeploymentTarget, environ: Mapping[str, str], *, save: bool
) -> BenchmarkReport:
    """Measure the model server of the worker in `file`, or a deployment, with progress on standard error.

    A file is run as the main program of this process. Raises `CannotMeasure` and `BenchmarkInterrupted`.
    """
    known = {name: environ[name] for name in VARIABLES if name in environ}
    try:
        settings = Settings.from_env({"ENGINE": "none", **known})
    except SettingsError as e:
        raise CannotMeasure("; ".join(e.problems)) from e
    _log_progress()
    name = file.name if isinstance(file, WorkerFile) and file.name else str(file)
    run = _BenchmarkRun(name, settings, save)
    try:
        inspect_file(file, run.measure)
    except NotServed as e:
        raise CannotMeasure(f"{name}: {e}") from e
    if run.outcome is None:
        raise BenchmarkInterrupted()
    if isinstance(run.outcome, CannotMeasure):
        raise run.outcome
    return run.outcome


def _log_progress() -> None:
    """Log warnings as usual, and the benchmark's progress as plain lines, all to standard error."""
    configure_logging("WARNING", "text")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter("%(message)s"))
    logger = logging.getLogger(_BENCHMARK_LOGGER)
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


class _BenchmarkRun:
    """The benchmark of one worker; `outcome` is None if Ctrl-C has ended it."""

    def __init__(self, worker: str, settings: Settings, save: bool) -> None:
        self.outcome: BenchmarkReport | CannotMeasure | None = None
        self._worker = worker
        self._settings = settings
        self._save = save
        self._clock: Clock = SystemClock()

    async def measure(self, backend: Backend, routes: Sequence[web.AbstractRouteDef]) -> int:
        """Measure, and keep the outcome. The exit status is 0, as nothing is served."""
        raise_file_limit()
        with anyio.CancelScope() as scope, on_ctrl_c(scope.cancel):
            self.outcome = await self._outcome_of(backend)
        return 0

    async def _outcome_of(self, backend: Backend) -> BenchmarkReport | CannotMeasure:
        """Measure inside the contexts that a worker enters."""
        if backend.benchmark_handler is None:
            return CannotMeasure(
                f"{self._worker} has no benchmark: it states its capacity, {backend.max_perf:g} workload/s"
            )
        if problems := backend.config().problems():
            return CannotMeasure("; ".join(problems))
        directory, found = Path.cwd() / self._settings.benchmark_dir, Findings(self._worker)
        outcome: BenchmarkReport | CannotMeasure | None = None
        async with (
            anyio.create_task_group() as tasks,
            backend.run_with(self._settings, directory, tasks.start_soon) as running,
            contexts_entered(backend.config(), self._clock, found) as entered,
        ):
            if entered:
                outcome = await self._measured_or_why_not(running)
        if outcome is not None:
            return outcome
        needs_server = backend.lifecycle is not None and backend.model_server_url
        hint = " (is the model server running?)" if needs_server else ""
        return CannotMeasure("; ".join(found.texts(Level.PROBLEM)) + hint)

    async def _measured_or_why_not(self, running: RunningWorker) -> BenchmarkReport | CannotMeasure:
        """Measure, and return the error: raised in a task group, it would become a group of errors."""
        keeper = running.benchmark_keeper
        assert keeper is not None
        try:
            if running.lifecycle is None:  # which would find the model server itself
                await self._check_server(running.server, running.config.health_checks)
            return await self._measured(keeper)
        except CannotMeasure as e:
            return e

    async def _check_server(self, server: ModelServer, health_checks: Sequence[str]) -> None:
        """Check that the model server listens; say so if it isn't well. Raises `CannotMeasure`."""
        if not server.url:
            return
        if not await server.accepts_connections():
            raise CannotMeasure(
                f"nothing listens at {server.url}: start the model server, or name it in MODEL_SERVER_URL"
            )
        if not health_checks:
            return
        watch = HealthWatch(server, health_checks, Readiness((), False, self._clock), self._clock, False)
        status, problem = await watch.check()
        if problem and status not in NO_SUCH_CHECK:
            print(f"{watch.url}: {problem}; the model may still be loading", file=sys.stderr)

    async def _measured(self, keeper: BenchmarkKeeper) -> BenchmarkReport:
        try:
            inputs = await keeper.inputs()
            saved = await in_thread(benchmark_store.load, keeper.directory, inputs)
            measured = await keeper.measurement(inputs)
        except BenchmarkFailed as e:
            raise CannotMeasure(_with_hint(str(e), keeper.request.server.url)) from e
        result = keeper.result_of(measured)
        is_saved = False
        if self._save:
            await in_thread(benchmark_store.save, keeper.directory, inputs, result)
            is_saved = await in_thread(benchmark_store.load, keeper.directory, inputs) == result
        return BenchmarkReport(
            worker=self._worker,
            settings=self._settings,
            inputs=inputs,
            measured=measured,
            result=result,
            saved=saved,
            directory=keeper.directory,
            is_saved=is_saved,
        )


def _with_hint(message: str, url: str) -> str:
    """The message on one line, with what a status in it probably means."""
    line = excerpt(message, MAX_MESSAGE)
    status = re.search(r"(?:answered|succeeded:) (\d{3})\b", line)
    hints = [hint for digits, hint in _HINTS.items() if status is not None and status[1].startswith(digits)]
    return f"{line} ({hints[0].format(url=url)})" if hints else line
