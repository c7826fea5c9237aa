"""The wrapper dialect: the ComfyUI API wrapper, which gets requests unchanged, except for an id.

Owns the translation of `/prompt` and `/custom-workflow`, the end of a job whose client has left, and the
failures in streams.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from urllib.parse import quote

import aiohttp
import anyio
from aiohttp import web

from lib.backend import ModelCaller, end_to_end_headers
from lib.data_types import JsonDataException
from lib.errors import ModelDown, ModelUnreachable
from workers.comfyui.api import FORWARDED, ComfyApi, File, read_whole
from workers.comfyui.cleanup import clean_up
from workers.comfyui.data_types import GenerateInput
from workers.comfyui.images import ImageFormat
from workers.comfyui.outputs import PREVIEWED, as_images
from workers.comfyui.results import accept
from workers.openai.line_scanner import LineScanner

# Statuses of a job that has ended, and of one that has failed.
FAILURES = ("failed", "timeout")
ENDS = ("completed", "cancelled", *FAILURES)
# Seconds for which a cancelled job may go on, with its slot, and between two looks at it.
STOP_LIMIT_S = 60.0
STOP_POLL_S = 0.25
# A failed result in an event of which the end is cut off. Quotes inside of texts are escaped there.
_CUT_FAILURE = re.compile(rb'"status":\s*"(?:failed|timeout)"')


@dataclass(frozen=True)
class Wrapper:
    """The wrapper at `url`. Files that its answers only name are read from ComfyUI at `comfyui_url`.

    `is_shared`: it runs several jobs at once.
    """

    url: str
    comfyui_url: str
    is_shared: bool = False

    def check(self, payload: GenerateInput) -> None:
        """Raise `JsonDataException` for a form. The wrapper checks everything else itself."""
        refuse_form(payload)

    def generate(
        self, model: ModelCaller, payload: GenerateInput
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Pass on the request and the answer."""
        return self._job(model, "/generate/sync", payload.generate_payload_json())

    def stream(
        self, model: ModelCaller, payload: GenerateInput
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Pass on the request and the stream of its progress."""
        return self._job(model, "/generate/stream", payload.generate_payload_json())

    @asynccontextmanager
    async def start(
        self, model: ModelCaller, payload: GenerateInput
    ) -> AsyncGenerator[web.StreamResponse, None]:
        """Pass on the request and the answer. The block ends when the job has ended."""
        request_id, message = _with_id(payload.generate_payload_json())
        async with model.post_json(f"{self.url}/generate", message) as answer:
            body = await read_whole(answer)
        if answer.status != 202 or _status_of(body) is None:
            yield relayed(answer, body)
            return
        accepted = await accept(model.client_request, json.loads(body))
        if await self._has_failed(model, quote(request_id, safe="")) and model.client_request is not None:
            model.client_request["outcome"] = "errored"
        yield accepted

    def result(self, model: ModelCaller, job_id: str) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Pass on the wrapper's answer."""
        return model.get(f"{self.url}/result/{quote(job_id, safe='')}")

    def cancel(self, model: ModelCaller, job_id: str) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Pass on the wrapper's answer."""
        return model.post_json(f"{self.url}/cancel/{quote(job_id, safe='')}", {})

    def queue_info(self, model: ModelCaller) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Pass on the wrapper's answer."""
        return model.get(f"{self.url}/queue-info")

    @asynccontextmanager
    async def images(
        self, model: ModelCaller, graph: dict[str, Any], image_format: ImageFormat | None = None
    ) -> AsyncGenerator[web.StreamResponse, None]:
        """Run `graph`. The answer has its images as data URIs."""
        message = {"input": {"workflow_json": graph}}
        async with self._job(model.with_headers(*FORWARDED), "/generate/sync", message) as answer:
            body = await read_whole(answer)
            if answer.status != 200:
                yield relayed(answer, body)
                return
        api = ComfyApi(model, self.comfyui_url)
        outputs = outputs_of(body, "output")
        chosen = [output for output in outputs if output.get("type") != PREVIEWED] or outputs
        yield await as_images([partial(_opened, api, output) for output in chosen], image_format)

    @asynccontextmanager
    async def _job(
        self, model: ModelCaller, path: str, message: dict[str, Any]
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """POST `message` and yield the answer. A job that has not ended with the block is cancelled.

        The block ends only when the job has stopped, or after `STOP_LIMIT_S`: until then it uses the GPU.
        """
        request_id, message = _with_id(message)
        has_ended = False
        try:
            async with model.post_json(self.url + path, message) as answer:
                try:
                    yield answer
                finally:
                    has_ended = answer.status != 200 or answer.content.at_eof()
        except (ModelDown, ModelUnreachable):
            has_ended = True
            raise
        finally:
            if not has_ended:
                await clean_up(self._cancel(model, request_id), f"job {request_id!r}", STOP_LIMIT_S)

    async def _has_failed(self, model: ModelCaller, name: str) -> bool:
        """Wait until a job has ended, or the wrapper doesn't know it any more; whether it has failed."""
        try:
            with anyio.fail_after(model.timeout_s):
                while True:
                    async with model.get(f"{self.url}/result/{name}") as answer:
                        status = _status_of(await read_whole(answer))
                    if answer.status == 404 or status in ENDS:
                        return status in FAILURES
                    await anyio.sleep(STOP_POLL_S)
        except (ModelUnreachable, TimeoutError):
            return True

    async def _cancel(self, model: ModelCaller, request_id: str) -> None:
        """Cancel a job, and wait until it has stopped."""
        name = quote(request_id, safe="")
        async with model.post_json(f"{self.url}/cancel/{name}", {}) as answer:
            await read_whole(answer)
        while True:
            if await self._has_stopped(model, name):
                return
            await anyio.sleep(STOP_POLL_S)

    async def _has_stopped(self, model: ModelCaller, name: str) -> bool:
        async with model.get(f"{self.url}/result/{name}") as answer:
            body = await read_whole(answer)
        if answer.status != 404 and _status_of(body) not in ENDS:
            return False
        # The wrapper marks a job as cancelled before ComfyUI has stopped it.
        if self.is_shared:
            return True
        try:
            return not (await ComfyApi(model, self.comfyui_url).queue()).running
        except ModelUnreachable:
            return True  # it is not reachable from here, as on another machine


class FinalResultScanner(LineScanner):
    """Looks for a failure in a stream of the wrapper: a failed `final_result`, or an event `error`."""

    mark = b'"status"'
    max_line_bytes = 1024 * 1024

    def is_failure(self, line: bytes) -> bool:
        try:
            event: Any = json.loads(line.partition(b":")[2])
            return event["status"] == "error" or event["result"]["status"] in FAILURES
        except (KeyError, TypeError):
            return False
        except (ValueError, RecursionError):
            return _CUT_FAILURE.search(line) is not None


def _with_id(message: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The id of a job, the client's or a new one, and `message` with it."""
    given = message["input"].get("request_id")
    if given is None or given == "":
        given = str(uuid.uuid4())
    return str(given), {**message, "input": {**message["input"], "request_id": given}}


def _status_of(body: bytes) -> Any:
    try:
        return json.loads(body).get("status")
    except (ValueError, AttributeError, RecursionError):
        return None


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
