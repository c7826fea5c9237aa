"""Copies its standard input to the console and to the log, which it rotates at a size.

A process of its own: the worker's output is still written if the launcher is killed. The worker must not end
because the console is gone or the disk is full, so it is never refused a line.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

CHUNK_BYTES = 65536


def copy(source: int, console: int, path: Path, limit_bytes: int) -> None:
    """Copy `source` until its end to `console` and to the end of the file `path`.

    Before a chunk that would make the file larger than `limit_bytes`, it becomes `.old`. A console or a disk
    that takes nothing is ignored.
    """
    log = _opened(path)
    while chunk := os.read(source, CHUNK_BYTES):
        try:
            _write_all(console, chunk)
        except OSError:
            console = os.open(os.devnull, os.O_WRONLY)
        try:
            if log.tell() + len(chunk) > limit_bytes:
                with suppress(FileNotFoundError):  # it was moved, but no new one could be opened
                    os.replace(path, f"{path}.old")
                full, log = log, _opened(path)
                full.close()
            log.write(chunk)
        except OSError:
            pass
    log.close()


def _opened(path: Path) -> io.FileIO:
    return io.FileIO(path, "a")


def _write_all(console: int, chunk: bytes) -> None:
    while chunk:
        chunk = chunk[os.write(console, chunk) :]


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the worker still writes after these signals
    copy(0, 1, Path(sys.argv[1]), int(sys.argv[2]))
