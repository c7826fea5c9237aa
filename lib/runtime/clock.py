"""Time, as a seam: durations from a monotonic clock, wall time for wire fields.

Owns the `Clock` protocol and the system's clock. Tests bring a clock that they move by hand.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol

import anyio


class Timer(Protocol):
    """Something that will happen, and can be called off."""

    def cancel(self) -> object: ...


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds since some fixed point; never goes back."""
        ...

    def wall(self) -> float:
        """Unix time in seconds; only for fields that go over the wire."""
        ...

    def call_later(self, delay_s: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` on the event loop once `delay_s` seconds have passed."""
        ...


class SystemClock:
    """The system's clock. Its two times are Python's own functions: every request asks for them."""

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
    """Whether `event` was set within `limit_s` seconds on `clock`."""
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
    """Cut the block once `limit_s` seconds have passed on `clock`; the scope's `cancelled_caught` tells."""
    with anyio.CancelScope() as scope:
        timer = clock.call_later(limit_s, scope.cancel)
        try:
            yield scope
        finally:
            timer.cancel()
