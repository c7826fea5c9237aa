"""Watching the model server: what its log says and whether it answers health checks (authoring.md §3).

Owns the log rules and the health check. What they find goes to readiness.py; reading the log file itself
is log_tail.py's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import anyio
from yarl import URL

from lib.errors import describe_error
from lib.model.connection import ModelServer
from lib.model.log_rules import LogAction
from lib.model.log_tail import LogTail
from lib.model.readiness import Cause, Readiness, ReadySignal
from lib.runtime.clock import Clock, sleep, time_limit

log = logging.getLogger(__name__)

HEALTH_INTERVAL_S = 10.0
HEALTH_INTERVAL_LOADING_S = 0.5
HEALTH_TIMEOUT_S = 10.0
FAILURES_UNTIL_ERROR = 3
# What a server without such a check answers.
NO_SUCH_CHECK = frozenset({404, 405, 501})
BELIEF_INTERVAL_S = 0.1
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)  # it is kept by our own clock


@dataclass
class LogRule:
    """Lines that hold `text` mean `action`; `matches` counts them, `last_line` is the latest."""

    action: LogAction
    text: str
    matches: int = 0
    last_line: str = ""


@dataclass
class LogWatch:
    """Follows the model server's log and tells `readiness` what its rules find.

    A "loaded" line is believed once the model server accepts a connection: it may be a stale one.
    """

    path: Path
    rules: Sequence[LogRule]
    server: ModelServer
    readiness: Readiness
    clock: Clock
    lines: int = 0
    last_line: str = ""
    _tail: LogTail | None = None
    _loaded_line: str | None = None
    _error_lines: int = 0
    _said_loaded: anyio.Event = field(default_factory=anyio.Event)

    async def follow(self) -> None:
        """Read the log for as long as the worker lives."""
        self._tail = LogTail(self.path)
        await self._tail.follow(self.on_line, self.clock)

    @property
    def trouble(self) -> str | None:
        """Why the log can't be read, or None."""
        return self._tail.trouble if self._tail else None

    @property
    def awaiting_connection(self) -> bool:
        """Whether a "loaded" line has come, and the model server accepts no connection yet."""
        return self._loaded_line is not None

    def on_line(self, line: str) -> None:
        """Let the rules look at one line; where several match, an error counts last."""
        self.lines += 1
        self.last_line = line
        found = [rule for rule in self.rules if rule.text in line]
        for rule in found:
            rule.matches += 1
            rule.last_line = line
        actions = {rule.action for rule in found}
        if LogAction.Info in actions:
            log.info("model: %s", line)
        if LogAction.ModelLoaded in actions:
            self._loaded_line = line
            self._said_loaded.set()
        if LogAction.ModelError in actions:
            self._loaded_line = None
            self._error_lines += 1
            self.readiness.fail(Cause.LOG, line)

    async def confirm_loaded(self) -> None:
        """Pass each "loaded" line on once the model server accepts a connection."""
        while True:
            await self._said_loaded.wait()
            self._said_loaded = anyio.Event()
            while (line := self._loaded_line) is not None:
                errors = self._error_lines
                accepts = not self.server.url or await self.server.accepts_connections()
                if self._error_lines != errors:  # an error came meanwhile
                    continue
                if accepts:
                    self._loaded_line = None
                    self.readiness.seen(ReadySignal.LOG, f"log: {line.strip()}")
                else:
                    await sleep(self.clock, BELIEF_INTERVAL_S)


class HealthWatch:
    """GETs `target` every 10 s once ready, more often before, and tells `readiness` what it finds.

    `clears_all`: where no log rule could take other errors back, a success that follows failures does.
    """

    def __init__(
        self, server: ModelServer, target: str, readiness: Readiness, clock: Clock, clears_all: bool
    ) -> None:
        self._server = server
        self._url: URL = server.resolve(target)
        self._readiness = readiness
        self._clock = clock
        self._clears_all = clears_all
        self._failures = 0
        self.checks = 0
        self.last_problem = ""

    @property
    def url(self) -> str:
        return str(self._url)

    async def follow(self) -> None:
        """Check until the model server says that it has no such check."""
        seen = False
        while True:
            status, problem = await self.check()
            self.checks += 1
            self.last_problem = problem
            if status in NO_SUCH_CHECK:
                log.warning("the model server has no health check at %s (%d): left out", self._url, status)
                self._readiness.seen(ReadySignal.HEALTH, f"it answers, without a health check ({status})")
                self._readiness.recover(Cause.HEALTH, "no such health check")
                return
            if not problem:
                self._succeeded()
                seen = True
            elif seen and self._readiness.measured:
                self._failed(problem)
            await sleep(self._clock, HEALTH_INTERVAL_S if self._watching(seen) else HEALTH_INTERVAL_LOADING_S)

    def _watching(self, seen: bool) -> bool:
        return seen and self._readiness.loaded

    async def check(self) -> tuple[int, str]:
        """The check's status (0: none came), and what is wrong ("": nothing)."""
        with time_limit(self._clock, HEALTH_TIMEOUT_S):
            try:
                async with self._server.unpooled.get(self._url, timeout=_NO_TIMEOUT) as answer:
                    good = 200 <= answer.status < 300
                    return answer.status, "" if good else f"health check answered {answer.status}"
            except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as e:
                return 0, f"health check failed: {describe_error(e)}"
        return 0, f"health check timed out after {HEALTH_TIMEOUT_S:g} s"

    def _succeeded(self) -> None:
        self._readiness.recover(Cause.HEALTH, "health check answers again")
        if self._clears_all and self._failures:
            for cause in (Cause.LOG, Cause.AUTHOR):
                self._readiness.recover(cause, "the model server is back: health check answers again")
        if not self._readiness.loaded:
            self._readiness.seen(ReadySignal.HEALTH, "health check answered 2xx")
        self._failures = 0

    def _failed(self, problem: str) -> None:
        self._failures += 1
        log.warning("%s (%d in a row)", problem, self._failures)
        if self._failures >= FAILURES_UNTIL_ERROR:
            self._readiness.fail(Cause.HEALTH, problem)
