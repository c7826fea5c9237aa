"""The unmodified OpenAI client, through a worker, with a token as its API key."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lib.backend import Backend
from lib.uploads import Upload
from lib.worker import HandlerConfig, Worker, WorkerConfig
from tests.fakes.worker import Setup
from tests.system import System, with_worker_task

WORDS = ["Down", " the", " rabbit", " hole"]
HELLO: Any = [{"role": "user", "content": "Where to?"}]


async def chat(request: web.Request) -> web.StreamResponse:
    """Answer with a chat completion, whole or as a stream of one word an event."""
    asked = await request.json()
    made = {"id": "c1", "created": 1, "model": asked["model"]}
    if not asked.get("stream"):
        message = {"role": "assistant", "content": "".join(WORDS)}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return web.json_response({**made, "object": "chat.completion", "choices": [choice]})
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for word in WORDS:
        choice = {"index": 0, "delta": {"content": word}}
        event = {**made, "object": "chat.completion.chunk", "choices": [choice]}
        await response.write(f"data: {json.dumps(event)}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    return response


async def transcriptions(request: web.Request) -> web.Response:
    """Answer with the form's content as text."""
    form = await request.post()
    file = form["file"]
    assert isinstance(file, web.FileField)
    digest = hashlib.sha256(file.file.read()).hexdigest()
    return web.json_response({"text": f"{form['model']} {file.filename} {digest}"})


async def models(request: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "tiny", "object": "model"}]})


async def refuse(request: web.Request) -> web.Response:
    return web.json_response({"error": {"message": "no embeddings here", "type": "NotFound"}}, status=404)


def tokens(payload: dict[str, Any]) -> float:
    return float(payload.get("max_tokens", 256))


@asynccontextmanager
async def with_client(tmp_path: Path) -> AsyncGenerator[tuple[System, openai.AsyncOpenAI], None]:
    app = web.Application(client_max_size=2**30)
    app.add_routes(
        [
            web.post("/v1/chat/completions", chat),
            web.post("/v1/audio/transcriptions", transcriptions),
            web.post("/v1/embeddings", refuse),
            web.get("/v1/models", models),
        ]
    )
    async with TestServer(app) as server:
        url = str(server.make_url(""))

        def make(_: str, setup: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
            handlers = [
                HandlerConfig(
                    "/v1/chat/completions", allow_parallel_requests=True, workload_calculator=tokens
                ),
                HandlerConfig("/v1/embeddings"),
                HandlerConfig("/v1/models", method="GET"),
                HandlerConfig("/v1/audio/transcriptions", payload_class=Upload),
            ]
            config = WorkerConfig(url, handlers=handlers, model_healthcheck_url="/v1/models")
            worker = Worker(config)
            return worker.backend, worker.routes

        async with (
            with_worker_task(tmp_path, scheme="url", make=make) as system,
            openai.AsyncOpenAI(base_url=system.url + "/v1", api_key=system.bearer(), max_retries=0) as client,
        ):
            yield system, client


async def test_completions_and_streams_with_one_token(tmp_path: Path) -> None:
    async with with_client(tmp_path) as (system, client):
        whole = await client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=5)
        assert whole.choices[0].message.content == "Down the rabbit hole"
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=7, stream=True)
        assert [chunk.choices[0].delta.content async for chunk in stream] == WORDS
        assert [model.id async for model in client.models.list()] == ["tiny"]
        await system.reported(served=5.0 + 7.0 + 100.0)


async def test_an_upload_reaches_the_model_server(tmp_path: Path) -> None:
    async with with_client(tmp_path) as (system, client):
        sound = bytes(range(256)) * 10_000
        heard = await client.audio.transcriptions.create(model="tiny", file=("a b.wav", sound))
        assert heard.text == f"tiny a b.wav {hashlib.sha256(sound).hexdigest()}"
        await system.reported(served=100.0)


async def test_many_concurrent_requests_with_one_token(tmp_path: Path) -> None:
    async with with_client(tmp_path) as (system, client):
        calls = [
            client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=1) for _ in range(50)
        ]
        answers = await asyncio.gather(*calls)
        assert {answer.choices[0].message.content for answer in answers} == {"Down the rabbit hole"}
        await system.reported(served=50.0)
        assert system.totals.new_load == 50.0


async def test_refusals_raise_the_clients_own_errors(tmp_path: Path) -> None:
    async with with_client(tmp_path) as (system, client):
        with pytest.raises(openai.NotFoundError, match="no embeddings here"):
            await client.embeddings.create(model="tiny", input="x")
        forged = client.with_options(api_key=system.bearer(url="http://elsewhere:1"))
        with pytest.raises(openai.AuthenticationError) as refused:
            await forged.models.list()
        assert "another worker's URL" in refused.value.response.text
        keyless = client.with_options(api_key="sk-of-elsewhere")
        with pytest.raises(openai.UnprocessableEntityError) as invalid:
            await keyless.models.list()
        assert "authenticate by a header" in invalid.value.response.text
