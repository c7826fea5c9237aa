"""The worker as its clients see it: a process of its own, between a local engine and a small model server."""

import asyncio
import json
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from lib.testing import Trial, trial

WORKER = Path(__file__).with_name("worker.py")
REQUEST = {"prompt": "Count", "max_words": 3}


async def answer(request: web.Request) -> web.Response:
    sent: dict[str, Any] = await request.json()
    return web.json_response({"response": f"{sent['prompt']}: one two three"})


async def answer_in_parts(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    for word in ("one", "two", "three"):
        await response.write(json.dumps({"word": word}).encode() + b"\n")
    return response


async def health(_request: web.Request) -> web.Response:
    return web.Response(text="ok")


async def model_server_and(check: Any) -> None:
    """Run `check` with the worker, once it is ready in front of a model server as small as can be."""
    app = web.Application()
    app.add_routes([web.get("/health", health), web.post("/generate", answer)])
    app.add_routes([web.post("/generate_stream", answer_in_parts)])
    async with TestServer(app) as server, trial(WORKER, MODEL_SERVER_URL=str(server.make_url(""))) as worker:
        await check(worker)


def test_an_answer_comes_whole() -> None:
    async def check(worker: Trial) -> None:
        status, body = await worker.post("/generate", REQUEST)
        assert (status, json.loads(body)) == (200, {"response": "Count: one two three"})

    asyncio.run(model_server_and(check))


def test_an_answer_is_streamed() -> None:
    async def check(worker: Trial) -> None:
        words = [json.loads(line)["word"] async for line in worker.lines("/generate_stream", REQUEST)]
        assert words == ["one", "two", "three"]

    asyncio.run(model_server_and(check))
