"""A worker that isn't ready logs why, every 30 s at first."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import pairwise

import anyio
import pytest

from lib.model.readiness import Cause, Readiness, ReadySignal
from lib.model.readiness_log import ReadinessLog
from lib.runtime.intervals import FIRST_INTERVAL_S
from tests.manual_clock import ManualClock


@asynccontextmanager
async def logging_of(readiness: Readiness) -> AsyncGenerator[None, None]:
    async def describe() -> str:
        return readiness.error_msg or ", ".join(readiness.missing)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ReadinessLog(readiness, describe).follow)
        await anyio.wait_all_tasks_blocked()
        yield
        tasks.cancel_scope.cancel()


async def test_the_reason_is_logged_every_30_s_until_ready_and_again_after_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = ManualClock()
    readiness = Readiness([ReadySignal.LOG], needs_key=False, clock=clock)

    async def passes(seconds: float) -> list[tuple[str, str]]:
        caplog.clear()
        clock.advance(seconds)
        await anyio.wait_all_tasks_blocked()
        lines = [(r.levelname, r.getMessage()) for r in caplog.records]
        caplog.clear()
        return lines

    caplog.set_level(logging.INFO, "lib.model.readiness_log")
    async with logging_of(readiness):
        assert await passes(FIRST_INTERVAL_S - 1) == []
        assert await passes(1) == [("INFO", "not ready: log, benchmark")]
        readiness.note_signal(ReadySignal.LOG, "loaded")
        assert await passes(FIRST_INTERVAL_S) == [("INFO", "not ready: benchmark")]
        readiness.set_max_perf(5.0, "measured")
        assert await passes(10 * FIRST_INTERVAL_S) == []

        readiness.set_error(Cause.LOG, "CUDA error")
        assert await passes(FIRST_INTERVAL_S - 1) == []
        readiness.clear_error(Cause.LOG, "it recovered")
        readiness.set_error(Cause.LOG, "CUDA error")
        assert await passes(FIRST_INTERVAL_S - 1) == []
        assert await passes(1) == [("WARNING", "not ready: CUDA error")]
        readiness.drain()
        assert await passes(10 * FIRST_INTERVAL_S) == []


async def test_a_long_wait_is_logged_ever_less_often(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    readiness = Readiness([ReadySignal.LOG], needs_key=False, clock=clock)
    caplog.set_level(logging.INFO, "lib.model.readiness_log")
    logged_at: list[float] = []
    async with logging_of(readiness):
        for second in range(1, 601):
            caplog.clear()
            clock.advance(1)
            await anyio.wait_all_tasks_blocked()
            logged_at += [second for _ in caplog.records]
    waits = [later - earlier for earlier, later in pairwise([0, *logged_at])]
    assert waits[:4] == [30, 30, 30, 30]
    assert waits == sorted(waits)
    assert 90 < waits[-1] <= 150
