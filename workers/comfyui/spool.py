"""Answers that contain files: written in parts, and kept on disk if they are large.

Owns how much of an answer is in memory. Files are encoded in chunks, so that a video of a gigabyte needs
little more memory than an image.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import IO

from aiohttp import web
from anyio.to_thread import run_sync as in_thread

# A larger answer is written to disk, from its beginning.
IN_MEMORY_BYTES = 8 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024
# Base64 encodes groups of this many bytes.
_GROUP = 3


class SpooledAnswer:
    """An answer's body, in memory or in a temporary file. Use it in an `async with`."""

    def __init__(self, in_memory_bytes: int = IN_MEMORY_BYTES) -> None:
        self._limit = in_memory_bytes
        self._buffer = bytearray()
        self._file: IO[bytes] | None = None
        self._given = False

    async def __aenter__(self) -> SpooledAnswer:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._file is not None and not self._given:
            self._file.close()

    async def put(self, data: bytes) -> None:
        """Append `data`."""
        self._buffer += data
        if len(self._buffer) > (self._limit if self._file is None else CHUNK_BYTES):
            await in_thread(self._flush)

    async def put_base64(self, chunks: AsyncIterator[bytes]) -> None:
        """Append the concatenation of `chunks` in base64."""
        rest = b""
        async for chunk in chunks:
            data = rest + chunk
            whole = len(data) - len(data) % _GROUP
            rest = data[whole:]
            await self.put(base64.b64encode(data[:whole]))
        await self.put(base64.b64encode(rest))

    async def response(self, status: int = 200) -> web.Response:
        """An answer with this body as JSON. It takes over the file: append nothing afterwards."""
        if self._file is None:
            body: bytes | IO[bytes] = bytes(self._buffer)
        else:
            await in_thread(self._rewind)
            body, self._given = self._file, True
        return web.Response(status=status, body=body, content_type="application/json")

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body in chunks, from its beginning."""
        if self._file is None:
            yield bytes(self._buffer)
            return
        await in_thread(self._rewind)
        while chunk := await in_thread(self._file.read, CHUNK_BYTES):
            yield chunk

    def _flush(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the spool, or by the answer
        self._file.write(self._buffer)
        self._buffer.clear()

    def _rewind(self) -> None:
        self._flush()
        assert self._file is not None
        self._file.seek(0)


@asynccontextmanager
async def on_disk(chunks: AsyncIterator[bytes]) -> AsyncGenerator[IO[bytes], None]:
    """A temporary file with the content of `chunks`, positioned at its beginning."""
    file = await in_thread(tempfile.TemporaryFile)
    try:
        async for chunk in chunks:
            await in_thread(file.write, chunk)
        await in_thread(file.seek, 0)
        yield file
    finally:
        file.close()
