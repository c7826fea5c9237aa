"""A worker that isn't ready logs why, every 30 s."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest

from lib.model.readiness import Cause, Readiness, ReadySignal
from lib.model.readiness_log import NOT_READY_LOG_S, ReadinessLog
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
        assert await passes(NOT_READY_LOG_S - 1) == []
        assert await passes(1) == [("INFO", "not ready: log, benchmark")]
        readiness.note_signal(ReadySignal.LOG, "loaded")
        assert await passes(NOT_READY_LOG_S) == [("INFO", "not ready: benchmark")]
        readiness.set_max_perf(5.0, "measured")
        assert await passes(10 * NOT_READY_LOG_S) == []

        readiness.set_error(Cause.LOG, "CUDA error")
        assert await passes(NOT_READY_LOG_S - 1) == []
        readiness.clear_error(Cause.LOG, "it recovered")
        readiness.set_error(Cause.LOG, "CUDA error")
        assert await passes(NOT_READY_LOG_S - 1) == []
        assert await passes(1) == [("WARNING", "not ready: CUDA error")]
        readiness.drain()
        assert await passes(10 * NOT_READY_LOG_S) == []
