"""The watch of a model that loads for long (docs/operating.md, "States").

Owns telling why a model does not count as loaded although its log says so, and the error after a time limit.
The signs that it is loaded are watched in watch.py.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import anyio

from lib.model.readiness import Cause, Readiness, ReadySignal, State
from lib.model.watch import HealthWatch
from lib.runtime.clock import Clock

log = logging.getLogger(__name__)

# Seconds from the log's "loaded" line until a health check that fails is told, and between two warnings.
TELL_AFTER_S = 60.0


class LoadWatch:
    """Tells `readiness` what keeps the model from counting as loaded.

    `health_watch` is the health check beside a load rule, None without both. After `limit_s` seconds (None:
    no limit) what `describe` returns, the reasons why the model isn't loaded, is an error.
    """

    def __init__(
        self,
        readiness: Readiness,
        health_watch: HealthWatch | None,
        limit_s: float | None,
        describe: Callable[[], Awaitable[str]],
        clock: Clock,
    ) -> None:
        self._readiness = readiness
        self._health_watch = health_watch
        self._limit_s = limit_s
        self._describe = describe
        self._clock = clock

    async def follow(self) -> None:
        """Watch until the model is loaded."""
        async with anyio.create_task_group() as group:
            if self._health_watch is not None:
                group.start_soon(self._tell_of, self._health_watch)
            if self._limit_s is not None:
                group.start_soon(self._limit, self._limit_s)

    async def _tell_of(self, watch: HealthWatch) -> None:
        """Once the log says that the model is loaded, tell every minute that the health check still fails."""
        readiness = self._readiness
        await readiness.until(lambda: ReadySignal.LOG not in readiness.missing_signals)
        while not await readiness.until(self._is_healthy, TELL_AFTER_S):
            problem = watch.last_problem or "the health check has not answered"
            text = f"the log says that the model is loaded, but {watch.url}: {problem}"
            readiness.note_hindrance(text)
            log.warning("%s", text)

    def _is_healthy(self) -> bool:
        return ReadySignal.HEALTH not in self._readiness.missing_signals

    async def _limit(self, limit_s: float) -> None:
        """Set an error if the model isn't loaded after `limit_s` seconds, unless there is another one."""
        readiness = self._readiness
        if await readiness.until(lambda: readiness.loaded, limit_s):
            return
        await readiness.until(lambda: readiness.loaded or readiness.state is State.LOADING)
        text = f"the model is not loaded after {limit_s:g} s (MODEL_LOAD_TIMEOUT_S): {await self._describe()}"
        if not readiness.loaded:
            readiness.set_error(Cause.LOAD, text)
