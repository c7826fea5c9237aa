"""The turns in which strangers' requests are worked on: a few in each turn of the event loop.

Owns their order. However many strangers there are, what is known or has been verified waits for a few of them
only, not for all.
"""

from __future__ import annotations

import asyncio
from collections import deque

# Requests of strangers that are worked on in one turn of the event loop: each takes about 0.1 ms.
AT_ONCE = 4


class Turns:
    """Lets `at_once` callers of `wait` go on in each turn of the event loop, in the order of their calls."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def is_free(self) -> bool:
        """Whether `wait` would return at once."""
        return self._taken < self._at_once

    async def wait(self) -> None:
        """Return once it is the caller's turn."""
        loop = asyncio.get_running_loop()
        if self._taken < self._at_once:
            if not self._taken:
                loop.call_soon(self._begin)
            self._taken += 1
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _begin(self) -> None:
        """Begin the next turn."""
        self._taken = 0
        while self._waiting and self._taken < self._at_once:
            turn = self._waiting.popleft()
            if not turn.done():  # cancelled
                turn.set_result(None)
                self._taken += 1
        if self._taken:
            asyncio.get_running_loop().call_soon(self._begin)
