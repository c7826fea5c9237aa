"""The benchmark's requests to handlers that make their answers in their own ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from aiohttp import MultipartWriter, web
from aiohttp.payload import get_payload

from lib.model.benchmark_request import BenchmarkRequest
from lib.model.connection import ModelServer
from lib.model.flow import FlowRequest, send_alone
from lib.runtime.clock import SystemClock
from tests.authors.own_answers import PlainHandler, ReadingHandler, YieldingHandler
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


class FormHandler(PlainHandler):
    """Makes its answer itself: a form with a part that fails in its middle."""

    @asynccontextmanager
    async def call_model(self, model: Any, payload: Any) -> AsyncGenerator[Any, None]:
        form = MultipartWriter("mixed")
        form.append_payload(get_payload(self.parts()))
        yield web.Response(body=form)

    async def parts(self) -> AsyncGenerator[bytes, None]:
        yield b"four"
        raise RuntimeError("out of memory")


async def test_the_benchmark_reads_the_parts_of_a_form() -> None:
    async with ModelServer("") as server:
        request, units = BenchmarkRequest(FormHandler(), server, lambda payload: 1.0), list[float]()
        attempt = await request.send(FlowRequest(lambda _, progress: units.append(progress), began_s=0.0))
        assert (attempt.ok, attempt.message) == (False, "RuntimeError('out of memory')")
        assert units == [4]
