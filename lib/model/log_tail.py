"""The model server's log file as a sequence of lines (authoring.md §3 Readiness).

Owns the file: waiting for it, rotation, truncation in place, half-written lines, any encoding. What a line
means is in watch.py.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import anyio.lowlevel
import anyio.to_thread

from lib.runtime.clock import Clock, sleep

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.1
# A rotated file is read for this many more polls, some 10 s: its writer may not have noticed yet.
LINGER_POLLS = 100
MISSING_WARN_AFTER_S = 10.0
MISSING_WARN_EVERY_S = 60.0
# Longer lines are given in pieces, so that a log without line ends can't fill the memory.
MAX_LINE_BYTES = 1024 * 1024
CHUNK_BYTES = 256 * 1024
# One poll reads no more than this, whatever there is: a large old log is given part by part.
POLL_BYTES = 8 * 1024 * 1024
FINGERPRINT_BYTES = 1024
# Lines given to the reader between two turns of the event loop.
LINES_PER_TURN = 500

# Never the terminal of this process, and never a wait for a FIFO's other end.
_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

_FileId = tuple[int, int]


class LogTail:
    """Every line of the log at `path`, from its beginning, across rotation and truncation in place.

    Complete as long as no more than one rotation or truncation falls between two polls; what was written
    and truncated away between two polls was never there to be read. A truncation after which the file
    begins with the very bytes that were read before can't be told from no truncation.

    `trouble` says why the file can't be opened, or is None. `behind` says that the last poll left
    something to read: poll again at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble: str | None = None
        self.behind = False
        # Oldest first; the last one is what the path led to when it was last there.
        self._files: list[_File] = []
        # A cancelled `follow` may close while its last poll still runs in a thread.
        self._lock = threading.Lock()

    def poll(self) -> list[str]:
        """The lines completed since the last poll. Blocking: call it in a thread. Raises nothing."""
        lines: list[str] = []
        with self._lock:
            self._look()
            self.behind = not self._read(lines)
            if not self.behind:
                self._give_up_rotated(lines)
        return lines

    async def follow(
        self, on_line: Callable[[str], None], clock: Clock, poll_interval_s: float = POLL_INTERVAL_S
    ) -> None:
        """Poll for ever and call `on_line` on the event loop for each line; closes when it is cancelled.

        Warns when the file can't be opened for 10 s, and every 60 s from then on.
        """
        complaint = _Complaint(self.path, clock)
        try:
            while True:
                for number, line in enumerate(await anyio.to_thread.run_sync(self.poll)):
                    on_line(line)
                    if number % LINES_PER_TURN == LINES_PER_TURN - 1:
                        await anyio.lowlevel.checkpoint()
                complaint.update(self.trouble)
                if not self.behind:
                    await sleep(clock, poll_interval_s)
        finally:
            self.close()

    def close(self) -> None:
        """Close the files; a later poll would begin anew."""
        with self._lock:
            while self._files:
                self._files.pop().close()

    def _look(self) -> None:
        """Open what the path leads to now.

        Anew at each poll: on an overlay file system a descriptor of an image's own file goes stale with the
        first write. A file that is still open keeps its inode number, so the same number is the same file.
        """
        try:
            if trouble := _unreadable(os.stat(self.path).st_mode):
                self.trouble = trouble
                return
            fd = os.open(self.path, _OPEN_FLAGS)
        except FileNotFoundError:
            self.trouble = "does not exist"
            return
        except OSError as e:
            self.trouble = f"can't be opened: {e.strerror}"
            return
        self.trouble = None
        self._take(fd)

    def _take(self, fd: int) -> None:
        """Go on with the file open as `fd`: a known one, also one that was renamed back, or a new one."""
        status = os.fstat(fd)
        file_id = (status.st_dev, status.st_ino)
        for position, file in enumerate(self._files):
            if file.file_id == file_id:
                file.reopened(fd)
                self._files.append(self._files.pop(position))
                return
        self._files.append(_File(fd, file_id))

    def _read(self, lines: list[str]) -> bool:
        """Whether all that there is was read."""
        budget = POLL_BYTES
        for file in self._files:
            try:
                budget -= file.read(budget, lines)
            except OSError as e:
                self.trouble = f"can't be read: {e.strerror}"
            if budget <= 0:
                return False  # in order: a newer file waits until the older one is read
        return True

    def _give_up_rotated(self, lines: list[str]) -> None:
        kept: list[_File] = []
        for file in self._files[:-1]:
            file.polls_left -= 1
            if file.polls_left > 0:
                kept.append(file)
            else:
                file.finish(lines)
                file.close()
        self._files[:-1] = kept


def _unreadable(mode: int) -> str | None:
    """Why a file of this mode can't be followed, or None. Opening a FIFO would wake its writer."""
    if stat.S_ISREG(mode):
        return None
    kind = "a directory" if stat.S_ISDIR(mode) else "a FIFO" if stat.S_ISFIFO(mode) else "a device or socket"
    return f"is {kind}, not a regular file"


class _File:
    """One file on disk: how far it was read, and what its unfinished line holds.

    A truncated file goes on from its beginning, and its unfinished line with it: the writer of a log
    that is truncated in place goes on where it was, often in the middle of a line (block-buffered output
    is cut anywhere). Where another writer begins instead, its first line has some text in front, which
    hides no match; parting the two would lose one.
    """

    def __init__(self, fd: int, file_id: _FileId) -> None:
        self.file_id = file_id
        self.polls_left = LINGER_POLLS
        self._fd = fd
        self._offset = 0
        # To know the file again by: the first bytes read, where they were, and the last before the offset.
        self._head = b""
        self._head_at = 0
        self._tail = b""
        self._splitter = _Splitter()

    def reopened(self, fd: int) -> None:
        """The path leads to this file (again): read on through `fd`."""
        self.close()
        self._fd = fd
        self.polls_left = LINGER_POLLS

    def read(self, limit_bytes: int, lines: list[str]) -> int:
        """Add to `lines` those completed by up to `limit_bytes` more; returns how many bytes were read.

        Fewer than the limit means: to the end of the file. Raises `OSError`, which may pass.
        """
        done = 0
        while done < limit_bytes:
            if not self._head:
                self._offset = self._head_at = _first_data(self._fd)
            chunk = os.pread(self._fd, min(CHUNK_BYTES, limit_bytes - done), self._offset)
            # After the read, so that what comes from a truncated file is not taken for its continuation.
            if not self._is_as_read():
                self._head = self._tail = b""
                continue
            if not chunk:
                break
            done += len(chunk)
            self._advance(chunk)
            lines += self._splitter.feed(chunk)
        return done

    def finish(self, lines: list[str]) -> None:
        """Add the unfinished line, if there is one: nobody will finish it."""
        lines += self._splitter.finish()

    def close(self) -> None:
        os.close(self._fd)

    def _is_as_read(self) -> bool:
        head = os.pread(self._fd, len(self._head), self._head_at)
        tail = os.pread(self._fd, len(self._tail), self._offset - len(self._tail))
        return head == self._head and tail == self._tail

    def _advance(self, chunk: bytes) -> None:
        self._offset += len(chunk)
        if len(self._head) < FINGERPRINT_BYTES:
            self._head += chunk[: FINGERPRINT_BYTES - len(self._head)]
        self._tail = (self._tail + chunk[-FINGERPRINT_BYTES:])[-FINGERPRINT_BYTES:]


def _first_data(fd: int) -> int:
    """Where the file's data begins: a writer that doesn't append leaves a hole where it was truncated."""
    try:
        return os.lseek(fd, 0, os.SEEK_DATA)
    except OSError:  # no data at all, or a file system that doesn't tell
        return 0


class _Splitter:
    """Bytes, cut anywhere, into lines: ended by LF, CR LF or a bare CR (progress bars).

    NULs are dropped: they are the rest of a hole, or every other byte of ASCII in UTF-16.
    """

    def __init__(self) -> None:
        self._pending = b""
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[str]:
        """The lines that `chunk` completes."""
        chunk = chunk.replace(b"\0", b"")
        if not chunk:
            return []
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        lines = (self._pending + chunk).splitlines()
        self._pending = lines.pop() if lines and not chunk.endswith((b"\n", b"\r")) else b""
        given = [text for line in lines for text in _pieces(line)]
        if len(self._pending) > MAX_LINE_BYTES:
            *pieces, self._pending = _cut(self._pending)
            given += map(_text, pieces)
        return given

    def finish(self) -> list[str]:
        """The unfinished line, if any."""
        pending, self._pending = self._pending, b""
        return [_text(pending)] if pending else []


def _pieces(line: bytes) -> list[str]:
    return [_text(line)] if len(line) <= MAX_LINE_BYTES else [_text(piece) for piece in _cut(line)]


def _cut(line: bytes) -> list[bytes]:
    """`line` in pieces of at most `MAX_LINE_BYTES`, no UTF-8 character cut."""
    pieces: list[bytes] = []
    start = 0
    while len(line) - start > MAX_LINE_BYTES:
        end = start + MAX_LINE_BYTES
        while line[end] & 0xC0 == 0x80 and end > start + MAX_LINE_BYTES - 3:
            end -= 1
        pieces.append(line[start:end])
        start = end
    return [*pieces, line[start:]]


def _text(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1")


class _Complaint:
    """Says in the log that the file can't be opened: late enough for a slow start, and not too often."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._since_s: float | None = None
        self._next_s = 0.0
        self._told = False

    def update(self, trouble: str | None) -> None:
        if trouble is None:
            if self._told:
                log.info("model log %s is there now", self._path)
            self._since_s, self._told = None, False
            return
        now_s = self._clock.monotonic()
        if self._since_s is None:
            self._since_s, self._next_s = now_s, now_s + MISSING_WARN_AFTER_S
        if now_s >= self._next_s:
            log.warning("model log %s %s, for %.0f s now", self._path, trouble, now_s - self._since_s)
            self._told, self._next_s = True, now_s + MISSING_WARN_EVERY_S
