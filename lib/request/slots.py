"""Slots at the model server, first come, first served (authoring.md §3 Queue).

Owns who works and who waits, and for how long by the clock. The estimate on arrival is backend.py's.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from types import TracebackType

from lib.errors import TooBusy
from lib.runtime.clock import Clock

ErrorFactory = Callable[[], Exception]

# What a waiter is woken with: None for a slot of its own, else what makes its exception.
_Verdict = ErrorFactory | None


class SlotQueue:
    """At most `limit` at work at once (None: any number), the others in the order in which they came.

    `retry_after` gives the seconds that a 429 names in its `Retry-After`.
    """

    def __init__(
        self, limit: int | None, clock: Clock, retry_after: Callable[[], float] = lambda: 1.0
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"a queue needs at least 1 slot, not {limit}")
        self.limit = limit
        self._clock = clock
        self._retry_after = retry_after
        self._working = 0
        # Ordered and with removal from anywhere at the same small cost; while anyone waits, no slot is free.
        self._waiters: OrderedDict[asyncio.Future[_Verdict], None] = OrderedDict()
        self._released_with: ErrorFactory | None = None

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return len(self._waiters)

    @property
    def working(self) -> int:
        """How many hold a slot."""
        return self._working

    def slot(self, max_wait_s: float | None = None) -> Slot:
        """`async with queue.slot(…):` holds a slot for its block, after waiting at most `max_wait_s` for it.

        Entering raises `TooBusy` once `max_wait_s` has passed (at once if it is 0; None: no limit), or what
        `release_all` was told to raise.
        """
        return Slot(self, max_wait_s)

    def release_all(self, error_factory: ErrorFactory) -> None:
        """Every waiter, and everyone who would have to wait from now on, gets an exception of its own."""
        self._released_with = error_factory
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_result(error_factory)

    # What slots do

    def take(self) -> bool:
        """Whether there was a free slot; then it is taken."""
        if self.limit is not None and self._working >= self.limit:
            return False
        self._working += 1
        return True

    def give(self) -> None:
        """A slot is given back: to whoever has waited longest, else it is free."""
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():  # a cancelled one, whose task has not run since
                waiter.set_result(None)
                return
        self._working -= 1

    async def wait(self, max_wait_s: float | None) -> None:
        """Return with a slot taken. Raises what `slot` tells."""
        if self._released_with is not None:
            raise self._released_with()
        if max_wait_s is not None and max_wait_s <= 0:
            raise self._too_busy(max_wait_s)
        waiter: asyncio.Future[_Verdict] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        timer = None
        if max_wait_s is not None:
            timer = self._clock.call_later(max_wait_s, partial(self._expire, waiter, max_wait_s))
        try:
            verdict = await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.result() is None:
                self.give()  # granted and cancelled at the same moment
            self._waiters.pop(waiter, None)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if verdict is not None:
            raise verdict()

    def _expire(self, waiter: asyncio.Future[_Verdict], max_wait_s: float) -> None:
        if not waiter.done():
            del self._waiters[waiter]
            waiter.set_result(partial(self._too_busy, max_wait_s))

    def _too_busy(self, max_wait_s: float) -> TooBusy:
        return TooBusy(f"no slot came free within {max(0.0, max_wait_s):g} s", self._retry_after())


class Slot:
    """One arrival's place in a `SlotQueue`; made by `SlotQueue.slot`, and good for one `async with`."""

    __slots__ = ("_max_wait_s", "_queue")

    def __init__(self, queue: SlotQueue, max_wait_s: float | None) -> None:
        self._queue = queue
        self._max_wait_s = max_wait_s

    async def __aenter__(self) -> None:
        if not self._queue.take():
            await self._queue.wait(self._max_wait_s)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._queue.give()
