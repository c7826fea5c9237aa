"""ComfyUI's own HTTP API and WebSocket, call by call.

Owns the paths, messages and statuses of a stock ComfyUI. Their meaning for a request of the worker is in
jobs.py. No call has an `Origin` header, because ComfyUI answers an empty 403 on loopback if it differs from
`Host`.
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlencode

import aiohttp
import anyio
from aiohttp import web
from yarl import URL

from lib.backend import ModelCaller
from lib.errors import ModelTimedOut, ModelUnreachable, describe_error
from lib.files import BadFile

# Seconds. A WebSocket that doesn't open must not delay the prompt: without one, the history is polled.
HANDSHAKE_LIMIT_S = 10.0
# The shortest wait for an event. aiohttp treats a timeout of 0 s as no timeout.
SHORTEST_S = 0.001
# Frames may contain images: previews, and those of nodes that send their images.
MAX_FRAME_BYTES = 256 * 1024 * 1024
# A binary frame begins with its kind and, for an image, its format: two 32-bit integers.
IMAGE = "image"
_IMAGE_FRAME = 1
_IMAGE_TYPES = {1: "image/jpeg", 2: "image/png"}
# The client's headers that are forwarded when the worker reads the model server's answer itself. `Accept` and
# `Accept-Encoding` apply to the worker's own answer.
FORWARDED = ("X-Request-Id",)
_OVER = (
    aiohttp.WSMsgType.CLOSE,
    aiohttp.WSMsgType.CLOSING,
    aiohttp.WSMsgType.CLOSED,
    aiohttp.WSMsgType.ERROR,
)


class PromptRefused(Exception):
    """ComfyUI refused a prompt. `answer` is the answer for the client."""

    def __init__(self, answer: web.Response) -> None:
        super().__init__(answer.status)
        self.answer = answer


@dataclass(frozen=True)
class File:
    """A file of ComfyUI. `type` names its folder (output, temp, input), `subfolder` is relative to that."""

    filename: str
    subfolder: str
    type: str

    @property
    def query(self) -> str:
        return urlencode({"filename": self.filename, "subfolder": self.subfolder, "type": self.type})


@dataclass(frozen=True)
class Submission:
    """A graph to execute, and the `extra_data` that its nodes get, such as keys. Its `repr` has neither."""

    graph: dict[str, Any] = field(repr=False)
    extra_data: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)


@dataclass(frozen=True)
class Queued:
    """A prompt in ComfyUI's queue. ComfyUI executes prompts in the order of `number`."""

    number: float
    prompt_id: str
    client_id: str | None


@dataclass(frozen=True)
class Queue:
    """ComfyUI's queue: the prompts that run and those that wait."""

    running: list[Queued]
    pending: list[Queued]


@dataclass(frozen=True)
class Event:
    """A message of the WebSocket. An image, which comes in a binary message, has the type `IMAGE`."""

    type: str
    data: dict[str, Any]
    image: bytes = b""


_NOTHING = Event("", {})


class ComfyApi:
    """Calls to the ComfyUI at `url` for one request of the worker.

    Failed calls raise `ModelUnreachable` (502) or `ModelTimedOut` (504).
    """

    def __init__(self, model: ModelCaller, url: str) -> None:
        self._caller = model.with_headers(*FORWARDED)
        self._url = url.rstrip("/")

    @property
    def limit_s(self) -> float | None:
        """`MODEL_TIMEOUT_S`, the limit of a whole job in seconds; None: no limit."""
        return self._caller.timeout_s

    async def submit(
        self, submission: Submission, prompt_id: str, client_id: str
    ) -> tuple[str, dict[str, Any]]:
        """Queue `submission`. Return the prompt's id, and the errors of outputs that are not generated.

        The id is `prompt_id`, except that old versions of ComfyUI assign their own. Raises `PromptRefused`.
        """
        message: dict[str, Any] = {"prompt": submission.graph, "client_id": client_id, "prompt_id": prompt_id}
        if submission.extra_data:
            message["extra_data"] = submission.extra_data
        async with self._caller.post_json(f"{self._url}/prompt", message) as answer:
            body = await read_whole(answer)
            if answer.status != 200:
                raise PromptRefused(_refusal(answer, body))
        answered = _object(body, "POST /prompt")
        if not isinstance(answered.get("prompt_id"), str):
            raise ModelUnreachable("ComfyUI's answer to POST /prompt has no prompt_id")
        return answered["prompt_id"], answered.get("node_errors") or {}

    async def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The history of a finished prompt; None for one that is not finished or not known."""
        return (await self._get(f"/history/{prompt_id}")).get(prompt_id)

    async def queue(self) -> Queue:
        """The queue at this moment."""
        queue = await self._get("/queue")
        return Queue(_queued(queue.get("queue_running")), _queued(queue.get("queue_pending")))

    async def forget(self, prompt_id: str) -> None:
        """Remove a finished prompt from the history."""
        await self._post("/history", {"delete": [prompt_id]})

    async def delete(self, prompt_id: str) -> None:
        """Remove a prompt from the queue if it still waits there."""
        await self._post("/queue", {"delete": [prompt_id]})

    async def interrupt(self, prompt_id: str) -> None:
        """Stop a running prompt. Older versions of ComfyUI ignore the id and stop any running prompt."""
        await self._post("/interrupt", {"prompt_id": prompt_id})

    @asynccontextmanager
    async def view(self, file: File) -> AsyncGenerator[tuple[str, AsyncIterator[bytes]], None]:
        """The content type of `file`, and its content in chunks."""
        async with self._caller.get(f"{self._url}/view?{file.query}") as answer:
            if answer.status == 404:
                raise ModelUnreachable(f"ComfyUI has no file {file.filename!r}: was it deleted?")
            if answer.status != 200:
                raise ModelUnreachable(f"ComfyUI answered {answer.status} to GET /view of {file.filename!r}")
            guess = mimetypes.guess_type(file.filename)[0]
            kind = answer.headers.get("Content-Type") or guess or "application/octet-stream"
            yield kind.partition(";")[0], _chunks(answer)

    async def exists(self, file: File) -> bool:
        """Whether ComfyUI still has `file`."""
        async with self._caller.request("HEAD", f"{self._url}/view?{file.query}") as answer:
            return answer.status != 404

    async def upload(self, folder: str, name: str, content: bytes | Path, kind: str) -> str:
        """Upload an input file, in place of one with this name; return the name for loader nodes.

        `folder` is in ComfyUI's folder of input files, `kind` is the content type. Raises `BadFile` if the
        file is too large for ComfyUI.
        """
        form = {
            "image": (name, content, kind or "application/octet-stream"),
            "subfolder": folder,
            "type": "input",
            "overwrite": True,
        }
        async with self._caller.post_form(f"{self._url}/upload/image", form) as answer:
            body = await read_whole(answer)
            if answer.status == 413:
                raise BadFile("is larger than ComfyUI accepts (--max-upload-size)")
            if answer.status != 200:
                raise ModelUnreachable(f"ComfyUI answered {answer.status} to POST /upload/image")
        saved = _object(body, "POST /upload/image")
        return "/".join(str(saved[part]) for part in ("subfolder", "name") if saved.get(part))

    def events(self, client_id: str) -> EventSocket:
        """The events of the prompts of `client_id`."""
        url = URL(f"{self._url}/ws").with_query(clientId=client_id)
        return EventSocket(self._caller, url)

    async def _get(self, path: str) -> dict[str, Any]:
        async with self._caller.get(self._url + path) as answer:
            body = await read_whole(answer)
            if answer.status != 200:
                raise ModelUnreachable(f"ComfyUI answered {answer.status} to GET {path}")
        return _object(body, f"GET {path}")

    async def _post(self, path: str, message: Any) -> None:
        async with self._caller.post_json(self._url + path, message) as answer:
            await read_whole(answer)
            if answer.status != 200:
                raise ModelUnreachable(f"ComfyUI answered {answer.status} to POST {path}")


class EventSocket:
    """ComfyUI's WebSocket at `url`. Use it in an `async with`.

    It may fail to open, and drop later. Then there are no events until `connect` succeeds.
    """

    def __init__(self, model: ModelCaller, url: URL) -> None:
        self._model = model
        self._url = url
        self._socket: aiohttp.ClientWebSocketResponse[bool] | None = None

    async def __aenter__(self) -> EventSocket:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.move_on_after(1.0, shield=True):
            await self._close()

    @property
    def connected(self) -> bool:
        """Whether the WebSocket is open."""
        return self._socket is not None

    async def connect(self) -> None:
        """Try to open the WebSocket, for at most `HANDSHAKE_LIMIT_S`."""
        with anyio.move_on_after(HANDSHAKE_LIMIT_S):
            try:
                self._socket = await self._model.websocket(self._url, MAX_FRAME_BYTES)
            except (ModelUnreachable, ModelTimedOut):
                self._socket = None

    async def next(self, limit_s: float) -> Event | None:
        """The next event; None if none came within `limit_s` seconds, or if the connection dropped.

        Unknown messages are events with the type "".
        """
        socket = self._socket
        if socket is None:
            await anyio.sleep(limit_s)
            return None
        try:
            message = await socket.receive(timeout=max(limit_s, SHORTEST_S))
        except asyncio.TimeoutError:
            return None
        if message.type in _OVER:
            await self._close()
            return None
        return _image(message.data) if message.type is aiohttp.WSMsgType.BINARY else _event(message.data)

    async def _close(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()


async def read_whole(answer: aiohttp.ClientResponse) -> bytes:
    """The whole body of an answer. Raises `ModelUnreachable` (502) if it breaks off."""
    return b"".join([chunk async for chunk in _chunks(answer)])


async def _chunks(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        while chunk := await answer.content.readany():
            yield chunk
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as e:
        raise ModelUnreachable(f"ComfyUI's answer broke off: {describe_error(e)}") from e


def _refusal(answer: aiohttp.ClientResponse, body: bytes) -> web.Response:
    """ComfyUI's own error, with 422 instead of 400: the worker answers 422 to all invalid requests."""
    status = 422 if answer.status == 400 else answer.status
    kind = answer.headers.get("Content-Type", "text/plain")
    return web.Response(status=status, body=body, headers={"Content-Type": kind})


def _object(body: bytes, call: str) -> dict[str, Any]:
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError) as e:
        raise ModelUnreachable(f"ComfyUI's answer to {call} is not JSON") from e
    if not isinstance(value, dict):
        raise ModelUnreachable(f"ComfyUI's answer to {call} is not an object")
    return cast("dict[str, Any]", value)


def _queued(items: Any) -> list[Queued]:
    """Prompts from items of the form `[number, prompt_id, graph, {"client_id"?}, outputs]`."""
    return [
        Queued(item[0], item[1], item[3].get("client_id") if len(item) > 3 else None)
        for item in cast("list[Any]", items or [])
    ]


def _event(text: str) -> Event:
    try:
        message: Any = json.loads(text)
        return Event(message["type"], message["data"]) if isinstance(message["data"], dict) else _NOTHING
    except (ValueError, KeyError, TypeError, RecursionError):
        return _NOTHING


def _image(frame: bytes) -> Event:
    """The image in a binary frame: a preview, or the output of a node that sends instead of saving."""
    if len(frame) < 8 or int.from_bytes(frame[:4], "big") != _IMAGE_FRAME:
        return _NOTHING
    kind = _IMAGE_TYPES.get(int.from_bytes(frame[4:8], "big"), "image/png")
    return Event(IMAGE, {"mimetype": kind}, frame[8:])
