"""Handlers that read the client's request again, stream the model's answer, or read it before it is sent."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from tests.authors.own_answers import FinishingHandler, declare, make
from tests.fakes.raw_client import connected
from tests.guard import GUARD_S
from tests.system import System, with_worker_task

LARGE = "x" * 2_000_000  # beyond 1 MiB, aiohttp's own limit of a request's body


@asynccontextmanager
async def worker(tmp_path: Path, **settings: Any) -> AsyncGenerator[System, None]:
    async with with_worker_task(tmp_path, make=lambda url, _: make(url), **settings) as system:
        yield system


async def answer_of(system: System, path: str, body: Any, **headers: str) -> tuple[int, bytes]:
    data = body if isinstance(body, (bytes, aiohttp.FormData)) else json.dumps(body).encode()
    sent = io.BytesIO(data) if isinstance(data, bytes) else data  # aiohttp warns of large bodies as bytes
    async with system.http.post(system.url + path, data=sent, headers=headers) as answer:
        return answer.status, await answer.read()


# The client's request


@pytest.mark.parametrize("wanted", ["json", "text", "read twice", "content"])
@pytest.mark.parametrize("padding", ["", "é" * 40_000, LARGE], ids=["small", "medium", "large"])
@pytest.mark.parametrize("payload_first", [True, False])
async def test_a_handler_reads_the_envelope_as_it_came(
    tmp_path: Path, wanted: str, padding: str, payload_first: bool
) -> None:
    async with worker(tmp_path) as system:
        payload = {"wanted": wanted, "padding": padding, "deep": [{"x": 1.0, "y": [None, True]}]}
        parts = {"auth_data": system.auth(), "payload": payload}
        envelope = dict(reversed(parts.items())) if payload_first else parts
        headers = {"X-Wanted": wanted, "Content-Type": "application/json"}
        status, body = await answer_of(system, "/ask", envelope, **headers)
        assert status == 200
        assert json.loads(body) == envelope
        # The handler has removed a field from the payload that it was given.
        assert "wanted" not in json.loads(system.model.requests[-1].body)


async def test_a_small_envelope_is_read_byte_for_byte(tmp_path: Path) -> None:
    async with worker(tmp_path) as system:
        auth = json.dumps(system.auth())
        text = f'{{ "payload" : {{"n": 1e2, "s": "\\u00e9"}},\r\n "auth_data": {auth} }}'.encode()
        assert await answer_of(system, "/ask", text, **{"X-Wanted": "read twice"}) == (200, text)


async def with_request_read(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A middleware that reads the request."""
    assert "payload" in await request.json()
    return await handler(request)


async def with_another_request(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A middleware that replaces the request."""
    return await handler(request.clone(headers={**request.headers, "X-Wanted": "json"}))


@pytest.mark.parametrize("middleware", [with_request_read, with_another_request])
@pytest.mark.parametrize("padding", ["", LARGE], ids=["small", "large"])
async def test_middlewares_and_handlers_read_the_same_request(
    tmp_path: Path, middleware: Any, padding: str
) -> None:
    async with worker(tmp_path) as system:
        assert system.backend is not None
        system.backend.middlewares.append(middleware)
        envelope = {"auth_data": system.auth(), "payload": {"padding": padding}}
        headers = {"X-Wanted": "text", "Content-Type": "application/json"}
        status, body = await answer_of(system, "/ask", envelope, **headers)
        assert (status, json.loads(body)) == (200, envelope)


@pytest.mark.parametrize("padding", ["", LARGE], ids=["small", "large"])
async def test_with_header_authentication_the_body_is_the_payload(tmp_path: Path, padding: str) -> None:
    async with worker(tmp_path) as system:
        payload, headers = {"padding": padding}, {"X-Wanted": "json", "Content-Type": "application/json"}
        status, body = await answer_of(system, "/ask", payload, **headers, **system.header())
        assert (status, json.loads(body)) == (200, payload)


@pytest.mark.parametrize("is_envelope", [True, False])
@pytest.mark.parametrize("padding", ["", LARGE], ids=["small", "large"])
async def test_without_an_engine_the_body_is_read_as_it_came(
    tmp_path: Path, is_envelope: bool, padding: str
) -> None:
    async with worker(tmp_path, engine="none", wait=False) as system:
        assert system.running is not None
        readiness = system.running.readiness
        with anyio.fail_after(GUARD_S):
            await readiness.until(lambda: readiness.state.value == "ready")
        sent = {"padding": padding, "deep": {"x": 1}}
        body = {"auth_data": system.auth(), "payload": sent} if is_envelope else sent
        headers = {"X-Wanted": "json", "Content-Type": "application/json"}
        status, seen = await answer_of(system, "/ask", body, **headers)
        assert (status, json.loads(seen)) == (200, body)


async def test_what_else_of_a_request_handlers_look_at(tmp_path: Path) -> None:
    async with worker(tmp_path) as system:
        envelope = {"auth_data": system.auth(), "payload": {}}
        headers = {"X-Wanted": "facts", "Content-Type": "application/json"}
        status, body = await answer_of(system, "/ask/7?a=b", envelope, **headers)
        seen = {
            "path": "/ask/7",
            "rest": {"id": "7"},
            "query": {"a": "b"},
            "method": "POST",
            "has body": True,
        }
        assert (status, json.loads(body)) == (200, seen)
        envelope = {"auth_data": system.auth(), "payload": {}}
        headers["X-Wanted"] = "post"  # it is no form
        assert await answer_of(system, "/ask", envelope, **headers) == (200, b"[]")
        get = {"X-Wanted": "text", **system.header()}
        async with system.http.get(system.url + "/ask?a=b", headers=get) as answer:
            assert (answer.status, await answer.read()) == (200, b"")


async def test_a_handler_that_finishes_reads_the_request_of_a_client_that_has_left(tmp_path: Path) -> None:
    async with worker(tmp_path) as system:
        envelope = {"auth_data": system.auth(), "payload": {"a": 1}}
        async with connected(system.url) as client:
            await client.post("/finish", envelope)
            await system.model.until(lambda: any(r.path == "/held" for r in system.model.requests))
        assert system.backend is not None
        handler = next(h for h in system.backend.handlers if isinstance(h, FinishingHandler))
        await system.engine.wait_for(lambda: system.last_report.num_requests_working == 1)
        system.model.release()
        await system.reported(served=100.0)
        assert handler.noted == envelope


async def test_a_bare_route_reads_its_request_and_its_uploads(tmp_path: Path) -> None:
    async with worker(tmp_path) as system:
        text = json.dumps({"auth_data": system.auth(), "payload": {"a": 1}}).encode()
        assert await answer_of(system, "/guarded", text) == (200, text)
        sound = bytes(range(256)) * 4096
        headers = {"Content-Type": "audio/wav", **system.header()}
        assert await answer_of(system, "/guarded", sound, **headers) == (200, sound)
        form = aiohttp.FormData({"name": "Ada", "town": "London"}, default_to_multipart=True)
        status, body = await answer_of(system, "/guarded", form, **system.header())
        assert (status, json.loads(body)) == (200, {"name": "Ada", "town": "London"})


# The model's answer


@pytest.mark.parametrize(
    ("how", "token", "end"),
    [
        *((how, b"data: token 0\n\n", b"data: [DONE]\n\n") for how in ("content", "iter_any")),
        ("generator", b"DATA: TOKEN 0\n", b"DATA: [DONE]\n\n"),
        ("iter_chunked", b"data: toke", b"data: [DONE]\n\n"),
    ],
)
async def test_a_body_that_reads_the_models_answer_streams_it(
    tmp_path: Path, how: str, token: bytes, end: bytes
) -> None:
    async with worker(tmp_path) as system, connected(system.url) as client:
        await client.post("/stream", {"auth_data": system.auth(), "payload": {"how": how}})
        system.model.step()
        head = await client.head()
        assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
        assert await client.chunk() == token
        system.model.release()
        rest = b""
        while part := await client.chunk():
            rest += part
        assert rest.endswith(end)
        await system.reported(served=100.0)


async def test_an_answer_of_call_model_that_reads_the_models_answer_streams_it(tmp_path: Path) -> None:
    async with worker(tmp_path) as system, connected(system.url) as client:
        await client.post("/yielded", {"auth_data": system.auth(), "payload": {}})
        system.model.step()
        assert (await client.head()).status == 200
        assert await client.chunk() == b"data: token 0\n\n"
        system.model.release()
        assert await client.chunk() == b"data: [DONE]\n\n"
        assert await client.chunk() == b""
        await system.reported(served=100.0)


async def test_a_streamed_body_is_cut_where_the_models_answer_is(tmp_path: Path) -> None:
    async with worker(tmp_path) as system, connected(system.url) as client:
        await client.post("/cut", {"auth_data": system.auth(), "payload": {}})
        assert (await client.head()).status == 200
        assert await client.chunk() == b"data: token\n\n"
        with pytest.raises(ConnectionError):
            await client.chunk()
        await system.engine.wait_for(lambda: len(system.engine.finished) == 1)
        assert system.engine.finished[0].request.status == "Error"


@pytest.mark.parametrize("path", ["/stream", "/stream_finish"])
async def test_a_body_that_raises_a_connection_error_of_its_own_is_cut_and_errored(
    tmp_path: Path, path: str
) -> None:
    async with worker(tmp_path) as system, connected(system.url) as client:
        await client.post(path, {"auth_data": system.auth(), "payload": {"how": "refused"}})
        system.model.step()
        assert (await client.head()).status == 200
        assert await client.chunk() == b"part"
        with pytest.raises(ConnectionError):
            await client.chunk()
        await system.engine.wait_for(lambda: len(system.engine.finished) == 1)
        assert system.engine.finished[0].request.status == "Error"


async def test_a_client_that_leaves_a_streamed_body_stops_the_model(tmp_path: Path) -> None:
    async with worker(tmp_path) as system:
        async with connected(system.url) as client:
            await client.post("/stream", {"auth_data": system.auth(), "payload": {}})
            system.model.step()
            await client.head()
            await client.chunk()
        await system.engine.wait_for(lambda: len(system.engine.finished) == 1)
        assert system.engine.finished[0].request.status == "Cancelled"
        await system.model.until(lambda: system.model.cancelled == 1)


async def test_a_streamed_body_that_finishes_is_read_to_its_end_without_its_client(tmp_path: Path) -> None:
    async with worker(tmp_path) as system:
        async with connected(system.url) as client:
            await client.post("/stream_finish", {"auth_data": system.auth(), "payload": {}})
            system.model.step()
            await client.head()
            await client.chunk()
        await system.engine.wait_for(lambda: system.last_report.num_requests_working == 1)
        system.model.step()
        system.model.step()
        system.model.release()
        await system.reported(served=100.0)
        assert not system.model.cancelled


@pytest.mark.parametrize("path", ["/read", "/read_both"])
async def test_an_answer_that_was_read_before_is_passed_on_all_the_same(tmp_path: Path, path: str) -> None:
    async with worker(tmp_path) as system:
        status, body = await answer_of(system, path, {"auth_data": system.auth(), "payload": {"done": True}})
        assert status == 200
        assert json.loads(json.loads(body)["body"]) == {"done": True}
        await system.reported(served=100.0)


async def test_a_response_generator_reads_the_request_and_streams_the_answer(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=lambda url, _: declare(url)) as system:
        payload = {"how": "stream"}
        status, streamed = await answer_of(system, "/echo", {"auth_data": system.auth(), "payload": payload})
        assert (status, json.loads(json.loads(streamed)["body"])) == (200, payload)
        payload = {"how": "read"}
        status, body = await answer_of(system, "/echo", {"auth_data": system.auth(), "payload": payload})
        assert (status, json.loads(body)["asked"]) == (200, payload)
        assert json.loads(json.loads(body)["answered"]["body"]) == payload


# Large envelopes


async def test_a_client_of_one_line_sends_a_large_payload_before_auth_data(tmp_path: Path) -> None:
    async with worker(tmp_path) as system:
        envelope = {"payload": {"image": LARGE}, "auth_data": system.auth()}
        assert (await answer_of(system, "/ask", envelope, **{"X-Wanted": "x"}))[0] == 200
        assert system.model.requests[-1].json() == {"image": LARGE}
