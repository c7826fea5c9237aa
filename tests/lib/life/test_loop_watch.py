"""Code that blocks the event loop is noticed, and its stack logged."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator

import pytest
from anyio.lowlevel import checkpoint

from lib.life.loop_watch import QUIET_S, loop_watched
from tests.guard import GUARD_S

INTERVAL_S = 0.005
BLOCKED_S = 0.05


class Lines(logging.Handler):
    """Sets `seen` with each line of the watch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = threading.Event()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        self.seen.set()


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler = Lines()
    logger = logging.getLogger("lib.life.loop_watch")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


async def author_code(until: threading.Event) -> bool:
    return until.wait(GUARD_S)


async def test_the_stack_that_blocks_is_logged(lines: Lines) -> None:
    with loop_watched(INTERVAL_S, BLOCKED_S):
        assert await author_code(lines.seen)
    (line,) = lines.messages
    assert line.startswith("the event loop has been blocked for 0.05 s, and no request is served meanwhile: ")
    calls = line.split("; called by ")
    assert any("in author_code: return until.wait(GUARD_S)" in call for call in calls)
    assert ": threading.py:" in calls[0]


async def test_one_line_is_logged_a_minute(lines: Lines) -> None:
    now = 0.0
    asked = threading.Semaphore(0)

    def monotonic() -> float:
        asked.release()
        return now

    def blocked() -> None:
        assert asked.acquire(timeout=GUARD_S)

    with loop_watched(INTERVAL_S, BLOCKED_S, monotonic):
        blocked()
        await checkpoint()
        lines.seen.wait(GUARD_S)
        now = QUIET_S - 1
        blocked()
        assert len(lines.messages) == 1
        await checkpoint()
        now, _ = QUIET_S, lines.seen.clear()
        blocked()
        assert lines.seen.wait(GUARD_S)
    assert len(lines.messages) == 2


async def test_a_loop_that_works_is_not_reported(lines: Lines) -> None:
    loop = asyncio.get_running_loop()
    with loop_watched(0.0, GUARD_S):
        for _ in range(100):
            await loop.run_in_executor(None, threading.get_ident)
    assert lines.messages == []
