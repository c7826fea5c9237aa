"""The clock: durations from a monotonic clock, wall time for fields of messages, and timers.

Owns the `Clock` protocol, the system's clock and waiting on a clock. Tests replace the clock by one that they
advance themselves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol

import anyio


class Timer(Protocol):
    """A scheduled call that can be cancelled."""

    def cancel(self) -> object: ...


class Clock(Protocol):
    """A source of time, and of timers that follow it."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary point; never decreases."""
        ...

    def wall(self) -> float:
        """Unix time in seconds, for fields of messages only."""
        ...

    def call_later(self, delay_s: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` on the event loop once `delay_s` seconds have passed."""
        ...


class SystemClock:
    """The system's clock. Its times are Python's functions themselves: each request calls them."""

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)

    def call_later(self, delay_s: float, callback: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_later(delay_s, callback)


async def sleep(clock: Clock, delay_s: float) -> None:
    """Return once `delay_s` seconds have passed on `clock`."""
    done = asyncio.Event()
    timer = clock.call_later(delay_s, done.set)
    try:
        await done.wait()
    finally:
        timer.cancel()


async def wait_for(clock: Clock, event: asyncio.Event, limit_s: float) -> bool:
    """Wait for `event`, for at most `limit_s` seconds on `clock`; return whether it was set."""
    if event.is_set():
        return True
    woken = asyncio.get_running_loop().create_task(event.wait())
    timer = clock.call_later(limit_s, woken.cancel)
    try:
        await asyncio.wait({woken})
        return event.is_set()
    finally:
        timer.cancel()
        woken.cancel()


@contextmanager
def time_limit(clock: Clock, limit_s: float) -> Generator[anyio.CancelScope, None, None]:
    """Cancel the block once `limit_s` seconds have passed on `clock`.

    The scope's `cancelled_caught` is true afterwards if the block was cancelled.
    """
    with anyio.CancelScope() as scope:
        timer = clock.call_later(limit_s, scope.cancel)
        try:
            yield scope
        finally:
            timer.cancel()
