"""ComfyUI's own HTTP API and WebSocket, call by call.

Owns paths, messages and statuses of a stock ComfyUI. What they mean for a request of the worker's is in
jobs.py. No call has an `Origin` header: on loopback, one that differs from `Host` gets an empty 403.
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlencode

import aiohttp
import anyio
from aiohttp import web
from yarl import URL

from lib.backend import ModelCaller
from lib.errors import ModelTimedOut, ModelUnreachable, describe_error

# A hung server must not keep a prompt from being submitted: without a WebSocket its history is polled.
HANDSHAKE_LIMIT_S = 10.0
# aiohttp takes a limit of 0 s for none.
SHORTEST_S = 0.001
# Frames hold images too, which are previews mostly.
MAX_FRAME_BYTES = 256 * 1024 * 1024
# A binary frame begins with its kind and, of an image, with its format: two integers of 32 bits.
IMAGE = "image"
_IMAGE_FRAME = 1
_IMAGE_TYPES = {1: "image/jpeg", 2: "image/png"}
# Headers of the client's that reach a model server whose answer is read here. Its `Accept` and
# `Accept-Encoding` are for the worker's own answer.
FORWARDED = ("X-Request-Id",)
_OVER = (
    aiohttp.WSMsgType.CLOSE,
    aiohttp.WSMsgType.CLOSING,
    aiohttp.WSMsgType.CLOSED,
    aiohttp.WSMsgType.ERROR,
)


class PromptRefused(Exception):
    """ComfyUI didn't take a prompt: `answer` is what the client is told."""

    def __init__(self, answer: web.Response) -> None:
        super().__init__(answer.status)
        self.answer = answer


@dataclass(frozen=True)
class File:
    """A file that ComfyUI has written. `type` is output, temp or input, `subfolder` is below that folder."""

    filename: str
    subfolder: str
    type: str

    @property
    def query(self) -> str:
        return urlencode({"filename": self.filename, "subfolder": self.subfolder, "type": self.type})


@dataclass(frozen=True)
class Queued:
    """One prompt in ComfyUI's queue; ComfyUI works in the order of `number`."""

    number: float
    prompt_id: str
    client_id: str | None


@dataclass(frozen=True)
class Queue:
    running: list[Queued]
    pending: list[Queued]


@dataclass(frozen=True)
class Event:
    """A message of the WebSocket. An image that came in a binary one is of the type `IMAGE`."""

    type: str
    data: dict[str, Any]
    image: bytes = b""


_NOTHING = Event("", {})


class ComfyApi:
    """The ComfyUI at `url`, for one request of the worker's.

    What fails raises `ModelUnreachable` (502) or `ModelTimedOut` (504).
    """

    def __init__(self, model: ModelCaller, url: str) -> None:
        self._caller = model.with_headers(*FORWARDED)
        self._url = url.rstrip("/")

    @property
    def limit_s(self) -> float | None:
        """`MODEL_TIMEOUT_S`: how long a whole job may take; None: any time."""
        return self._caller.timeout_s

    async def submit(self, graph: Any, prompt_id: str, client_id: str) -> tuple[str, dict[str, Any]]:
        """Queue `graph`: the prompt's id, and what is wrong with outputs that are left out.

        The id is `prompt_id`, or one of ComfyUI's own (old ones give that). Raises `PromptRefused`.
        """
        message = {"prompt": graph, "client_id": client_id, "prompt_id": prompt_id}
        async with self._caller.post_json(f"{self._url}/prompt", message) as answer:
            body = await read_whole(answer)
            if answer.status != 200:
                raise PromptRefused(_refusal(answer, body))
        told = _object(body, "POST /prompt")
        if not isinstance(told.get("prompt_id"), str):
            raise ModelUnreachable("ComfyUI's answer to POST /prompt has no prompt_id")
        return told["prompt_id"], told.get("node_errors") or {}

    async def history(self, prompt_id: str) -> dict[str, Any] | None:
        """What became of a prompt; None while it is not over, and when it is not known."""
        return (await self._get(f"/history/{prompt_id}")).get(prompt_id)

    async def queue(self) -> Queue:
        told = await self._get("/queue")
        return Queue(_queued(told.get("queue_running")), _queued(told.get("queue_pending")))

    async def delete(self, prompt_id: str) -> None:
        """Take a prompt off the queue, if it still waits there."""
        await self._post("/queue", {"delete": [prompt_id]})

    async def interrupt(self, prompt_id: str) -> None:
        """Stop the prompt that runs: older ones of ComfyUI don't look whether it is this one."""
        await self._post("/interrupt", {"prompt_id": prompt_id})

    @asynccontextmanager
    async def view(self, file: File) -> AsyncGenerator[tuple[str, AsyncIterator[bytes]], None]:
        """The content type of `file`, and its bytes in chunks."""
        async with self._caller.get(f"{self._url}/view?{file.query}") as answer:
            if answer.status != 200:
                raise ModelUnreachable(f"ComfyUI answered {answer.status} to GET /view of {file.filename!r}")
            guess = mimetypes.guess_type(file.filename)[0]
            kind = answer.headers.get("Content-Type") or guess or "application/octet-stream"
            yield kind.partition(";")[0], _chunks(answer)

    def events(self, client_id: str) -> EventSocket:
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
    """The WebSocket at `url`, in an `async with`. Where it can't be opened, or drops, there are no events."""

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
        return self._socket is not None

    async def connect(self) -> None:
        with anyio.move_on_after(HANDSHAKE_LIMIT_S):
            try:
                self._socket = await self._model.websocket(self._url, MAX_FRAME_BYTES)
            except (ModelUnreachable, ModelTimedOut):
                self._socket = None

    async def next(self, limit_s: float) -> Event | None:
        """The next event; None when `limit_s` seconds brought none, or the connection dropped.

        What means nothing here is an event too, of no type.
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
    """All of an answer's body. Raises `ModelUnreachable` (502) when it breaks off."""
    return b"".join([chunk async for chunk in _chunks(answer)])


async def _chunks(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        while chunk := await answer.content.readany():
            yield chunk
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as e:
        raise ModelUnreachable(f"ComfyUI's answer broke off: {describe_error(e)}") from e


def _refusal(answer: aiohttp.ClientResponse, body: bytes) -> web.Response:
    """ComfyUI's own words. An invalid prompt is 422, as what is invalid always is."""
    status = 422 if answer.status == 400 else answer.status
    kind = answer.headers.get("Content-Type", "text/plain")
    return web.Response(status=status, body=body, headers={"Content-Type": kind})


def _object(body: bytes, call: str) -> dict[str, Any]:
    try:
        value: Any = json.loads(body)
    except ValueError as e:
        raise ModelUnreachable(f"ComfyUI's answer to {call} is not JSON") from e
    if not isinstance(value, dict):
        raise ModelUnreachable(f"ComfyUI's answer to {call} is not an object")
    return cast("dict[str, Any]", value)


def _queued(items: Any) -> list[Queued]:
    """Items of the queue: `[number, prompt_id, graph, {"client_id"?}, outputs]`."""
    return [
        Queued(item[0], item[1], item[3].get("client_id") if len(item) > 3 else None)
        for item in cast("list[Any]", items or [])
    ]


def _event(text: str) -> Event:
    try:
        message: Any = json.loads(text)
        return Event(message["type"], message["data"]) if isinstance(message["data"], dict) else _NOTHING
    except (ValueError, KeyError, TypeError):
        return _NOTHING


def _image(frame: bytes) -> Event:
    """The image in a binary frame: a preview, or what a node sends instead of saving it."""
    if len(frame) < 8 or int.from_bytes(frame[:4], "big") != _IMAGE_FRAME:
        return _NOTHING
    kind = _IMAGE_TYPES.get(int.from_bytes(frame[4:8], "big"), "image/png")
    return Event(IMAGE, {"mimetype": kind}, frame[8:])
