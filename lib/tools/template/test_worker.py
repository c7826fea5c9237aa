"""Tests of the worker as clients see it: a process, with a local engine and a fake model server."""

import asyncio
import json
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from lib.testing import Trial, trial

WORKER = Path(__file__).with_name("worker.py")
REQUEST = {"prompt": "Count", "max_words": 3}


async def fake_generate(request: web.Request) -> web.Response:
    sent: dict[str, Any] = await request.json()
    return web.json_response({"response": f"{sent['prompt']}: one two three"})


async def fake_generate_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    for word in ("one", "two", "three"):
        await response.write(json.dumps({"word": word}).encode() + b"\n")
    return response


async def health(_request: web.Request) -> web.Response:
    return web.Response(text="ok")


async def with_worker(check: Any) -> None:
    """Start a fake model server and the worker, and run `check` once the worker is ready."""
    app = web.Application()
    app.add_routes([web.get("/health", health), web.post("/generate", fake_generate)])
    app.add_routes([web.post("/generate_stream", fake_generate_stream)])
    async with TestServer(app) as server, trial(WORKER, MODEL_SERVER_URL=str(server.make_url(""))) as worker:
        await check(worker)


def test_generate() -> None:
    async def check(worker: Trial) -> None:
        status, body = await worker.post("/generate", REQUEST)
        assert (status, json.loads(body)) == (200, {"response": "Count: one two three"})

    asyncio.run(with_worker(check))


def test_generate_stream() -> None:
    async def check(worker: Trial) -> None:
        words = [json.loads(line)["word"] async for line in worker.lines("/generate_stream", REQUEST)]
        assert words == ["one", "two", "three"]

    asyncio.run(with_worker(check))
