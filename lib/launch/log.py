"""The launcher's messages, and the log of the worker and of everything before it.

Owns the console, the file `pyworker.log` and the message of the current step. It does not own the writing of
that file, which is a process of its own (lib/launch/log_writer.py).
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lib.launch import log_writer
from lib.runtime.intervals import interval_s

LOG_BYTES = 64 * 1024 * 1024
# The end of the log that is reported to the engine after a failure.
LAST_LINES = 20
LAST_BYTES = 3000
# A process that the worker has left behind may go on writing.
CLOSE_LIMIT_S = 2.0


class LaunchLog:
    """The output of this process and of all that it starts: on the console, after `open` also in a file."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._path: Path | None = None
        self._console: tuple[int, int] | None = None
        self._writer: subprocess.Popen[bytes] | None = None
        self._step = ""
        self._since_s = 0.0
        self._due_s = math.inf  # when the next line about a wait is due

    def say(self, text: str) -> None:
        """Write one message; after `close`, to the console and to the file."""
        data = f"{time.strftime('%Y-%m-%d %H:%M:%S')} start_server.sh: {text}\n".encode(
            errors="surrogateescape"
        )
        with suppress(OSError):
            os.write(2, data)
        if self._path is not None and self._writer is None:
            with suppress(OSError), open(self._path, "ab") as file:
                file.write(data)

    def begin(self, step: str) -> None:
        """Say that this step begins."""
        self._step = step
        self._since_s = self._monotonic()
        self._due_s = self._since_s + interval_s(0.0)
        self.say(step)

    def wait_s(self) -> float:
        """Return the seconds until `say_waiting` has something to say."""
        return max(0.0, self._due_s - self._monotonic())

    def say_waiting(self) -> None:
        """Say what is waited for, if that is due: every 30 s at first, then ever less often."""
        now_s = self._monotonic()
        if now_s >= self._due_s:
            waited_s = now_s - self._since_s
            self._due_s = now_s + interval_s(waited_s)
            self.say(f"still {self._step}, for {waited_s:.0f} s so far")

    def open(self, path: Path) -> bool:
        """Write all further output to the file `path` too; return whether it can be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            open(path, "ab").close()
        except OSError:
            return False
        self._path = path
        source, end = os.pipe()
        self._writer = subprocess.Popen(
            [sys.executable, "-IS", log_writer.__file__, path, str(LOG_BYTES)],
            stdin=source,
            start_new_session=True,  # Ctrl-C is not for it
        )
        self._console = os.dup(1), os.dup(2)
        os.dup2(end, 1)
        os.dup2(end, 2)
        os.close(source)
        os.close(end)
        return True

    def close(self) -> None:
        """Wait until the file is complete, for at most `CLOSE_LIMIT_S` seconds."""
        if self._writer is None or self._console is None:
            return
        for number, console in enumerate(self._console, 1):
            os.dup2(console, number)
            os.close(console)
        with suppress(subprocess.TimeoutExpired):
            self._writer.wait(CLOSE_LIMIT_S)
        self._writer = self._console = None

    def last_lines(self) -> str:
        """Return the last lines of the file that belong to the current step; complete after `close`."""
        if self._path is None:
            return ""
        try:
            with open(self._path, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 2 * LAST_BYTES))
                end = file.read()
        except OSError:
            return ""
        lines = b"\n".join(end.rstrip(b"\n").split(b"\n")[-LAST_LINES:])[-LAST_BYTES:]
        return lines.decode(errors="replace").rpartition(f" start_server.sh: {self._step}\n")[2]
