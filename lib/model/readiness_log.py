"""Logs why the worker isn't ready, for as long as it isn't.

Owns when that is logged. The text is made in lib/routes/headline.py.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from lib.model.readiness import Readiness, State
from lib.runtime.intervals import interval_s

log = logging.getLogger(__name__)


class ReadinessLog:
    """Logs what `describe` returns, ever less often, for as long as the worker is not ready.

    A worker that stops is not waiting for anything.
    """

    def __init__(self, readiness: Readiness, describe: Callable[[], Awaitable[str]]) -> None:
        self._readiness = readiness
        self._describe = describe

    async def follow(self) -> None:
        """Log until cancelled."""
        while True:
            await self._readiness.until(lambda: not self._is_settled())
            waited_s = 0.0
            while not await self._readiness.until(self._is_settled, interval := interval_s(waited_s)):
                waited_s += interval
                text = await self._describe()
                is_errored = self._readiness.state is State.ERRORED
                log.log(logging.WARNING if is_errored else logging.INFO, "not ready: %s", text)

    def _is_settled(self) -> bool:
        return self._readiness.state in (State.READY, State.DRAINING)
