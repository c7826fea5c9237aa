"""A small model server to begin with, which generates random words. Delete this file when you have your own.

python model_server.py [--port 5001]

POST /generate         answers {"response": str}
POST /generate_stream  streams {"word": str}, one JSON object per line
GET  /health           answers 200
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
SECONDS_PER_WORD = 0.03


async def generated_words(request: web.Request) -> AsyncIterator[str]:
    """Generate the words of an answer, one every SECONDS_PER_WORD seconds."""
    payload: dict[str, Any] = await request.json()
    for _ in range(payload.get("max_words", 20)):
        await asyncio.sleep(SECONDS_PER_WORD)
        yield random.choice(WORDS)


async def generate(request: web.Request) -> web.Response:
    return web.json_response({"response": " ".join([word async for word in generated_words(request)])})


async def generate_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    async for word in generated_words(request):
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
