"""The model server's log file as a sequence of lines (docs/operating.md, "States").

Owns the file: waiting for it, rotation, truncation in place, unfinished lines, any encoding. The meaning of
lines is in watch.py.
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
# A rotated file is read for this many more polls, about 10 s: its writer may still have it open.
LINGER_POLLS = 100
MISSING_WARN_AFTER_S = 10.0
MISSING_WARN_EVERY_S = 60.0
# Longer lines are returned in pieces, so that a log without line ends can't fill the memory.
MAX_LINE_BYTES = 1024 * 1024
CHUNK_BYTES = 256 * 1024
# The most that one poll reads: a large old log takes several.
POLL_BYTES = 8 * 1024 * 1024
# Bytes by which a file is recognized: at its beginning, and before the position up to which it was read.
FINGERPRINT_BYTES = 1024
# Lines passed on before the event loop may run other tasks.
LINES_PER_TURN = 500

# A terminal must not become this process's, and opening a FIFO must not wait for its writer.
_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

_FileId = tuple[int, int]


class LogTail:
    """Every line of the log at `path`, from its beginning, across rotation and truncation in place.

    No line is missed as long as at most one rotation or truncation happens between two polls, except lines
    that are written and truncated between the same two polls. A truncation is not detected if the file then
    begins with the same bytes as before.

    `trouble` is the reason why the file can't be opened, or None. `behind` is set if the last poll did not
    reach the end of the log: poll again immediately. `beginnings` counts files, and truncations of them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble: str | None = None
        self.behind = False
        self.beginnings = 0
        # Oldest first; the last one is the file that the path last led to.
        self._files: list[_File] = []
        # A cancelled `follow` may close while its last poll still runs in a thread.
        self._lock = threading.Lock()

    def poll(self) -> list[str]:
        """Return the lines completed since the last poll. It blocks: call it in a thread. Raises nothing."""
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
        """Poll until cancelled, call `on_line` on the event loop for each line, and close the files.

        Logs a warning when the file can't be opened for 10 s, and then every 60 s.
        """
        trouble_log = _TroubleLog(self.path, clock)
        try:
            while True:
                for number, line in enumerate(await anyio.to_thread.run_sync(self.poll)):
                    on_line(line)
                    if number % LINES_PER_TURN == LINES_PER_TURN - 1:
                        await anyio.lowlevel.checkpoint()
                trouble_log.update(self.trouble)
                if not self.behind:
                    await sleep(clock, poll_interval_s)
        finally:
            self.close()

    def close(self) -> None:
        """Close the files; a later poll would read the log from its beginning."""
        with self._lock:
            while self._files:
                self._files.pop().close()

    def _look(self) -> None:
        """Open the file that the path leads to now, again at each poll.

        On an overlay file system, a descriptor of a file of the image goes stale with the first write. A file
        that is still open keeps its inode number, so the same number means the same file.
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
        """Continue with the file open as `fd`: a known one, even one that was renamed back, or a new one."""
        status = os.fstat(fd)
        file_id = (status.st_dev, status.st_ino)
        for position, file in enumerate(self._files):
            if file.file_id == file_id:
                file.reopened(fd)
                self._files.append(self._files.pop(position))
                return
        self._files.append(_File(fd, file_id))
        self.beginnings += 1

    def _read(self, lines: list[str]) -> bool:
        """Read the files, oldest first; return whether all of them were read to their ends."""
        budget = POLL_BYTES
        for file in self._files:
            truncations = file.truncations
            try:
                budget -= file.read(budget, lines)
            except OSError as e:
                self.trouble = f"can't be read: {e.strerror}"
            self.beginnings += file.truncations - truncations
            if budget <= 0:
                return False  # lines come in order: a newer file waits until the older one is read
        return True

    def _give_up_rotated(self, lines: list[str]) -> None:
        """Close rotated files after `LINGER_POLLS` polls, with their unfinished lines."""
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
    """The reason why a file of this mode can't be followed, or None. Opening a FIFO would wake its writer."""
    if stat.S_ISREG(mode):
        return None
    kind = "a directory" if stat.S_ISDIR(mode) else "a FIFO" if stat.S_ISFIFO(mode) else "a device or socket"
    return f"is {kind}, not a regular file"


class _File:
    """One file on disk: the position up to which it was read, and its unfinished line.

    After a truncation, reading continues at the beginning, and the unfinished line is kept: a writer whose
    log is truncated in place continues where it was, often in the middle of a line, since block-buffered
    output is cut anywhere. If another writer begins instead, its first line has the kept text in front, which
    hides no match. Dropping the kept text could lose one.
    """

    def __init__(self, fd: int, file_id: _FileId) -> None:
        self.file_id = file_id
        self.polls_left = LINGER_POLLS
        self.truncations = 0
        self._fd = fd
        self._offset = 0
        # The file's fingerprint: the first bytes read, their position, and the last bytes before the offset.
        self._head = b""
        self._head_at = 0
        self._tail = b""
        self._splitter = _Splitter()

    def reopened(self, fd: int) -> None:
        """Continue reading through `fd`, opened where the path leads now."""
        self.close()
        self._fd = fd
        self.polls_left = LINGER_POLLS

    def read(self, limit_bytes: int, lines: list[str]) -> int:
        """Read up to `limit_bytes`, add completed lines to `lines`, and return the number of bytes read.

        Fewer than the limit means that the end of the file was reached. Raises `OSError`; a later call may
        succeed.
        """
        done = 0
        while done < limit_bytes:
            if not self._head:
                self._offset = self._head_at = _first_data(self._fd)
            chunk = os.pread(self._fd, min(CHUNK_BYTES, limit_bytes - done), self._offset)
            # Checked after the read, so that bytes of a truncated file are not taken for a continuation.
            if not self._is_as_read():
                self._head = self._tail = b""
                self.truncations += 1
                continue
            if not chunk:
                break
            done += len(chunk)
            self._advance(chunk)
            lines += self._splitter.feed(chunk)
        return done

    def finish(self, lines: list[str]) -> None:
        """Add the unfinished line, if there is one, to `lines`."""
        lines += self._splitter.finish()

    def close(self) -> None:
        os.close(self._fd)

    def _is_as_read(self) -> bool:
        """Whether the file still has its fingerprint."""
        head = os.pread(self._fd, len(self._head), self._head_at)
        tail = os.pread(self._fd, len(self._tail), self._offset - len(self._tail))
        return head == self._head and tail == self._tail

    def _advance(self, chunk: bytes) -> None:
        self._offset += len(chunk)
        if len(self._head) < FINGERPRINT_BYTES:
            self._head += chunk[: FINGERPRINT_BYTES - len(self._head)]
        self._tail = (self._tail + chunk[-FINGERPRINT_BYTES:])[-FINGERPRINT_BYTES:]


def _first_data(fd: int) -> int:
    """The position of the first data: a writer that doesn't append leaves a hole after a truncation."""
    try:
        return os.lseek(fd, 0, os.SEEK_DATA)
    except OSError:  # no data at all, or a file system without this query
        return 0


class _Splitter:
    """Splits chunks of bytes into lines, which end with LF, CR LF or a bare CR (progress bars).

    NUL bytes are dropped: they are the rest of a hole, or every other byte of ASCII text in UTF-16.
    """

    def __init__(self) -> None:
        self._pending = b""
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[str]:
        """Return the lines that `chunk` completes."""
        chunk = chunk.replace(b"\0", b"")
        if not chunk:
            return []
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        lines = (self._pending + chunk).splitlines()
        self._pending = lines.pop() if lines and not chunk.endswith((b"\n", b"\r")) else b""
        completed = [text for line in lines for text in _pieces(line)]
        if len(self._pending) > MAX_LINE_BYTES:
            *pieces, self._pending = _cut(self._pending)
            completed += map(_text, pieces)
        return completed

    def finish(self) -> list[str]:
        """Return the unfinished line, if there is one."""
        pending, self._pending = self._pending, b""
        return [_text(pending)] if pending else []


def _pieces(line: bytes) -> list[str]:
    return [_text(line)] if len(line) <= MAX_LINE_BYTES else [_text(piece) for piece in _cut(line)]


def _cut(line: bytes) -> list[bytes]:
    """Cut `line` into pieces of at most `MAX_LINE_BYTES`, never within a UTF-8 character."""
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


class _TroubleLog:
    """Logs that the file can't be opened: not yet during a slow start, and not too often."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._since_s: float | None = None
        self._next_s = 0.0
        self._warned = False

    def update(self, trouble: str | None) -> None:
        if trouble is None:
            if self._warned:
                log.info("model log %s can be read now", self._path)
            self._since_s, self._warned = None, False
            return
        now_s = self._clock.monotonic()
        if self._since_s is None:
            self._since_s, self._next_s = now_s, now_s + MISSING_WARN_AFTER_S
        if now_s >= self._next_s:
            log.warning("model log %s %s (for %.0f s)", self._path, trouble, now_s - self._since_s)
            self._warned, self._next_s = True, now_s + MISSING_WARN_EVERY_S
