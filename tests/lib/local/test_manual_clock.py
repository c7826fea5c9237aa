"""The manual clock calls timers in the order in which they are due."""

from __future__ import annotations

import asyncio

from lib.runtime.clock import Clock, sleep, wait_for
from tests.manual_clock import ManualClock


def test_it_is_a_clock_that_stands_still() -> None:
    manual = ManualClock(monotonic_s=5.0, wall_s=100.0)
    clock: Clock = manual
    assert (clock.monotonic(), clock.wall()) == (5.0, 100.0)
    manual.advance(2.5)
    assert (clock.monotonic(), clock.wall()) == (7.5, 102.5)


def test_callbacks_fire_in_order_each_at_its_time() -> None:
    clock = ManualClock(monotonic_s=0.0)
    fired: list[tuple[str, float]] = []
    clock.call_later(3.0, lambda: fired.append(("c", clock.monotonic())))
    clock.call_later(1.0, lambda: fired.append(("a", clock.monotonic())))
    clock.call_later(1.0, lambda: fired.append(("b", clock.monotonic())))
    clock.call_later(2.0, lambda: fired.append(("never", clock.monotonic()))).cancel()
    clock.call_later(9.0, lambda: fired.append(("later", clock.monotonic())))
    clock.advance(4.0)
    assert fired == [("a", 1.0), ("b", 1.0), ("c", 3.0)]
    assert clock.monotonic() == 4.0
    assert clock.pending == 1


def test_a_callback_may_set_the_next() -> None:
    clock = ManualClock(monotonic_s=0.0)
    ticks: list[float] = []

    def tick() -> None:
        ticks.append(clock.monotonic())
        clock.call_later(1.0, tick)

    clock.call_later(1.0, tick)
    clock.advance(3.5)
    assert ticks == [1.0, 2.0, 3.0]


async def test_sleepers_wake() -> None:
    clock = ManualClock()
    sleeping = asyncio.ensure_future(sleep(clock, 10.0))
    waiting = asyncio.ensure_future(wait_for(clock, asyncio.Event(), 20.0))
    await clock.wait_for_timers(2)
    clock.advance(10.0)
    await sleeping
    assert not waiting.done()
    clock.advance(10.0)
    assert await waiting is False
    assert clock.pending == 0
