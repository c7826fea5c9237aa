"""Noticing that code blocks the event loop, on which all requests are served.

Owns a thread that asks the loop for a sign of life every second, and logs the stack of the loop's thread when
none comes: a `time.sleep` in an async function stops the whole worker.
"""

from __future__ import annotations

import asyncio
import linecache
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

log = logging.getLogger(__name__)

# Seconds between two questions, and without a sign of life until the stack is logged.
INTERVAL_S = 1.0
BLOCKED_S = 2.0
# Seconds from one line of the log to the next.
QUIET_S = 60.0
# Callers that are logged, from the innermost outwards.
FRAMES = 8


@contextmanager
def loop_watched(
    interval_s: float = INTERVAL_S,
    blocked_s: float = BLOCKED_S,
    monotonic: Callable[[], float] = time.monotonic,
) -> Generator[None, None, None]:
    """Watch the running event loop inside the block; `monotonic` is the clock for `QUIET_S`."""
    watch = _LoopWatch(asyncio.get_running_loop(), interval_s, blocked_s, monotonic)
    thread = threading.Thread(target=watch.follow, name="event loop watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        watch.stopped.set()


class _LoopWatch:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        interval_s: float,
        blocked_s: float,
        monotonic: Callable[[], float],
    ) -> None:
        self.stopped = threading.Event()
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._interval_s = interval_s
        self._blocked_s = blocked_s
        self._monotonic = monotonic
        self._logged_at: float | None = None

    def follow(self) -> None:
        """Ask the loop again and again until `stopped`, or until the loop is closed."""
        while not self.stopped.wait(self._interval_s):
            sign = threading.Event()
            try:
                self._loop.call_soon_threadsafe(sign.set)
            except RuntimeError:
                return
            # Twice: after the whole process was suspended, the loop has to come first.
            if not sign.wait(self._blocked_s) and not sign.wait(self._blocked_s / 10):
                self._note_blocked()
            while not sign.wait(self._interval_s) and not self.stopped.is_set():
                pass

    def _note_blocked(self) -> None:
        now = self._monotonic()
        if self._logged_at is not None and now - self._logged_at < QUIET_S:
            return
        self._logged_at = now
        log.warning(
            "the event loop has been blocked for %g s, and no request is served meanwhile: %s",
            self._blocked_s,
            _stack_of(self._loop_thread),
        )


def _stack_of(thread: int) -> str:
    """The calls that a thread is in, the innermost first, on one line."""
    frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage]
    calls: list[str] = []
    for caller, line_number in islice(traceback.walk_stack(frame), FRAMES) if frame is not None else ():
        code = caller.f_code
        line = linecache.getline(code.co_filename, line_number, caller.f_globals).strip()
        calls.append(f"{Path(code.co_filename).name}:{line_number} in {code.co_name}: {line}")
    return "; called by ".join(calls)
