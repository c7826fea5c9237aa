"""The times at which the benchmark runs (docs/writing-a-worker.md, "The benchmark").

Owns the decision to measure, to try again, to use a saved result, and to measure anew while there is no
traffic. How it is measured is in benchmark.py, what one request is in benchmark_request.py, the file with the
result in benchmark_store.py.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
from anyio.to_thread import run_sync as in_thread

from lib.errors import result_or_error
from lib.metrics import Ledger
from lib.model import benchmark_store
from lib.model.benchmark import BenchmarkFailed, Measurement, first_answer_limit_s, measure
from lib.model.benchmark_request import BenchmarkRequest
from lib.model.benchmark_store import BenchmarkInputs, Result, payload_shape
from lib.model.readiness import Cause, Readiness, State
from lib.runtime.clock import Clock, wait_for
from lib.runtime.excerpt import excerpt
from lib.runtime.own_version import own_version

log = logging.getLogger(__name__)

# Of a failed request of the benchmark, the characters that are logged.
MAX_FAILURE = 300

# Seconds until a failed benchmark is tried again; a new "loaded" line causes that immediately.
RETRY_S = 60.0
# The `benchmark_runs` of a handler whose author gave none.
DEFAULT_RUNS = 8
# Seconds without traffic after which a saved result is verified, and one that was cut is measured anew.
IDLE_TO_VERIFY_S = 10.0
IDLE_TO_MEASURE_S = 30.0
# A saved result is verified for this long, and measured anew if it is off by more than this part.
VERIFY_S = 2.0
OFF_BY = 0.25


@dataclass
class BenchmarkKeeper:
    """Sets the throughput of `readiness`: a saved result in `directory`, or a measurement by `request`.

    `target_s` is how long a measurement should take, `time_limit_s` how long it may. `max_concurrency` None:
    no limit. `result` is the present one, None before.
    """

    request: BenchmarkRequest
    readiness: Readiness
    ledger: Ledger
    max_concurrency: int | None
    model_name: str
    directory: Path
    target_s: float
    time_limit_s: float
    clock: Clock
    result: Result | None = None
    is_saved: bool = False
    _traffic: asyncio.Event = field(default_factory=asyncio.Event)

    async def keep(self) -> None:
        """Measure once the model is loaded, and again after each failure, until it succeeds.

        Then verify a saved result, and measure one anew that was cut, while there is no traffic.
        """
        while not self.readiness.measured:
            await self.readiness.until(self._may_measure)
            async with anyio.create_task_group() as group:
                group.start_soon(self._measure_until_it_succeeds)
                await self.readiness.until(lambda: self.readiness.measured or not self._may_measure())
                group.cancel_scope.cancel()
        if self.is_saved and self.result is not None and self.result.concurrency is not None:
            await self._without_traffic(IDLE_TO_VERIFY_S, self._verify)
        while self.result is not None and self.result.is_cut:
            await self._without_traffic(IDLE_TO_MEASURE_S, self._measure_anew)

    def _may_measure(self) -> bool:
        """Whether the model is loaded, and there is no error but the benchmark's own."""
        others = [c for c in Cause if c is not Cause.BENCHMARK and self.readiness.has_error(c)]
        return self.readiness.loaded and not others

    async def _measure_until_it_succeeds(self) -> None:
        while not self.readiness.measured:
            try:
                await self._use_or_measure()
            except BenchmarkFailed as e:
                self.readiness.set_error(Cause.BENCHMARK, str(e))
                await self.readiness.until(lambda: not self.readiness.has_error(Cause.BENCHMARK), RETRY_S)

    async def _use_or_measure(self) -> None:
        """Use a saved result, or measure and save the result. Raises `BenchmarkFailed`."""
        inputs = await self.inputs()
        saved = await in_thread(benchmark_store.load, self.directory, inputs)
        if saved is None:
            await self._measure(inputs)
            return
        self.result, self.is_saved = saved, True
        text = f"saved benchmark: {saved.perf:g} workload/s{saved.remark}"
        at = time.strftime(", measured at %Y-%m-%d %H:%M UTC", time.gmtime(saved.measured_at))
        log.info("%s%s", text, at if saved.measured_at else "")
        self.readiness.set_max_perf(saved.perf, text)

    async def _measure(self, inputs: BenchmarkInputs) -> None:
        """Measure, and save the result. Raises `BenchmarkFailed`."""
        measured = await self.measurement(inputs)
        if measured.failed:
            total, last = measured.succeeded + measured.failed, excerpt(measured.last_message, MAX_FAILURE)
            log.warning(
                "benchmark: %d of %d requests failed, the last with: %s", measured.failed, total, last
            )
        self.result, self.is_saved = self.result_of(measured), False
        await in_thread(benchmark_store.save, self.directory, inputs, self.result)
        text = f"benchmark: {measured.perf:g} workload/s{self.result.remark}"
        self.readiness.set_max_perf(measured.perf, text)

    async def measurement(self, inputs: BenchmarkInputs) -> Measurement:
        """Measure, without an effect on the worker. Raises `BenchmarkFailed`."""
        handler = self.request.handler
        runs = handler.benchmark_runs
        return await self._measured(
            runs=None if runs == DEFAULT_RUNS else max(1, runs),
            concurrency=inputs.concurrency,
            target_s=self.target_s,
            warm_up=handler.benchmark_warmup,
        )

    async def _measured(
        self,
        runs: int | None,
        concurrency: int | None,
        target_s: float,
        warm_up: bool,
        workload_per_unit: float = 0.0,
    ) -> Measurement:
        return await measure(
            self.request.send,
            runs=runs,
            concurrency=concurrency,
            max_concurrency=self.max_concurrency,
            target_s=target_s,
            time_limit_s=self.time_limit_s,
            clock=self.clock,
            warm_up=warm_up,
            workload_per_unit=workload_per_unit,
            first_limit_s=first_answer_limit_s(self.request.server.timeout_s),
        )

    def result_of(self, measured: Measurement) -> Result:
        """The result to save of a measurement that has just ended."""
        return Result(
            perf=measured.perf,
            concurrency=measured.concurrency,
            spread=measured.spread,
            duration_s=measured.duration_s,
            measured_at=self.clock.wall(),
            workload_per_unit=measured.workload_per_unit,
            is_cut=measured.is_cut,
            is_unsure=measured.is_unsure,
            versions={"pyworker": own_version(), "python": platform.python_version()},
            served_model=getattr(self.request.handler, "served_model", None),
        )

    # Without traffic

    async def _without_traffic(self, idle_s: float, function: Callable[[], Awaitable[None]]) -> None:
        """Call `function` after `idle_s` seconds without a request; the next one cancels it.

        Then it is called again after the next pause. It is not called while the worker isn't ready.
        """
        is_done = False
        with self._listening():
            while not is_done:
                await self._pause(idle_s)
                async with anyio.create_task_group() as group:

                    async def call(scope: anyio.CancelScope = group.cancel_scope) -> None:
                        nonlocal is_done
                        try:
                            await function()
                        except BenchmarkFailed as e:
                            log.warning("benchmark: the result is kept, since it could not be checked: %s", e)
                        is_done = True
                        scope.cancel()

                    group.start_soon(call)
                    await self._traffic.wait()
                    group.cancel_scope.cancel()

    @contextmanager
    def _listening(self) -> Generator[None, None, None]:
        """Set `_traffic` at each change of the ledger, until the block ends."""
        self.ledger.listeners.append(self._traffic.set)
        try:
            yield
        finally:
            with suppress(ValueError):  # when the engine ends, the listeners are reset
                self.ledger.listeners.remove(self._traffic.set)

    async def _pause(self, idle_s: float) -> None:
        """Return after `idle_s` seconds in which the worker was ready and had no request."""
        while True:
            self._traffic.clear()
            has_come = await wait_for(self.clock, self._traffic, idle_s)
            if not has_come and not self.ledger.unfinished and self.readiness.state is State.READY:
                return

    async def _verify(self) -> None:
        """Compare the saved result with a short measurement; measure anew if they differ much."""
        saved = self.result
        assert saved is not None
        measured = await self._measured(
            runs=None,
            concurrency=saved.concurrency,
            target_s=VERIFY_S,
            warm_up=False,
            workload_per_unit=saved.workload_per_unit,
        )
        if abs(measured.perf - saved.perf) <= OFF_BY * saved.perf:
            log.info("benchmark: the saved result is confirmed by %g workload/s", measured.perf)
            return
        log.warning(
            "benchmark: saved were %g workload/s, but now it is %g: measuring anew", saved.perf, measured.perf
        )
        await self._measure_anew()

    async def _measure_anew(self) -> None:
        await self._measure(await self.inputs())

    async def inputs(self) -> BenchmarkInputs:
        """The inputs of the result. Raises `BenchmarkFailed` when the handler's payload can't be made."""
        request = self.request
        handler = request.handler
        samples = [request.make_payload(), request.make_payload()]
        messages = [result_or_error(partial(handler.generate_payload_json, sample)) for sample in samples]
        endpoint = result_or_error(lambda: handler.endpoint)  # after a payload, which may determine it
        return BenchmarkInputs(
            handler=handler.benchmark_name,
            endpoint=endpoint if isinstance(endpoint, str) else None,
            concurrency=handler.benchmark_concurrency,
            runs=handler.benchmark_runs,
            model_url=request.server.url,
            model_name=self.model_name,
            gpus=await in_thread(benchmark_store.gpus),
            payload_shape={
                "shape": payload_shape(None if isinstance(messages[0], Exception) else messages[0]),
                # None for random payloads of different sizes, which are identified by their shape only.
                "workload": _same(request.count_workload(sample) for sample in samples),
                "model": _same(_model_in(message) for message in messages),
            },
        )


def _same(values: Iterable[Any]) -> Any:
    """The value that all of `values` are equal to, or None if they differ."""
    first, *others = values
    return first if all(other == first for other in others) else None


def _model_in(message: Any) -> str | None:
    """The name in the field `model`, which requests to OpenAI's API have, or None."""
    name = cast("dict[str, Any]", message).get("model") if isinstance(message, dict) else None
    return name if isinstance(name, str) else None
