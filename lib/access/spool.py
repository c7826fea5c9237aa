"""Bodies that are not JSON go to a temporary file, never whole into memory (docs/protocol.md, "Bodies").

Owns the file: it exists while its request is served, and is deleted afterwards in every case. It does not
receive the body: that is body.py.
"""

from __future__ import annotations

import asyncio
import logging
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

log = logging.getLogger(__name__)

T = TypeVar("T")

# Size of the pieces that are written: a hand-over to a thread for each packet would cost more than the write.
PIECE_BYTES = 1024 * 1024
RETRY_WITHOUT_ROOM_S = 30.0


@asynccontextmanager
async def spooled(parts: AsyncGenerator[bytes, None]) -> AsyncGenerator[tuple[Path, int], None]:
    """Write `parts` to a file; yield its path and its size in bytes. The file is deleted when the block ends.

    Raises `Unavailable` (503) if the file can't be written, and what `parts` raises.
    """
    # Filled by the thread that creates the file, so that a cancelled request deletes it too.
    created: list[tuple[int, Path]] = []
    try:
        try:
            try:
                await _in_thread(partial(_create, created))
                async with aclosing(parts):
                    size_bytes = await _write(parts, created[0][0])
            finally:
                for descriptor, _ in created:
                    await _in_thread(partial(os.close, descriptor))
        except OSError as e:
            raise Unavailable(
                "no room", f"the body can't be written to disk: {e.strerror or e}", RETRY_WITHOUT_ROOM_S
            ) from e
        yield created[0][1], size_bytes
    finally:
        for _, path in created:
            await _in_thread(partial(_delete, path))


def _create(created: list[tuple[int, Path]]) -> None:
    descriptor, path = tempfile.mkstemp(prefix="pyworker-body-")
    created.append((descriptor, Path(path)))


def _delete(path: Path) -> None:
    """Delete the file. A failure is logged: the request itself has been served."""
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        log.warning("the body in %s can't be deleted: %s", path, e.strerror or e)


async def _write(parts: AsyncGenerator[bytes, None], descriptor: int) -> int:
    """Write `parts` to the file; return the number of bytes."""
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
    """Run `call` in a thread and return its result; a cancelled caller waits for it too.

    A thread can't be cancelled, and must be done with the file before the file is closed or deleted.
    """
    work = asyncio.ensure_future(run_sync(call))
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):  # a cancelled scope would cancel this wait over and over
        while not work.done():
            try:
                await asyncio.wait({work})
            except asyncio.CancelledError as e:
                cancelled = e
    if cancelled is not None:
        raise cancelled
    return work.result()
