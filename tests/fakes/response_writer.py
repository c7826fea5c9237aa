"""The writer of an answer, without a socket: it can be slow or lose its connection at a chosen moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
from aiohttp.abc import AbstractStreamWriter


class RecordingWriter(AbstractStreamWriter):
    """A connection that accepts writes once `may_write` is set, unless it is `lost`.

    `note_lost` is called before a write raises: aiohttp raises only where its transport is closed.
    """

    def __init__(self, note_lost: Callable[[], object] = lambda: None) -> None:
        self._note_lost = note_lost
        self.written: list[bytes] = []
        self.may_write, self.lost = anyio.Event(), False
        self.writing = anyio.Event()
        self.may_write.set()
        self.length = None

    async def write(self, chunk: Any) -> None:
        if self.lost:
            self._note_lost()
            raise ConnectionResetError
        self.writing.set()
        await self.may_write.wait()
        self._record(bytes(chunk))

    async def write_eof(self, chunk: bytes = b"") -> None:
        if chunk:
            await self.write(chunk)
        self.written.append(b"end")

    async def drain(self) -> None:
        pass

    def enable_compression(self, encoding: str = "deflate", strategy: int | None = None) -> None:
        pass

    def enable_chunking(self) -> None:
        pass

    async def write_headers(self, status_line: str, headers: Any) -> None:
        self._record(status_line.encode())

    def _record(self, content: bytes) -> None:
        self.written.append(content)
        self.output_size += len(content)
