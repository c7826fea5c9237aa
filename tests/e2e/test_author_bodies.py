"""Answers whose body is an author's generator that raises: what the client gets is well-formed HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

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
