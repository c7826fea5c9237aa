"""The raw client: HTTP byte by byte, for what an HTTP library would not send or would hide."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import anyio

from tests.guard import GUARD_S


@dataclass(frozen=True)
class Head:
    """An answer's status line and headers, their names in lower case."""

    status: int
    headers: dict[str, str]
    names: tuple[str, ...]


class RawClient:
    """One connection. Every wait has a time limit."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Write `data`; ignores that the worker has closed the connection."""
        with suppress(ConnectionError), anyio.fail_after(GUARD_S):
            self._writer.write(data)
            await self._writer.drain()

    async def post(
        self,
        path: str,
        body: bytes | Mapping[str, Any],
        headers: Mapping[str, str | bytes] | None = None,
        version: bytes = b"1.1",
    ) -> None:
        """POST `body`, a mapping as JSON; only `Host`, `Content-Length` and `headers` are sent."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.send(request_bytes(path, content, headers, version))

    async def head(self) -> Head:
        """The next answer's head. Raises `ConnectionError` if the connection is closed before its end."""
        try:
            with anyio.fail_after(GUARD_S):
                text = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError as e:
            raise ConnectionResetError(f"closed after {e.partial!r}") from e
        status, *lines = text.split("\r\n")
        pairs = [(k.lower(), v.strip()) for k, _, v in (line.partition(":") for line in lines if line)]
        return Head(int(status.split()[1]), dict(pairs), tuple(name for name, _ in pairs))

    async def exactly(self, size: int) -> bytes:
        with anyio.fail_after(GUARD_S):
            return await self._reader.readexactly(size)

    async def chunk(self) -> bytes:
        """The next chunk of a chunked answer; b"" is the last. Raises `ConnectionError` when it is cut."""
        try:
            with anyio.fail_after(GUARD_S):
                size = int(await self._reader.readuntil(b"\r\n"), 16)
                return (await self._reader.readexactly(size + 2))[:-2]
        except asyncio.IncompleteReadError as e:
            raise ConnectionResetError(f"cut after {e.partial!r}") from e

    async def rest(self) -> bytes:
        """All bytes until the worker closes or resets the connection."""
        received = b""
        with suppress(ConnectionError), anyio.fail_after(GUARD_S):
            while part := await self._reader.read(65536):
                received += part
        return received

    async def answer(self) -> tuple[Head, bytes]:
        """A whole answer of known length, or a chunked one."""
        head = await self.head()
        if "content-length" in head.headers:
            return head, await self.exactly(int(head.headers["content-length"]))
        body = b""
        if head.headers.get("transfer-encoding") == "chunked":
            while part := await self.chunk():
                body += part
        return head, body

    def half_close(self) -> None:
        """Close the sending half of the connection."""
        self._writer.write_eof()

    def leave(self) -> None:
        """Abort the connection."""
        self._writer.transport.abort()


def request_bytes(
    path: str, body: bytes, headers: Mapping[str, str | bytes] | None = None, version: bytes = b"1.1"
) -> bytes:
    """A POST as bytes. Header values may be bytes that are no valid text."""
    given = {"Host": "localhost", "Content-Length": str(len(body)), **(headers or {})}
    if "Transfer-Encoding" in given:
        del given["Content-Length"]
    lines = [
        name.encode() + b": " + (value if isinstance(value, bytes) else value.encode())
        for name, value in given.items()
    ]
    return b"POST %s HTTP/%s\r\n%s\r\n\r\n%s" % (path.encode(), version, b"\r\n".join(lines), body)


@asynccontextmanager
async def connected(
    url: str, limit: int = 2**20, local_address: str | None = None
) -> AsyncGenerator[RawClient, None]:
    """Connect to the server at `url`, from `local_address` if it is given.

    About `limit` bytes of its answers are buffered unread.
    """
    parts = urlsplit(url)
    local = None if local_address is None else (local_address, 0)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=limit, local_addr=local)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()
