"""Bodies that are not JSON go to a temporary file, and are never whole in memory (protocol.md §2, Bodies).

Owns the file: it is there while its request is served, and gone afterwards, whatever happens.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync

from lib.errors import Unavailable

T = TypeVar("T")

# Written in pieces of about this size: a thread for each packet would cost more than the writing.
PIECE_BYTES = 1024 * 1024
RETRY_WITHOUT_ROOM_S = 30.0


@asynccontextmanager
async def spooled(parts: AsyncGenerator[bytes, None]) -> AsyncGenerator[tuple[Path, int], None]:
    """A file with all of `parts`, and its size in bytes; the file is deleted at the end of the block.

    Raises `Unavailable` (503) where the disk can't take it, and what `parts` raises.
    """
    kept: list[
        tuple[int, Path]
    ] = []  # filled in the thread that makes the file: whatever is cut, it is known
    try:
        try:
            try:
                await _in_thread(partial(_create, kept))
                async with aclosing(parts):
                    size_bytes = await _write(parts, kept[0][0])
            finally:
                for descriptor, _ in kept:
                    await _in_thread(partial(os.close, descriptor))
        except OSError as e:
            raise Unavailable(
                "no room", f"the body can't be kept: {e.strerror or e}", RETRY_WITHOUT_ROOM_S
            ) from e
        yield kept[0][1], size_bytes
    finally:
        for _, path in kept:
            await _in_thread(partial(path.unlink, missing_ok=True))


def _create(kept: list[tuple[int, Path]]) -> None:
    descriptor, path = tempfile.mkstemp(prefix="pyworker-body-")
    kept.append((descriptor, Path(path)))


async def _write(parts: AsyncGenerator[bytes, None], descriptor: int) -> int:
    """Write `parts`: how many bytes that were."""
    size_bytes = 0
    pending = bytearray()
    async for part in parts:
        size_bytes += len(part)
        pending += part
        if len(pending) >= PIECE_BYTES:
            await _in_thread(partial(_write_all, descriptor, bytes(pending)))
            pending.clear()
    await _in_thread(partial(_write_all, descriptor, bytes(pending)))
    return size_bytes


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


async def _in_thread(call: Callable[[], T]) -> T:
    """What `call` gives. A cancelled request waits for it too: what a thread does to a file can't be cut."""
    work = asyncio.ensure_future(run_sync(call))
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):  # a cancelled scope would cancel again and again
        while not work.done():
            try:
                await asyncio.wait({work})
            except asyncio.CancelledError as e:
                cancelled = e
    if cancelled is not None:
        raise cancelled
    return work.result()
