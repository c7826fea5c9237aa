"""Virtual time: an event loop that skips every wait, so that a test of minutes takes seconds.

Everything that waits by the loop's timers or by `VirtualClock` is in this time: lib/, aiohttp's and anyio's
time limits. Sockets and threads are real; while something can still come from them, the time stands still.
"""

from __future__ import annotations

import asyncio
import random
import selectors
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")

SEED = 6
START_S = 1000.0
WALL_OFFSET_S = 1_700_000_000.0 - START_S


class VirtualClock:
    """Implements lib.runtime.clock.Clock on the time of `loop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def monotonic(self) -> float:
        return self._loop.time()

    def wall(self) -> float:
        return self._loop.time() + WALL_OFFSET_S

    def call_later(self, delay_s: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        return self._loop.call_later(delay_s, callback)


class _Canary:
    """Sends a byte over loopback: once it has arrived, so has everything that this process sent before it."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self._sender = socket.create_connection(listening.getsockname())
            self._receiver, _ = listening.accept()
        self._sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fly(self) -> None:
        self._sender.send(b"\0")
        self._receiver.recv(1)

    def close(self) -> None:
        self._sender.close()
        self._receiver.close()


class _SkippingSelector(selectors.PollSelector):
    """Waits for sockets; if nothing comes from them or from threads, calls `skip` with the seconds."""

    def __init__(self, skip: Callable[[float], None]) -> None:
        super().__init__()
        self.threads: anyio.CapacityLimiter | None = None
        self._skip = skip
        self._canary = _Canary()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        self._canary.fly()
        events = super().select(0)
        if events:
            return events
        if timeout is None or (self.threads is not None and self.threads.borrowed_tokens):
            return super().select(None)  # a thread that ends wakes the loop
        self._skip(timeout)
        return []

    def close(self) -> None:
        self._canary.close()
        super().close()


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._now_s = START_S
        self._skipping = _SkippingSelector(self._skip)
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._now_s

    def _skip(self, seconds: float) -> None:
        self._now_s += seconds

    async def main(self, function: Callable[[VirtualClock], Awaitable[T]]) -> T:
        self._skipping.threads = anyio.to_thread.current_default_thread_limiter()
        return await function(VirtualClock(self))


def in_virtual_time(function: Callable[[VirtualClock], Coroutine[Any, Any, T]]) -> T:
    """Run `function` with the clock of a virtual event loop; return its result.

    The global random generator gets a fixed seed, so that the jitter of retries is the same in each run.
    """
    loop, random_state = _VirtualLoop(), random.getstate()
    random.seed(SEED)
    try:
        return loop.run_until_complete(loop.main(function))
    finally:
        random.setstate(random_state)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
