"""A model server to begin with: it says words, some at a time. Yours takes its place; then delete this file.

python model_server.py [--port 5001]

POST /generate         {"response": str}
POST /generate_stream  {"word": str} a line, each sent when it is there
GET  /health           200
"""

import argparse
import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

WORDS = (
    "a",
    "blue",
    "boat",
    "dark",
    "far",
    "hill",
    "light",
    "moon",
    "of",
    "old",
    "sea",
    "sky",
    "the",
    "under",
)
SECONDS_A_WORD = 0.03


async def say(request: web.Request) -> AsyncIterator[str]:
    """The words of an answer, each in its time."""
    payload: dict[str, Any] = await request.json()
    for _ in range(payload.get("max_words", 20)):
        await asyncio.sleep(SECONDS_A_WORD)
        yield random.choice(WORDS)


async def generate(request: web.Request) -> web.Response:
    return web.json_response({"response": " ".join([word async for word in say(request)])})


async def generate_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    async for word in say(request):
        await response.write(json.dumps({"word": word}).encode() + b"\n")
    return response


async def health(_request: web.Request) -> web.Response:
    return web.Response(text="ok")


def app() -> web.Application:
    app = web.Application()
    app.add_routes(
        [
            web.get("/health", health),
            web.post("/generate", generate),
            web.post("/generate_stream", generate_stream),
        ]
    )
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=5001)
    web.run_app(app(), host="127.0.0.1", port=parser.parse_args().port)
