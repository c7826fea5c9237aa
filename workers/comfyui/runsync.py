"""The runsync dialect: the older API, with `POST /runsync` and output files on the local disk.

Owns its request and its answer, `{"output": {"images": [{"local_path": …}]}}`. It reports no progress.
"""

from __future__ import annotations

import mimetypes
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from anyio import open_file

from lib.backend import ModelCaller
from lib.errors import ModelUnreachable
from workers.comfyui.api import FORWARDED, read_whole
from workers.comfyui.data_types import GenerateInput
from workers.comfyui.images import ImageFormat
from workers.comfyui.outputs import as_images
from workers.comfyui.spool import CHUNK_BYTES
from workers.comfyui.wrapper import outputs_of, refuse_form, relayed

# The API's own handler that runs a workflow unchanged.
RAW = "RawWorkflow"
NO_JOBS = "the runsync dialect has no asynchronous jobs: use /generate/sync"
NO_PROGRESS = "the runsync dialect reports no progress: use /generate/sync"


@dataclass(frozen=True)
class Runsync:
    """The API at `url`. It runs on this machine, whose disk has the files of its answers."""

    url: str

    def check(self, payload: GenerateInput) -> None:
        """Raise `JsonDataException` for a form. The API checks everything else itself."""
        refuse_form(payload)

    def generate(
        self, model: ModelCaller, payload: GenerateInput
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Pass on the request and the answer. A request that names no `handler` gets `RawWorkflow`."""
        message = payload.generate_payload_json()
        return model.post_json(
            f"{self.url}/runsync", {**message, "input": {"handler": RAW, **message["input"]}}
        )

    @asynccontextmanager
    async def stream(
        self, model: ModelCaller, payload: GenerateInput
    ) -> AsyncGenerator[web.StreamResponse, None]:
        """Answer 404: this API has no progress to stream."""
        yield web.json_response({"error": NO_PROGRESS}, status=404)

    def start(
        self, model: ModelCaller, payload: GenerateInput
    ) -> AbstractAsyncContextManager[web.StreamResponse]:
        """Answer 404, as the other calls for asynchronous jobs."""
        return _no_jobs()

    def result(self, model: ModelCaller, job_id: str) -> AbstractAsyncContextManager[web.StreamResponse]:
        return _no_jobs()

    def cancel(self, model: ModelCaller, job_id: str) -> AbstractAsyncContextManager[web.StreamResponse]:
        return _no_jobs()

    def queue_info(self, model: ModelCaller) -> AbstractAsyncContextManager[web.StreamResponse]:
        return _no_jobs()

    @asynccontextmanager
    async def images(
        self, model: ModelCaller, graph: dict[str, Any], image_format: ImageFormat | None = None
    ) -> AsyncGenerator[web.StreamResponse, None]:
        """Run `graph`. The answer has its images as data URIs."""
        message = {"input": {"handler": RAW, "workflow_json": graph}}
        async with model.with_headers(*FORWARDED).post_json(f"{self.url}/runsync", message) as answer:
            body = await read_whole(answer)
            if answer.status != 200:
                yield relayed(answer, body)
                return
        paths = [output.get("local_path") for output in outputs_of(body, "output", "images")]
        files = [partial(_opened, Path(path)) for path in paths if isinstance(path, str)]
        yield await as_images(files, image_format)


@asynccontextmanager
async def _no_jobs() -> AsyncGenerator[web.StreamResponse, None]:
    yield web.json_response({"error": NO_JOBS}, status=404)


@asynccontextmanager
async def _opened(path: Path) -> AsyncGenerator[tuple[str, AsyncIterator[bytes]], None]:
    yield mimetypes.guess_type(path.name)[0] or "image/png", _chunks(path)


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    try:
        async with await open_file(path, "rb") as file:
            while chunk := await file.read(CHUNK_BYTES):
                yield chunk
    except OSError as e:
        raise ModelUnreachable(f"the model server's output file can't be read: {e}") from e
