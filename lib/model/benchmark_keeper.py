"""The times at which the benchmark runs, and its requests (docs/writing-a-worker.md, "The benchmark").

Owns the decision to measure, to try again or to use a saved result, and the sending of one request. The
rounds are in benchmark.py, the file with the result is in benchmark_store.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import aiohttp
import anyio
from aiohttp import web
from anyio.to_thread import run_sync as in_thread

from lib.errors import AnswerCut, WorkerError, async_result_or_error, describe_error, result_or_error
from lib.model import benchmark_store
from lib.model.benchmark import Attempt, BenchmarkFailed, measure
from lib.model.benchmark_store import BenchmarkInputs, payload_shape
from lib.model.caller import ModelCaller
from lib.model.connection import ModelServer
from lib.model.readiness import Cause, Readiness
from lib.runtime.clock import Clock

log = logging.getLogger(__name__)

# Seconds until a failed benchmark is tried again; a new "loaded" line causes that immediately.
RETRY_S = 60.0
# The part of the model server's error message that is reported.
MAX_MESSAGE_BYTES = 2000


class Benchmarked(Protocol):
    """A handler, as far as the benchmark calls it; `lib.data_types.EndpointHandler` describes each member."""

    @property
    def endpoint(self) -> str | None: ...

    @property
    def benchmark_name(self) -> str: ...

    @property
    def benchmark_method(self) -> str: ...

    @property
    def benchmark_runs(self) -> int: ...

    @property
    def benchmark_concurrency(self) -> int | None: ...

    @property
    def benchmark_warmup(self) -> bool: ...

    def make_benchmark_payload(self) -> Any: ...

    def generate_payload_json(self, payload: Any, /) -> Any: ...

    def call_model(self, model: ModelCaller, payload: Any, /) -> AbstractAsyncContextManager[Any]: ...


@dataclass
class BenchmarkKeeper:
    """Sets the throughput of `readiness`: a saved result in `directory`, or a measurement with `handler`.

    `time_limit_s` limits one measurement. `max_concurrency` None: no limit.
    """

    handler: Benchmarked
    server: ModelServer
    readiness: Readiness
    count_workload: Callable[[Any], float]
    max_concurrency: int | None
    model_name: str
    directory: Path
    time_limit_s: float
    clock: Clock

    async def keep(self) -> None:
        """Measure once the model is loaded, and again after each failure, until it succeeds."""
        while not self.readiness.measured:
            await self.readiness.until(self._may_measure)
            async with anyio.create_task_group() as group:
                group.start_soon(self._measure_until_it_succeeds)
                await self.readiness.until(lambda: self.readiness.measured or not self._may_measure())
                group.cancel_scope.cancel()

    def _may_measure(self) -> bool:
        """Whether the model is loaded, and there is no error but the benchmark's own."""
        others = [c for c in Cause if c is not Cause.BENCHMARK and self.readiness.has_error(c)]
        return self.readiness.loaded and not others

    async def _measure_until_it_succeeds(self) -> None:
        while not self.readiness.measured:
            try:
                await self._measure()
            except BenchmarkFailed as e:
                self.readiness.set_error(Cause.BENCHMARK, str(e))
                await self.readiness.until(lambda: not self.readiness.has_error(Cause.BENCHMARK), RETRY_S)

    async def _measure(self) -> None:
        """Use a saved result, or measure and save the result. Raises `BenchmarkFailed`."""
        inputs = await self._inputs()
        saved = await in_thread(benchmark_store.load, self.directory, inputs)
        if saved is not None:
            self.readiness.set_max_perf(saved, f"saved benchmark: {saved:g} workload/s")
            return
        measured = await measure(
            self.attempt,
            runs=self.handler.benchmark_runs,
            concurrency=inputs.concurrency,
            max_concurrency=self.max_concurrency,
            time_limit_s=self.time_limit_s,
            clock=self.clock,
            warm_up=self.handler.benchmark_warmup,
        )
        await in_thread(benchmark_store.save, self.directory, inputs, measured.perf)
        self.readiness.set_max_perf(measured.perf, f"benchmark: {measured.perf:g} workload/s")

    async def _inputs(self) -> BenchmarkInputs:
        """The inputs of the result. Raises `BenchmarkFailed` when the handler's payload can't be made."""
        samples = [self._payload(), self._payload()]
        messages = [
            result_or_error(partial(self.handler.generate_payload_json, sample)) for sample in samples
        ]
        endpoint = result_or_error(lambda: self.handler.endpoint)  # after a payload, which may determine it
        return BenchmarkInputs(
            handler=self.handler.benchmark_name,
            endpoint=endpoint if isinstance(endpoint, str) else None,
            concurrency=self.handler.benchmark_concurrency,
            runs=self.handler.benchmark_runs,
            model_url=self.server.url,
            model_name=self.model_name,
            gpus=await in_thread(benchmark_store.gpus),
            payload_shape={
                "shape": payload_shape(None if isinstance(messages[0], Exception) else messages[0]),
                # None for random payloads of different sizes, which are identified by their shape only.
                "workload": _same(self.count_workload(sample) for sample in samples),
                "model": _same(_model_in(message) for message in messages),
            },
        )

    def _payload(self) -> Any:
        payload = result_or_error(self.handler.make_benchmark_payload)
        if isinstance(payload, Exception):
            raise BenchmarkFailed(f"make_benchmark_payload raised {payload!r}") from payload
        return payload

    async def attempt(self) -> Attempt:
        """Send one request of the benchmark. Raises `BenchmarkFailed` when its payload can't be made."""
        payload = self._payload()
        workload = self.count_workload(payload)
        result = await async_result_or_error(self._call(payload))
        if isinstance(result, Exception):
            known = isinstance(result, (WorkerError, AnswerCut))
            return Attempt(False, workload, describe_error(result) if known else repr(result))
        status, text, source = result
        ok = 200 <= status < 300
        return Attempt(ok, workload, f"{status}: {text}" if ok else f"{source}{status}: {text}")

    async def _call(self, payload: Any) -> tuple[int, str, str]:
        """Send `payload` and read the answer to its last byte.

        Returns its status, the beginning of its body, and "POST URL answered " as the beginning of a message,
        or "" if it is not an answer of the model server.
        """
        caller = ModelCaller(self.server, {}, method=self.handler.benchmark_method)
        async with self.handler.call_model(caller, payload) as answer:
            if isinstance(answer, web.StreamResponse):
                return answer.status, _text(answer), ""
            by_server = isinstance(answer, aiohttp.ClientResponse)
            source = f"{answer.method} {answer.url} answered " if by_server else ""
            return answer.status, await _read(answer), source


def _same(values: Iterable[Any]) -> Any:
    """The value that all of `values` are equal to, or None if they differ."""
    first, *others = values
    return first if all(other == first for other in others) else None


def _model_in(message: Any) -> str | None:
    """The name in the field `model`, which requests to OpenAI's API have, or None."""
    name = cast("dict[str, Any]", message).get("model") if isinstance(message, dict) else None
    return name if isinstance(name, str) else None


def _text(answer: web.StreamResponse) -> str:
    body = answer.body if isinstance(answer, web.Response) else None
    return body[:MAX_MESSAGE_BYTES].decode(errors="replace") if isinstance(body, bytes) else ""


async def _read(answer: aiohttp.ClientResponse) -> str:
    beginning = bytearray()
    while chunk := await answer.content.readany():
        if len(beginning) < MAX_MESSAGE_BYTES:
            beginning += chunk[:MAX_MESSAGE_BYTES]
    return bytes(beginning[:MAX_MESSAGE_BYTES]).decode(errors="replace")
