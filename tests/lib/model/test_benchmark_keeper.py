"""When the benchmark runs, its requests, and its error messages."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web

from lib.metrics import Ledger, WorkloadCounter
from lib.model.benchmark import Measurement
from lib.model.benchmark_keeper import RETRY_S, BenchmarkKeeper
from lib.model.benchmark_request import BenchmarkRequest
from lib.model.benchmark_store import FILE_NAME, OLD_FILE_NAME
from lib.model.connection import ModelServer
from lib.model.readiness import Cause, Readiness, ReadySignal, State
from tests.fakes.model_server import MaliciousModel, malicious_model
from tests.fakes.worker import Job, JobHandler
from tests.guard import GUARD_S
from tests.manual_clock import ManualClock

# The first payload after the warm-up's: two more are made for their shape.
FIRST_MEASURED = 4


@dataclass
class BenchmarkHandler(JobHandler):
    """A handler whose benchmark payloads are `jobs` in turn; an exception among them is raised.

    `names` is the model in each payload. `at_payload` maps a number of payloads to a function that is called
    when that number has been made.
    """

    names: str = "named"
    jobs: list[Any] = field(default_factory=list[Any])
    at_payload: dict[int, Callable[[], None]] = field(default_factory=dict[int, "Callable[[], None]"])
    made: int = 0

    def make_benchmark_payload(self) -> Job:
        self.made += 1
        self.at_payload.get(self.made, _nothing)()
        job = self.jobs[(self.made - 1) % len(self.jobs)] if self.jobs else Job(10.0)
        if isinstance(job, Exception):
            raise job
        return job

    def generate_payload_json(self, payload: Job) -> dict[str, Any]:
        return {"model": self.names, **payload.generate_payload_json()}


def _nothing() -> None:
    return None


class LocalAnswers(BenchmarkHandler):
    """Computes its answers itself, without a model server."""

    @asynccontextmanager
    async def call_model(self, model: Any, payload: Any) -> AsyncGenerator[Any, None]:
        yield web.json_response({"error": "no such voice"}, status=500)


@dataclass
class Benchmarking:
    """A model server, and the keeper that measures it."""

    model: MaliciousModel
    readiness: Readiness
    clock: ManualClock
    keeper: BenchmarkKeeper

    async def until(self, state: State) -> None:
        with anyio.fail_after(GUARD_S):
            await self.readiness.until(lambda: self.readiness.state is state)


@asynccontextmanager
async def benchmarking(
    tmp_path: Path,
    handler: BenchmarkHandler,
    *,
    loaded: bool = True,
    model_name: str = "tiny",
    model: MaliciousModel | None = None,
) -> AsyncGenerator[Benchmarking, None]:
    """Run a keeper, with a clock that only the test advances."""
    clock = ManualClock()
    async with AsyncExitStack() as stack:
        model = model or await stack.enter_async_context(malicious_model())
        server = await stack.enter_async_context(ModelServer(model.url))
        readiness = Readiness([ReadySignal.LOG], False, clock)
        keeper = BenchmarkKeeper(
            BenchmarkRequest(handler, server, WorkloadCounter("Bench").count),
            readiness,
            Ledger(clock),
            max_concurrency=None,
            model_name=model_name,
            directory=tmp_path,
            target_s=20.0,
            time_limit_s=300.0,
            clock=clock,
        )
        async with anyio.create_task_group() as tasks:
            if loaded:
                readiness.note_signal(ReadySignal.LOG, "loaded")
            tasks.start_soon(keeper.keep)
            yield Benchmarking(model, readiness, clock, keeper)
            tasks.cancel_scope.cancel()


def handler_for(path: str, runs: int = 1, concurrency: int | None = 2, **options: Any) -> BenchmarkHandler:
    return BenchmarkHandler(runs, path=path, benchmark_concurrency=concurrency, **options)


async def test_nothing_is_measured_before_the_model_is_loaded(tmp_path: Path) -> None:
    async with benchmarking(tmp_path, handler_for("/echo"), loaded=False) as here:
        await anyio.wait_all_tasks_blocked()
        assert here.model.requests == []
        here.readiness.note_signal(ReadySignal.LOG, "loaded")
        await here.until(State.READY)
    assert len(here.model.requests) >= 3  # the warm-up, and two at once


@pytest.mark.parametrize("path", ["/held", "/stream"])
async def test_a_request_is_timed_to_the_last_byte_of_its_answer(tmp_path: Path, path: str) -> None:
    handler = handler_for(path)
    async with benchmarking(tmp_path, handler) as here:
        here.model.release()
        handler.at_payload[FIRST_MEASURED] = here.model.hold
        await here.model.until(lambda: len(here.model.requests) == 3)
        await anyio.wait_all_tasks_blocked()  # the headers of a stream have arrived
        here.clock.advance(5.0)
        assert here.readiness.state is State.BENCHMARKING
        here.model.release()
        await here.until(State.READY)
    assert here.readiness.max_perf == 2 * 10.0 / 5.0


@pytest.mark.parametrize("path", ["/accepted", "/empty", "/gzip_stream"])
async def test_every_2xx_counts(tmp_path: Path, path: str) -> None:
    async with benchmarking(tmp_path, handler_for(path)) as here:
        await here.until(State.READY)
        assert here.readiness.max_perf > 0


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/error500", "/error500 answered 500: <h1>CUDA out of memory</h1>"),
        ("/error422", '422: {"detail": "no such parameter"}'),
        ("/redirect", "307"),
        ("/close", "could not be reached"),
        ("/cut_whole", "the model server's answer broke off"),
        ("/cut_stream", "the model server's answer broke off"),
    ],
)
async def test_without_any_success_the_error_has_the_model_servers_message(
    tmp_path: Path, path: str, message: str
) -> None:
    async with benchmarking(tmp_path, handler_for(path, runs=100)) as here:
        await here.until(State.ERRORED)
        assert here.readiness.error_msg.startswith("no request of the benchmark succeeded: ")
        assert message in here.readiness.error_msg
        assert here.readiness.max_perf == 0.0
    assert len(here.model.requests) <= 3
    assert not (tmp_path / FILE_NAME).exists()


async def test_an_error_in_an_answer_that_the_handler_computes_has_a_message_too(tmp_path: Path) -> None:
    async with benchmarking(tmp_path, LocalAnswers(1, benchmark_concurrency=2)) as here:
        await here.until(State.ERRORED)
        assert "no such voice" in here.readiness.error_msg


async def test_a_payload_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    async with benchmarking(
        tmp_path, handler_for("/echo", jobs=[OSError("no such file: voice.wav")])
    ) as here:
        await here.until(State.ERRORED)
        assert "no such file: voice.wav" in here.readiness.error_msg


async def test_a_failed_benchmark_is_tried_again(tmp_path: Path) -> None:
    async with benchmarking(tmp_path, handler_for("/echo")) as here:
        here.model.fail_status = 500
        await here.until(State.ERRORED)
        here.model.fail_status = None
        await here.clock.wait_for_timer(RETRY_S)
        here.clock.advance(RETRY_S)
        await here.until(State.READY)


async def test_after_a_new_loaded_line_a_failed_benchmark_is_tried_again_immediately(tmp_path: Path) -> None:
    async with benchmarking(tmp_path, handler_for("/echo")) as here:
        here.model.fail_status = 500
        await here.until(State.ERRORED)
        here.model.fail_status = None
        here.readiness.note_signal(ReadySignal.LOG, "loaded")
        await here.until(State.READY)


async def test_an_error_ends_the_benchmark_which_runs_again_after_the_next_loaded_line(
    tmp_path: Path,
) -> None:
    async with benchmarking(tmp_path, handler_for("/held")) as here:
        await here.model.until(lambda: here.model.working == 1)
        here.readiness.set_error(Cause.LOG, "CUDA error")
        await here.model.until(lambda: here.model.cancelled == 1)
        assert here.readiness.error_msg == "CUDA error"
        here.model.release()
        here.readiness.note_signal(ReadySignal.LOG, "loaded")
        await here.until(State.READY)
    assert len(here.model.requests) >= 4


async def test_at_least_as_many_end_as_are_in_flight(tmp_path: Path) -> None:
    async with benchmarking(tmp_path, handler_for("/echo", runs=0)) as here:
        await here.until(State.READY)
    assert len(here.model.requests) >= 3


async def test_without_a_fixed_concurrency_the_best_is_searched_for(tmp_path: Path) -> None:
    async with benchmarking(tmp_path, handler_for("/echo", concurrency=None)) as here:
        while here.readiness.state is not State.READY:
            here.clock.advance(0.02)
            await anyio.lowlevel.checkpoint()
    assert here.model.most_working > 1


# Saved results


async def test_a_saved_result_is_used_for_the_same_inputs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lib.model.benchmark_keeper")
    async with malicious_model() as model:
        async with benchmarking(tmp_path, handler_for("/echo"), model=model) as here:
            await here.until(State.READY)
        sent, perf = len(model.requests), here.readiness.max_perf
        assert json.loads((tmp_path / FILE_NAME).read_text())["perf"] == perf
        async with benchmarking(tmp_path, handler_for("/echo"), model=model) as here:
            await here.until(State.READY)
        assert (len(model.requests), here.readiness.max_perf) == (sent, perf)
    assert f"saved benchmark: {perf:g} workload/s" in caplog.text
    assert "measured at 20" in caplog.text


async def test_requests_that_failed_are_told_beside_the_result(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def measured(*_: object) -> Measurement:
        return Measurement(7.0, 1, 0.1, 1.0, succeeded=3, failed=2, last_message="HTTP 500: broken GPU")

    monkeypatch.setattr(BenchmarkKeeper, "measurement", measured)
    async with benchmarking(tmp_path, handler_for("/echo")) as here:
        await here.until(State.READY)
    assert "benchmark: 2 of 5 requests failed, the last with: HTTP 500: broken GPU" in caplog.text


@pytest.mark.parametrize(
    ("handler", "model_name"),
    [
        (handler_for("/echo"), "large"),
        (handler_for("/echo", jobs=[Job(99.0)]), "tiny"),
        (handler_for("/echo", jobs=[Job(10.0, {"voice": "alto"})]), "tiny"),
        (handler_for("/echo", names="other"), "tiny"),
        (handler_for("/accepted"), "tiny"),
        (handler_for("/echo", runs=2), "tiny"),
        (handler_for("/echo", concurrency=3), "tiny"),
    ],
    ids=["model", "workload", "payload", "model of the payload", "endpoint", "runs", "concurrency"],
)
async def test_with_other_inputs_it_is_measured_again(
    tmp_path: Path, handler: BenchmarkHandler, model_name: str
) -> None:
    async with malicious_model() as model:
        async with benchmarking(tmp_path, handler_for("/echo"), model=model) as here:
            await here.until(State.READY)
        sent = len(model.requests)
        async with benchmarking(tmp_path, handler, model_name=model_name, model=model) as here:
            await here.until(State.READY)
        assert len(model.requests) > sent


async def test_with_another_model_server_it_is_measured_again(tmp_path: Path) -> None:
    for _ in range(2):
        async with benchmarking(tmp_path, handler_for("/echo")) as here:
            await here.until(State.READY)
        assert len(here.model.requests) >= 3


async def test_the_number_in_has_benchmark_is_used(tmp_path: Path) -> None:
    (tmp_path / OLD_FILE_NAME).write_text("123.5\n")
    async with benchmarking(tmp_path, handler_for("/echo")) as here:
        await here.until(State.READY)
        assert here.readiness.max_perf == 123.5
        assert here.model.requests == []
