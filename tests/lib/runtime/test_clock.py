"""Waiting on a clock, and the clock of the system."""

from __future__ import annotations

import asyncio
import time

import anyio
import pytest

from lib.runtime.clock import SystemClock, sleep, time_limit, wait_for
from tests.manual_clock import ManualClock


async def test_the_systems_clock() -> None:
    clock = SystemClock()
    assert clock.monotonic() <= clock.monotonic()
    assert abs(clock.wall() - time.time()) < 60
    fired = asyncio.Event()
    clock.call_later(0.0, fired.set)
    await fired.wait()


async def test_sleep_ends_when_its_time_has_come() -> None:
    clock = ManualClock()
    sleeping = asyncio.ensure_future(sleep(clock, 5.0))
    await clock.wait_for_timers()
    clock.advance(4.9)
    await anyio.wait_all_tasks_blocked()
    assert not sleeping.done()
    clock.advance(0.2)
    await sleeping


async def test_a_cancelled_sleep_leaves_no_timer() -> None:
    clock = ManualClock()
    sleeping = asyncio.ensure_future(sleep(clock, 5.0))
    await clock.wait_for_timers()
    sleeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeping
    assert clock.pending == 0


async def test_wait_for_says_whether_the_event_came() -> None:
    clock, event = ManualClock(), asyncio.Event()
    waiting = asyncio.ensure_future(wait_for(clock, event, 5.0))
    await clock.wait_for_timers()
    clock.advance(5.0)
    assert await waiting is False
    waiting = asyncio.ensure_future(wait_for(clock, event, 5.0))
    await clock.wait_for_timers()
    event.set()
    assert await waiting is True
    assert await wait_for(clock, event, 0.0) is True
    assert clock.pending == 0


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    clock, event = ManualClock(), asyncio.Event()
    before = len(asyncio.all_tasks())
    waiting = asyncio.ensure_future(wait_for(clock, event, 5.0))
    await clock.wait_for_timers()
    waiting.cancel()
    await anyio.wait_all_tasks_blocked()
    assert waiting.cancelled()
    assert (clock.pending, len(asyncio.all_tasks())) == (0, before)


async def test_a_time_limit_cuts_its_block() -> None:
    clock = ManualClock()
    cut: list[bool] = []

    async def work() -> None:
        with time_limit(clock, 5.0) as scope:
            await anyio.sleep_forever()
        cut.append(scope.cancelled_caught)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await clock.wait_for_timers()
        clock.advance(5.0)
    assert cut == [True]


async def test_a_time_limit_lets_what_is_quicker_pass() -> None:
    clock = ManualClock()
    with pytest.raises(RuntimeError), time_limit(clock, 5.0):
        raise RuntimeError
    with time_limit(clock, 5.0) as scope:
        await anyio.lowlevel.checkpoint()
    assert (scope.cancelled_caught, clock.pending) == (False, 0)
