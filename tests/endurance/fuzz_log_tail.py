"""Random bytes in a log that is rotated and truncated: the lines seen are the lines written.

tests/lib/model/test_fuzz_log_tail.py plays a few logs. By hand, many:

    python -m tests.endurance.fuzz_log_tail 5000
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from pathlib import Path

from lib.model.log_tail import LINGER_POLLS, LogTail

ENDS = (b"\n", b"\r\n", b"\r")
# Bytes that end a line, or that the tail drops.
NOT_IN_A_LINE = bytes.maketrans(b"\n\r\0", b"???")


class PlayedLog:
    """A log at `path`, its writer, and a tail that reads it. `lines` have what is to be written, in order."""

    def __init__(self, path: Path, source: random.Random) -> None:
        self._path = path
        self._source = source
        self._rotations = 0
        self._tail = LogTail(path)
        self._files = [path]  # those that are still written to, the newest last
        self.lines = [self._line(number) for number in range(source.randint(1, 30))]
        self.found: list[str] = []
        path.touch()

    def play(self) -> None:
        """Write all lines in parts of any size, with polls, rotations and truncations between them."""
        for line in self.lines:
            rest = line
            while rest:
                size = self._source.randint(1, len(rest))
                with self._files[-1].open("ab") as file:
                    file.write(rest[:size])
                rest = rest[size:]
                self._disturb()
            self._files[:] = [self._path]
            if self._source.random() < 0.2:
                self._rotate()
                self._files[:] = [self._path]
        for _ in range(LINGER_POLLS + 2):
            self.poll()
        self._tail.close()

    def poll(self) -> None:
        self.found += self._tail.poll()
        while self._tail.behind:
            self.found += self._tail.poll()

    def _disturb(self) -> None:
        """Poll, rotate or truncate. The writer of a line goes on in the file in which it has begun."""
        what = self._source.random()
        if what < 0.4:
            self.poll()
        elif what < 0.5:
            self._rotate()
        elif what < 0.6 and self._files == [self._path]:
            self.poll()  # what is truncated unread is lost
            os.truncate(self._path, 0)

    def _rotate(self) -> None:
        """Move the file away and make a new one; a second rotation between two polls would lose a file."""
        self.poll()
        self._rotations += 1
        moved = self._path.with_suffix(f".{self._rotations}")
        self._path.rename(moved)
        self._path.touch()
        self._files = [moved if path == self._path else path for path in self._files]

    def _line(self, number: int) -> bytes:
        size = self._source.choice((0, 1, 5, 50, 3000))
        text = self._source.randbytes(size).translate(NOT_IN_A_LINE)
        return b"<%d>%s%s" % (number, text, self._source.choice(ENDS))


def text_of(line: bytes) -> str:
    """A written line as the tail should return it."""
    line = line.rstrip(b"\r\n")
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1")


def play_logs(count: int, seed: int) -> int:
    """Play `count` logs; return the number of lines. Raises `AssertionError` for the first difference."""
    source, lines = random.Random(seed), 0
    for number in range(count):
        with tempfile.TemporaryDirectory() as folder:
            log = PlayedLog(Path(folder) / "model.log", source)
            log.play()
        assert log.found == [text_of(line) for line in log.lines], f"seed {seed}, log {number}"
        lines += len(log.lines)
    return lines


if __name__ == "__main__":
    found = play_logs(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6))
    print(f"{found} lines, each found once and in order")
