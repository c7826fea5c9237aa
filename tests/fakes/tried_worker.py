"""A worker with a route for each kind of answer that the engine's page of an API shows."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import web

from lib.uploads import Upload
from lib.worker import BenchmarkConfig, HandlerConfig, Worker, WorkerConfig

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@dataclass
class Received(Upload):
    def count_workload(self) -> float:
        return 1.0


async def shout(text: str, times: int = 1) -> str:
    """Say it loudly. <b>Really</b>."""
    return " ".join([text.upper()] * times)


async def wait(word: str) -> AsyncIterator[str]:
    """Say a word, and then nothing any more."""
    yield word
    await asyncio.Event().wait()


async def draw(width: int = 1) -> web.Response:
    """Draw a picture."""
    return web.Response(body=PIXEL, content_type="image/png")


async def unknown() -> web.Response:
    """Answer bytes of no known kind."""
    return web.Response(body=b"\0\1\2", content_type="application/x-unknown")


async def markup() -> web.Response:
    """Answer a page that would run a script."""
    return web.Response(text="<script>document.title = 'taken'</script>", content_type="text/html")


async def receive(upload: Upload) -> dict[str, object]:
    """Receive a file."""
    return {"size": upload.size_bytes, "is_form": upload.content_type.startswith("multipart/form-data")}


async def voice(id: str, limit: int = 10) -> dict[str, object]:
    """Show a voice."""
    return {"id": id, "limit": limit}


HANDLERS = [
    HandlerConfig(
        "/shout",
        remote_function=shout,
        benchmark_config=BenchmarkConfig(dataset=[{"text": "hi <b>", "times": 2}]),
    ),
    HandlerConfig("/wait", remote_function=wait),
    HandlerConfig("/draw", remote_function=draw),
    HandlerConfig("/unknown", remote_function=unknown),
    HandlerConfig("/markup", remote_function=markup),
    HandlerConfig("/receive", payload_class=Received, remote_function=receive),
    HandlerConfig("/voices/{id}", method="GET", remote_function=voice),
]

if __name__ == "__main__":
    Worker(WorkerConfig(handlers=HANDLERS)).run()
