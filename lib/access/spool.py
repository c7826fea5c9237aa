"""Bodies on disk: uploads, and what strangers send beyond a part of it (docs/protocol.md, "Bodies").

Owns the files. An upload's exists while its request is served, and is deleted afterwards in every case: by
the next worker's start, if this one is killed. The other files have no name. It does not receive bodies: that
is body.py and arriving.py.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync

from lib.errors import Unavailable
from lib.http.shares import Holder, Reservation, Shares

log = logging.getLogger(__name__)

T = TypeVar("T")

# Size of the pieces that are written: a hand-over to a thread for each packet would cost more than the write.
PIECE_BYTES = 1024 * 1024
RETRY_WITHOUT_ROOM_S = 30.0
# The names of uploads' files begin with it.
PREFIX = "pyworker-body-"
# Those of files that are not locked yet.
NEW_PREFIX = "pyworker-new-"
# Threads that write what strangers send: a slow disk must not hold up other work in threads.
STRANGERS_THREADS = 4


class SpoolRoom:
    """The room for all files: `limit_bytes`. Uploads reserve it, strangers share what is left."""

    def __init__(self, limit_bytes: int) -> None:
        self.shares = Shares(limit_bytes)

    @cached_property
    def strangers_threads(self) -> anyio.CapacityLimiter:
        """The threads that write and read the files of strangers."""
        return anyio.CapacityLimiter(STRANGERS_THREADS)


@asynccontextmanager
async def spooled(
    parts: AsyncGenerator[bytes, None], room: SpoolRoom
) -> AsyncGenerator[tuple[Path, int], None]:
    """Write `parts` to a file; yield its path and its size in bytes. The file is deleted when the block ends.

    It counts in `room`. Raises `Unavailable` (503) if the file can't be written, or
    if there is no room for it, and what `parts` raises.
    """
    # Filled by the thread that creates the file, so that a cancelled request deletes it too.
    created: list[tuple[int, Path]] = []
    reserved = Reservation(room.shares)
    try:
        try:
            await _in_thread(partial(_create, created))
            async with aclosing(parts):
                await _write(parts, created[0][0], reserved)
        except OSError as e:
            raise _no_room(f"the body can't be written to disk: {e.strerror or e}") from e
        yield created[0][1], reserved.size_bytes
    finally:
        for descriptor, path in created:
            await _in_thread(partial(_delete, descriptor, path))
        reserved.free()


def _no_room(message: str) -> Unavailable:
    return Unavailable("no room", message, RETRY_WITHOUT_ROOM_S)


class StrangersFile:
    """A file without a name for what `holder`, a stranger, has sent; it counts in `room`.

    `close` must be called. `size_bytes` is what was written.
    """

    def __init__(self, room: SpoolRoom, holder: Holder) -> None:
        self.size_bytes = 0
        self._room = room.shares
        self._holder = holder
        self._descriptors: list[int] = []  # filled by the thread that creates the file
        self._threads = room.strangers_threads

    async def append(self, data: bytes | bytearray) -> None:
        """Write `data` at the end. Raises `Unavailable` (503) if it can't be, or if others need the room."""
        self.size_bytes += len(data)
        if not self._room.add(self._holder, len(data)):
            raise _no_room("the bodies on disk are too large together (MAX_SPOOL_BYTES)")
        try:
            if not self._descriptors:
                await _in_thread(partial(_create_unnamed, self._descriptors), self._threads)
            await _in_thread(partial(_write_all, self._descriptors[0], data), self._threads)
        except OSError as e:
            raise _no_room(f"the body can't be written to disk: {e.strerror or e}") from e

    async def read(self) -> bytearray:
        """Return all that was written. Raises `Unavailable` (503) if it can't be read."""
        try:
            return await _in_thread(partial(_read_all, self._descriptors[0], self.size_bytes), self._threads)
        except OSError as e:
            raise _no_room(f"the body can't be read from disk: {e.strerror or e}") from e

    async def close(self) -> None:
        """Delete the file, and give its room back."""
        self._room.add(self._holder, -self.size_bytes)
        self.size_bytes = 0
        while self._descriptors:
            await _in_thread(partial(os.close, self._descriptors.pop()), self._threads)


def sweep() -> int:
    """Delete the uploads that workers have left which were killed; return their number.

    A worker holds a lock on each of its files, which ends with its process. What can't be deleted stays.
    """
    swept = 0
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                swept += 1
            finally:
                os.close(descriptor)
        except OSError:  # it is in use, another user's, or gone meanwhile
            continue
    if swept:
        log.info("deleted %d uploads that a killed worker had left", swept)
    return swept


def _create(created: list[tuple[int, Path]]) -> None:
    descriptor, name = tempfile.mkstemp(prefix=NEW_PREFIX)
    path = Path(name)
    created.append((descriptor, path))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        log.debug("%s can't be locked: %s", path, e)  # then it can't be locked by `sweep` either
    locked = path.with_name(PREFIX + path.name.removeprefix(NEW_PREFIX))
    path.rename(locked)
    created[0] = (descriptor, locked)


def _create_unnamed(descriptors: list[int]) -> None:
    with tempfile.TemporaryFile(buffering=0) as file:
        descriptors.append(os.dup(file.fileno()))


def _read_all(descriptor: int, size_bytes: int) -> bytearray:
    data = bytearray(size_bytes)
    view, position = memoryview(data), 0
    while position < size_bytes:
        read_bytes = os.preadv(descriptor, [view[position:]], position)
        if not read_bytes:
            raise OSError("the file is shorter than what was written")
        position += read_bytes
    return data


def _delete(descriptor: int, path: Path) -> None:
    """Close and delete the file. A failure is logged: the request itself has been served."""
    os.close(descriptor)
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        log.warning("the body in %s can't be deleted: %s", path, e.strerror or e)


async def _write(parts: AsyncGenerator[bytes, None], descriptor: int, reserved: Reservation) -> None:
    """Write `parts` to the file. Raises `Unavailable` (503) if there is no room."""
    pending = bytearray()
    async for part in parts:
        if not reserved.take(len(part)):
            raise _no_room("the files of all uploads together are too large (MAX_SPOOL_BYTES)")
        pending += part
        if len(pending) >= PIECE_BYTES:
            await _in_thread(partial(_write_all, descriptor, bytes(pending)))
            pending.clear()
    await _in_thread(partial(_write_all, descriptor, bytes(pending)))


def _write_all(descriptor: int, data: bytes | bytearray) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


async def _in_thread(call: Callable[[], T], threads: anyio.CapacityLimiter | None = None) -> T:
    """Run `call` in a thread and return its result; a cancelled caller waits for it too.

    A thread can't be cancelled, and must be done with the file before the file is closed or deleted.
    """
    work = asyncio.ensure_future(run_sync(call, limiter=threads))
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
