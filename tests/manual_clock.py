"""The manual clock: its time moves only by `advance`."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

import anyio

from tests.guard import GUARD_S


class ManualTimer:
    """A callback that is due at `due_s` unless it is cancelled."""

    def __init__(self, due_s: float, callback: Callable[[], object]) -> None:
        self.due_s = due_s
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class ManualClock:
    """Implements lib.runtime.clock.Clock. Both times change only in `advance`."""

    def __init__(self, monotonic_s: float = 1000.0, wall_s: float = 1_700_000_000.0) -> None:
        self._now_s = monotonic_s
        self._wall_offset_s = wall_s - monotonic_s
        self._timers: list[tuple[float, int, ManualTimer]] = []
        self._numbers = itertools.count()
        self._set = asyncio.Event()

    def monotonic(self) -> float:
        return self._now_s

    def wall(self) -> float:
        return self._now_s + self._wall_offset_s

    def call_later(self, delay_s: float, callback: Callable[[], object]) -> ManualTimer:
        timer = ManualTimer(self._now_s + max(0.0, delay_s), callback)
        heapq.heappush(self._timers, (timer.due_s, next(self._numbers), timer))
        set_before, self._set = self._set, asyncio.Event()
        set_before.set()
        return timer

    @property
    def pending(self) -> int:
        """The number of timers that are set and neither fired nor cancelled."""
        return sum(not timer.cancelled for _, _, timer in self._timers)

    def jump(self, seconds: float) -> None:
        """Move the time forward without firing timers: they come late, as after a pause of the process."""
        self._now_s += seconds

    async def wait_for_timers(self, count: int = 1) -> None:
        """Return once at least `count` timers are set."""
        with anyio.fail_after(GUARD_S):
            while self.pending < count:
                await self._set.wait()

    async def wait_for_timer(self, within_s: float) -> None:
        """Return once a timer is set that is due within `within_s` seconds from now."""
        with anyio.fail_after(GUARD_S):
            while not self._is_due(within_s):
                await self._set.wait()

    def _is_due(self, within_s: float) -> bool:
        return any(not t.cancelled and t.due_s <= self._now_s + within_s for _, _, t in self._timers)

    def advance(self, seconds: float) -> None:
        """Move the time forward; fire the timers that become due in their order, each at its own time.

        Timers that callbacks set fire too if they are due by then. Tasks that callbacks wake run when the
        test next awaits.
        """
        until_s = self._now_s + seconds
        while self._timers and self._timers[0][0] <= until_s:
            due_s, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                self._now_s = max(self._now_s, due_s)
                timer.callback()
        self._now_s = until_s
