"""The body of a request that was read to authenticate it, for author code that reads it again.

Owns that `read`, `text`, `json`, `post` and `content` of an aiohttp request give the body as it was received.
Nothing is made before author code asks. Reading bodies from the connection is in lib/access/body.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import aiohttp
import anyio
from aiohttp import web

# The bytes of a body are kept up to this size. A larger one is kept parsed, and written anew when asked for.
KEPT_BYTES = 64 * 1024
PART_BYTES = 256 * 1024

# The bytes, or the JSON object that they were.
Body = bytes | bytearray | dict[str, Any]


def kept_body(body: bytes | bytearray, content: dict[str, Any]) -> Body:
    """Return what to keep of `body`, which was parsed as `content`: one of the two."""
    return body if len(body) <= KEPT_BYTES else content


def make_readable(request: web.Request, body: Body | Path) -> None:
    """Have `request`, whose body was read before, give it once more; `body` may be the file that it is in.

    Of a JSON object, the objects in it are copied, but not what is in those: author code may change them.
    """
    if isinstance(body, Path):
        parts = _in_file(body)
    else:
        parts = _in_memory(_copied(body) if isinstance(body, dict) else body)
    read: Any = request
    read._payload = _ReceivedBody(parts)
    read._cache.pop("content", None)  # the attribute: aiohttp looks it up only once


def _copied(content: dict[str, Any]) -> dict[str, Any]:
    return {
        name: cast("dict[str, Any]", value).copy() if isinstance(value, dict) else value
        for name, value in content.items()
    }


class _ReceivedBody(aiohttp.StreamReader):
    """Reads `parts`, the next of them when all before were read."""

    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        super().__init__(_NO_CONNECTION, PART_BYTES, loop=asyncio.get_running_loop())
        self._parts = parts

    async def _wait(self, func_name: str) -> None:
        part = await anext(self._parts, b"")
        if part:
            self.feed_data(part)
        else:
            self.feed_eof()

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        """Do nothing: the body has arrived, also for a handler that finishes after its client has left."""


class _NoConnection:
    """Stands for the connection, which was read to the end of the body."""

    connected = True
    _reading_paused = False

    def pause_reading(self) -> None: ...

    def resume_reading(self, resume_parser: bool = True) -> None: ...


_NO_CONNECTION: Any = _NoConnection()


async def _in_memory(body: Body) -> AsyncIterator[bytes]:
    yield json.dumps(body).encode() if isinstance(body, dict) else bytes(body)


async def _in_file(path: Path) -> AsyncIterator[bytes]:
    async with await anyio.open_file(path, "rb") as file:
        while part := await file.read(PART_BYTES):
            yield part
