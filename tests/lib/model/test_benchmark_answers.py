"""The benchmark's requests to handlers that make their answers in their own ways."""

from __future__ import annotations

import asyncio

import anyio

from lib.model.benchmark_request import BenchmarkRequest
from lib.model.connection import ModelServer
from lib.model.flow import FlowRequest, send_alone
from lib.runtime.clock import SystemClock
from tests.authors.own_answers import ReadingHandler, YieldingHandler
from tests.fakes.model_server import malicious_model
from tests.guard import GUARD_S


async def test_the_benchmark_reads_an_answer_that_reads_the_models_to_its_end() -> None:
    async with malicious_model() as model, ModelServer(model.url) as server:
        request, units = BenchmarkRequest(YieldingHandler(), server, lambda payload: 1.0), list[float]()
        job = FlowRequest(lambda _, progress: units.append(progress), began_s=0.0)
        sending = asyncio.create_task(request.send(job))
        model.step()
        await model.until(lambda: len(model.requests) == 1)
        model.release()
        with anyio.fail_after(GUARD_S):
            attempt = await sending
        end = "data: [DONE]\n\n"
        assert (attempt.ok, attempt.message.endswith(end)) == (True, True)
        assert sum(units) == len(attempt.message.removeprefix("200: "))
        assert model.cancelled == 0


async def test_the_benchmark_takes_an_answer_that_was_read_before() -> None:
    async with malicious_model() as model, ModelServer(model.url) as server:
        request = BenchmarkRequest(ReadingHandler(), server, lambda payload: 1.0)
        attempt = await send_alone(request.send, SystemClock())
        assert attempt.ok
        assert "done" in attempt.message
