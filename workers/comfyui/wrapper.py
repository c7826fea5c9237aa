"""The wrapper dialect: the ComfyUI API wrapper, which gets requests unchanged.

Owns the translation of `/prompt` and `/custom-workflow`. When a client disconnects, the connection to the
wrapper is closed, and the wrapper cancels the job itself.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import aiohttp
from aiohttp import web

from lib.backend import ModelCaller, end_to_end_headers
from lib.data_types import JsonDataException
from lib.errors import ModelUnreachable
from workers.comfyui.api import FORWARDED, ComfyApi, File, read_whole
from workers.comfyui.data_types import GenerateInput
from workers.comfyui.outputs import PREVIEWED, as_images


@dataclass(frozen=True)
class Wrapper:
    """The wrapper at `url`. Files that its answers only name are read from ComfyUI at `comfyui_url`."""

    url: str
    comfyui_url: str

    def check(self, payload: GenerateInput) -> None:
        """Raise `JsonDataException` for a form. The wrapper checks everything else itself."""
        refuse_form(payload)

    def generate(
        self, model: ModelCaller, payload: GenerateInput
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Pass on the request and the answer."""
        return model.post_json(f"{self.url}/generate/sync", payload.generate_payload_json())

    def stream(
        self, model: ModelCaller, payload: GenerateInput
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Pass on the request and the stream of its progress."""
        return model.post_json(f"{self.url}/generate/stream", payload.generate_payload_json())

    @asynccontextmanager
    async def images(
        self, model: ModelCaller, graph: dict[str, Any]
    ) -> AsyncGenerator[web.StreamResponse, None]:
        """Run `graph`. The answer has its images as data URIs."""
        message = {"input": {"workflow_json": graph}}
        async with model.with_headers(*FORWARDED).post_json(f"{self.url}/generate/sync", message) as answer:
            body = await read_whole(answer)
            if answer.status != 200:
                yield relayed(answer, body)
                return
        api = ComfyApi(model, self.comfyui_url)
        outputs = outputs_of(body, "output")
        chosen = [output for output in outputs if output.get("type") != PREVIEWED] or outputs
        yield await as_images([partial(_opened, api, output) for output in chosen])


def refuse_form(payload: GenerateInput) -> None:
    """Raise `JsonDataException` (422) if the payload came in a form: only ComfyUI itself takes files."""
    if payload.form is not None:
        raise JsonDataException({"body": "must be JSON: a form with files needs the native dialect"})


def relayed(answer: aiohttp.ClientResponse, body: bytes) -> web.Response:
    """The model server's answer, whose `body` is already read, as an answer to the client."""
    headers = end_to_end_headers(answer.headers)
    headers.popall("Content-Length", None)
    return web.Response(status=answer.status, body=body, headers=headers)


def outputs_of(body: bytes, *path: str) -> list[dict[str, Any]]:
    """The objects in the list at `path` in an answer's JSON. Raises `ModelUnreachable` (502)."""
    try:
        value: Any = json.loads(body)
        for name in path:
            value = value[name]
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise ModelUnreachable(f"the model server's answer has no {'.'.join(path)}") from e
    items = cast("list[Any]", value if isinstance(value, list) else [])
    return [cast("dict[str, Any]", item) for item in items if isinstance(item, dict)]


@asynccontextmanager
async def _opened(
    api: ComfyApi, output: dict[str, Any]
) -> AsyncGenerator[tuple[str, AsyncIterator[bytes]], None]:
    """Content type and content of one of the wrapper's outputs, from the answer itself or from ComfyUI."""
    data = output.get("data")
    if isinstance(data, str):
        yield str(output.get("mimetype") or "image/png"), decoded(data)
        return
    file = File(*(str(output.get(name, "")) for name in ("filename", "subfolder", "type")))
    async with api.view(file) as opened:
        yield opened


async def decoded(data: str) -> AsyncIterator[bytes]:
    """Yield `data` decoded from base64. Raises `ModelUnreachable` (502)."""
    try:
        yield base64.b64decode(data, validate=True)
    except ValueError as e:
        raise ModelUnreachable("the model server's answer has data that is not base64") from e
