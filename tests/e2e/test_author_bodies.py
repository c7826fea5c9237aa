"""Answers whose body is an author's generator that raises: what the client gets is well-formed HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import MultipartWriter, web
from aiohttp.payload import get_payload

from lib.backend import Backend
from lib.runtime.settings import CarrierKind
from tests.fakes.plain_handler import PlainHandler
from tests.fakes.raw_client import connected
from tests.fakes.worker import Setup
from tests.system import with_worker_task


async def parts(count: int) -> AsyncGenerator[bytes, None]:
    """Yield `count` parts, then raise."""
    for _ in range(count):
        yield b"part"
    raise RuntimeError("a bug")


async def generator(request: web.Request) -> web.StreamResponse:
    return web.Response(body=parts(0))


async def late_generator(request: web.Request) -> web.StreamResponse:
    return web.Response(body=parts(1))


async def compressed_generator(request: web.Request) -> web.StreamResponse:
    response = web.Response(body=parts(0))
    response.enable_compression(web.ContentCoding.gzip)
    return response


async def generator_with_a_length(request: web.Request) -> web.StreamResponse:
    return web.Response(body=parts(0), headers={"Content-Length": "3"})


class AnsweringHandler(PlainHandler):
    """Answers with the function that the payload names."""

    async def generate_client_response(
        self, client_request: web.Request, model_response: Any
    ) -> web.StreamResponse:
        return await globals()[client_request["payload"]["function"]](client_request)


async def guarded(request: web.Request) -> web.StreamResponse:
    return await globals()[request["payload"]["function"]](request)


def build(model_url: str, setup: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
    backend = Backend(model_url, healthcheck_url=setup.health)
    return backend, [
        web.post("/echo", backend.create_handler(AnsweringHandler())),
        web.post("/guarded", backend.guard(guarded)),
    ]


@pytest.mark.parametrize("path", ["/echo", "/guarded"])
@pytest.mark.parametrize("carrier", ["direct", "aiohttp"])
@pytest.mark.parametrize("function", [generator, compressed_generator, generator_with_a_length])
async def test_an_answer_that_fails_before_its_first_byte_is_replaced_by_a_well_formed_one(
    tmp_path: Path, carrier: CarrierKind, path: str, function: Any
) -> None:
    async with (
        with_worker_task(tmp_path, Setup(health="/health"), make=build, carrier=carrier) as system,
        connected(system.url) as client,
    ):
        for _ in range(2):  # the connection is in step
            await client.post(path, {"auth_data": system.auth(), "payload": {"function": function.__name__}})
            head, body = await client.answer()
            assert head.status == 500
            assert int(head.headers["content-length"]) == len(body)
            assert not {"transfer-encoding", "content-encoding"} & set(head.names)
            assert json.loads(body)["error"] == "internal error"
        await client.send(b"GET /ping HTTP/1.1\r\nHost: w\r\n\r\n")
        assert (await client.answer())[1] == b"pong"
        await system.engine.wait_for(lambda: len(system.engine.finished) == 2)
        assert {f.request.status for f in system.engine.finished} == {"Error"}


@pytest.mark.parametrize("path", ["/echo", "/guarded"])
async def test_a_generator_that_raises_later_breaks_the_connection(tmp_path: Path, path: str) -> None:
    async with (
        with_worker_task(tmp_path, Setup(health="/health"), make=build) as system,
        connected(system.url) as client,
    ):
        payload = {"function": late_generator.__name__}
        await client.post(path, {"auth_data": system.auth(), "payload": payload})
        assert (await client.head()).status == 200
        assert await client.rest() == b"4\r\npart\r\n"


ERRORS = {"bug": ValueError, "other server": ConnectionResetError}


class Job:
    """The steps of a generator that goes on although the client of `request` leaves."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.begun = asyncio.Event()

    async def parts(self, request: web.Request, error: str) -> AsyncGenerator[bytes, None]:
        self.steps.append("begin")
        self.begun.set()
        yield b"first"
        await self.left(request)
        for _ in range(3):
            yield b"part"
        if error:
            raise ERRORS[error]("failed")
        self.steps.append("end")

    async def left(self, request: web.Request) -> None:
        """Return once the worker knows that the client of `request` has left."""
        self.begun.set()
        while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110 - no event
            await asyncio.sleep(0)


class FinishingJobs(PlainHandler):
    """Streams its `job`, from `call_model` or from `generate_client_response`."""

    job: Job

    async def answer(self, payload: dict[str, Any], request: web.Request) -> web.Response:
        if payload["leaves"] == "before the body":
            await self.job.left(request)
        body: Any = self.job.parts(request, payload["error"])
        if payload["in_form"]:
            form = MultipartWriter("mixed")
            form.append_payload(get_payload(body))
            body = form
        return web.Response(body=body)

    @asynccontextmanager
    async def call_model(self, model: Any, payload: Any) -> AsyncGenerator[Any, None]:
        if payload["by"] == "call_model":
            yield await self.answer(payload, model.client_request)
        else:
            async with super().call_model(model, payload) as answer:
                yield answer

    async def generate_client_response(
        self, client_request: web.Request, model_response: Any
    ) -> web.StreamResponse:
        return await self.answer(client_request["payload"], client_request)


@pytest.mark.parametrize("error", ["", *ERRORS])
@pytest.mark.parametrize("in_form", [False, True])
@pytest.mark.parametrize("leaves", ["before the body", "during the body"])
@pytest.mark.parametrize("by", ["call_model", "generate_client_response"])
async def test_with_on_disconnect_finish_a_generator_runs_to_its_end_without_its_client(
    tmp_path: Path, by: str, leaves: str, in_form: bool, error: str
) -> None:
    handler = FinishingJobs(on_disconnect="finish")
    handler.job = job = Job()

    def make(model_url: str, setup: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
        backend = Backend(model_url, healthcheck_url=setup.health)
        return backend, [web.post("/echo", backend.create_handler(handler))]

    payload = {"by": by, "leaves": leaves, "in_form": in_form, "error": error}
    async with with_worker_task(tmp_path, Setup(health="/health"), make=make) as system:
        async with connected(system.url) as client:
            await client.post("/echo", {"auth_data": system.auth(), "payload": payload})
            await job.begun.wait()
            client.leave()
        await system.engine.wait_for(lambda: len(system.engine.finished) == 1)
        assert job.steps == (["begin"] if error else ["begin", "end"])
        assert system.engine.finished[0].request.status == ("Error" if error else "Success")
