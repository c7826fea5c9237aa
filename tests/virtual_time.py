"""An event loop whose time skips every wait: a test of minutes takes seconds, with nothing in it replaced.

Whatever waits by the loop's timers or by `VirtualClock` is in this time: lib's parts, aiohttp's limits and
anyio's. Sockets and threads are real; while anything can still come from them, time stands.
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
    """A byte over loopback: what was sent there before it, by anyone here, has come once it has."""

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
    """Waits for sockets; where nothing comes from them or from threads, `skip` is told how long to skip."""

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
    """What `function` gives, run to its end on a loop of its own, whose clock it is given.

    The jitter of retries is the same in each run, too: the global generator begins with a seed.
    """
    loop, dice = _VirtualLoop(), random.getstate()
    random.seed(SEED)
    try:
        return loop.run_until_complete(loop.main(function))
    finally:
        random.setstate(dice)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
