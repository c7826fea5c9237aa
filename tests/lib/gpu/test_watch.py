"""The thread that watches the GPUs: what it passes on, and that it ends."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.to_thread import run_sync as in_thread

from lib.gpu.health import GpuHealth
from lib.gpu.nvml import Readings, Xid
from lib.gpu.watch import POLL_S, GpuWatch
from tests.fakes.nvml import (
    LIBRARY_NOT_FOUND,
    UNDER_LOAD,
    VERSION_MISMATCH,
    FakeNvml,
    NvmlError,
)
from tests.guard import GUARD_S
from tests.manual_clock import ManualClock


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "GPU health"]


async def none_remain() -> None:
    """Return once the threads have ended: they may take a moment after their last call."""
    with anyio.fail_after(GUARD_S):
        for thread in threads():
            await in_thread(thread.join)
    assert not threads()


class NotedHealth(GpuHealth):
    """Wakes `changed` at each call."""

    changed: asyncio.Event

    def note_readings(self, readings: Readings) -> None:
        super().note_readings(readings)
        self.changed.set()

    def note_xid(self, xid: Xid) -> None:
        super().note_xid(xid)
        self.changed.set()

    def note_time(self) -> None:
        super().note_time()
        self.changed.set()


class Watched:
    """The health of GPUs, watched on a manual clock."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.errors: list[str] = []
        self.health = NotedHealth(self.clock, self.errors.append)
        self.health.changed = asyncio.Event()

    async def until(self, condition: Callable[[], object]) -> None:
        """Return once `condition` holds; it is looked at after each call."""
        with anyio.fail_after(GUARD_S):
            while not condition():
                self.health.changed = asyncio.Event()
                await self.health.changed.wait()


@asynccontextmanager
async def watched(fake: FakeNvml) -> AsyncGenerator[Watched, None]:
    system = Watched()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(GpuWatch(system.health, system.clock, fake.load).follow)
        yield system
        tasks.cancel_scope.cancel()


async def test_readings_and_events_come_and_the_thread_ends_with_the_task() -> None:
    fake = FakeNvml(recorded=UNDER_LOAD)
    async with watched(fake) as system:
        await system.until(lambda: system.health.gpus)
        assert [gpu.utilization for gpu in system.health.gpus] == [0.98]
        fake.tell_xid(31)
        fake.tell_xid(79)
        await system.until(lambda: len(system.health.findings) == 2)
        assert len(system.errors) == 1
        assert len(threads()) == 1
        assert threads()[0].daemon
    assert not fake.is_open
    await none_remain()


async def test_it_is_read_again_after_the_pause() -> None:
    fake = FakeNvml()
    async with watched(fake) as system:
        await system.until(lambda: system.health.gpus)
        fake.answers[0]["nvmlDeviceGetRemappedRows"] = (0, 1, 1, 0)
        await system.clock.wait_for_timers()
        system.clock.advance(POLL_S)
        await system.until(lambda: system.health.findings)


def missing_module() -> Any:
    raise ModuleNotFoundError("No module named 'pynvml'")


def without_driver() -> FakeNvml:
    fake = FakeNvml()
    fake.failing["nvmlInit"] = NvmlError(LIBRARY_NOT_FOUND)
    return fake


@pytest.mark.parametrize("load", [missing_module, without_driver, FakeNvml(count=0).load])
async def test_without_a_gpu_nothing_remains(
    load: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    system = Watched()
    with anyio.fail_after(GUARD_S):
        await GpuWatch(system.health, system.clock, load).follow()
    await none_remain()
    assert system.health.facts() is None
    assert not [r for r in caplog.records if r.levelno >= logging.INFO]


async def test_a_driver_that_does_not_fit_the_library_is_told(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeNvml()
    fake.failing["nvmlInit"] = NvmlError(VERSION_MISMATCH)
    system = Watched()
    with anyio.fail_after(GUARD_S):
        await GpuWatch(system.health, system.clock, fake.load).follow()
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "GPU health is off, NVML can't be used: RM has detected an NVML/RM version mismatch."
    ]


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetMemoryInfo", "nvmlEventSetWait_v2"])
async def test_a_call_that_hangs_is_told_and_does_not_hold_up_the_stop(function: str) -> None:
    fake = FakeNvml()
    fake.hanging[function] = threading.Event()
    try:
        async with watched(fake) as system:
            with anyio.fail_after(GUARD_S):
                await in_thread(fake.hangs.wait)
            while not system.health.is_stale:
                await system.clock.wait_for_timers()
                system.clock.advance(POLL_S)
            await system.until(lambda: system.health.findings)
        assert not system.errors
    finally:
        fake.hanging[function].set()
    await none_remain()


async def test_an_error_that_nobody_expects_ends_the_watch_but_not_the_worker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake = FakeNvml()
    fake.answers[0]["nvmlDeviceGetRemappedRows"] = 5  # no tuple
    system = Watched()
    with anyio.fail_after(GUARD_S):
        await GpuWatch(system.health, system.clock, fake.load).follow()
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.getMessage() == "GPU health has ended: it failed"
    assert not fake.is_open
