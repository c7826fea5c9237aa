"""A model server that takes no connections any more: an error, and its end (docs/operating.md, "States").

Owns the rule by which failed connections become an error, and looks at the server's address while they are
suspected to. What calls find is noted in reach.py; the health check in its own time is in watch.py.
"""

from __future__ import annotations

import asyncio
import math

import aiohttp
import anyio
from yarl import URL

from lib.model.connection import ModelServer
from lib.model.readiness import Cause, Readiness
from lib.model.watch import NO_SUCH_CHECK, HealthWatch
from lib.runtime.clock import Clock, sleep, time_limit

# Two failures are an error if they are so far apart, and nothing succeeded meanwhile.
APART_S = 0.5
# The pause between two checks: of a server that is suspected, and of one that is down. The first is shorter
# than `APART_S`: a server that breaks single connections and is well shows that before the second failure.
SUSPECT_INTERVAL_S = 0.2
DOWN_INTERVAL_S = 0.5
# A check that takes longer is made anew: a server that restarts may take the first and forget it.
CHECK_LIMIT_S = 2.0
_BACK = "the model server takes connections again"


class ReachWatch:
    """Passes to `readiness` whether the model server's own address takes connections.

    Failures count once the worker has been ready. `health_watch` is used for its URL, if one is at the same
    address; without one, a connection without a request shows whether the server listens.
    """

    def __init__(
        self, server: ModelServer, readiness: Readiness, health_watch: HealthWatch | None, clock: Clock
    ) -> None:
        self._server = server
        self._reach = server.reach
        self._readiness = readiness
        self._health_watch = health_watch
        self._clock = clock
        self._since_s = math.inf
        self._woken = anyio.Event()
        self._reach.on_failure = self._note_failure
        self._reach.on_success = self._note_success

    async def follow(self) -> None:
        """Check the address whenever a connection to it has failed, until cancelled."""
        while True:
            await self._woken.wait()
            self._woken = anyio.Event()
            while self._reach.is_suspect:
                await self._check()
                self._reach.allow_attempt()
                await sleep(self._clock, DOWN_INTERVAL_S if self._reach.is_down else SUSPECT_INTERVAL_S)

    def _note_failure(self, reason: str) -> None:
        if self._readiness.missing:
            return
        now_s, reach = self._clock.monotonic(), self._reach
        if not reach.is_suspect:
            reach.is_suspect = True
            self._since_s = now_s
            self._woken.set()
        elif not reach.is_down and now_s - self._since_s >= APART_S:
            reach.is_down = True
            if self._health_watch is not None:
                self._health_watch.note_lost()
            message = f"the model server at {reach.address} can't be reached: {reason}"
            self._readiness.set_error(Cause.CONNECTION, message)

    def _note_success(self) -> None:
        self._reach.is_suspect = self._reach.is_down = False
        self._readiness.clear_error(Cause.CONNECTION, _BACK)

    async def _check(self) -> None:
        """Look at the address once: any answer clears a suspicion, but only a good one ends an error."""
        reach, watch, url = self._reach, self._health_watch, self._own_url
        try:
            with time_limit(self._clock, CHECK_LIMIT_S) as limit:
                status = await watch.ask(url) if watch and url else await self._connect()
            if limit.cancelled_caught:
                return
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as e:
            reach.note_failure(reach.host, reach.port, e)
            return
        is_good = 200 <= status < 300
        if is_good or status in NO_SUCH_CHECK or not reach.is_down:
            self._note_success()
            if is_good and watch and url and watch.urls == [url]:
                watch.note_success()

    @property
    def _own_url(self) -> URL | None:
        """The URL of a health check at the server's own address."""
        urls = () if self._health_watch is None else self._health_watch.urls
        return next((url for url in urls if self._reach.is_own(url.host, url.port)), None)

    async def _connect(self) -> int:
        """Connect without a request; return the status that this counts as."""
        await self._server.connect_once()
        return 200
