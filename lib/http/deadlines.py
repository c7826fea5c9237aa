"""Time limits of many connections, with one timer for all that have the same limit.

Owns when each is due. A timer of its own for each request would cost more than the rest of its bookkeeping.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Generic, TypeVar

from lib.runtime.clock import Clock, Timer

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Calls `on_due` with each item that was not removed within `limit_s` seconds after it was added.

    All items have the same limit, so that they are due in the order in which they were added.
    """

    def __init__(self, clock: Clock, limit_s: float, on_due: Callable[[T], object]) -> None:
        self._clock = clock
        self._limit_s = limit_s
        self._on_due = on_due
        self._due_s: dict[T, float] = {}
        self.items: Collection[T] = self._due_s.keys()  # in the order in which they are due
        self._timer: Timer | None = None

    def add(self, item: T) -> None:
        """Start the limit of `item`, anew if it has one."""
        self._due_s.pop(item, None)
        self._due_s[item] = self._clock.monotonic() + self._limit_s
        if self._timer is None:
            self._timer = self._clock.call_later(self._limit_s, self._fire)

    def remove(self, item: T) -> None:
        """End the limit of `item`, if it has one."""
        self._due_s.pop(item, None)

    def close(self) -> None:
        """Forget all items."""
        self._due_s.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        """Call `on_due` for what is due; set the timer for the next."""
        self._timer = None
        now_s = self._clock.monotonic()
        while self._due_s:
            item, due_s = next(iter(self._due_s.items()))
            if due_s > now_s:
                self._timer = self._clock.call_later(due_s - now_s, self._fire)
                return
            del self._due_s[item]
            self._on_due(item)
            if self._timer is not None:  # set by an `add` in `on_due`
                self._timer.cancel()
                self._timer = None
