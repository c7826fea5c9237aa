"""Watching the model server: its log and its health check (docs/operating.md, "States").

Owns the log rules and the health check. Their findings go to readiness.py; log_tail.py reads the log file.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
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
from lib.runtime.excerpt import without_secret

log = logging.getLogger(__name__)

HEALTH_INTERVAL_S = 10.0
HEALTH_INTERVAL_LOADING_S = 0.5
HEALTH_TIMEOUT_S = 10.0
FAILURES_UNTIL_ERROR = 3
# Statuses of a server that has no such check.
NO_SUCH_CHECK = frozenset({404, 405, 501})
CONNECT_INTERVAL_S = 0.1
# The last lines of the log that are kept, and how much of each, in characters: they are shown in messages.
KEPT_LINES = 3
MAX_KEPT_LINE = 4000
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)  # `time_limit` is used instead, with the worker's clock


@dataclass
class LogRule:
    """A line that contains `text` means `action`; `matches` counts such lines, `last_line` is the latest."""

    action: LogAction
    text: str
    matches: int = 0
    last_line: str = ""


@dataclass
class LogWatch:
    """Follows the model server's log and passes the findings of its rules to `readiness`.

    A "loaded" line counts once the model server accepts a connection: it may be from an earlier start.
    `began_s` is the monotonic time at which the file was last seen to begin anew, -inf if it has not.
    """

    path: Path
    rules: Sequence[LogRule]
    server: ModelServer
    readiness: Readiness
    clock: Clock
    lines: int = 0
    last_line: str = ""
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    began_s: float = -math.inf
    _beginnings: int = 1
    _tail: LogTail | None = None
    _loaded_line: str | None = None
    _error_lines: int = 0
    _loaded_line_came: anyio.Event = field(default_factory=anyio.Event)

    async def follow(self) -> None:
        """Follow the log until cancelled."""
        self._tail = LogTail(self.path)
        await self._tail.follow(self.on_line, self.clock)

    @property
    def trouble(self) -> str | None:
        """The reason why the log can't be read, or None."""
        return self._tail.trouble if self._tail else None

    @property
    def awaiting_connection(self) -> bool:
        """Whether a "loaded" line has come, but the model server accepts no connection yet."""
        return self._loaded_line is not None

    def on_line(self, line: str) -> None:
        """Match one line against the rules. If it means both loaded and an error, the error counts."""
        self.lines += 1
        line = without_secret(line, self.server.api_key)  # servers log their arguments
        self.last_line = line
        self.last_lines.append(line[:MAX_KEPT_LINE])
        if self._tail is not None and self._tail.beginnings > self._beginnings:
            self._beginnings, self.began_s = self._tail.beginnings, self.clock.monotonic()
        found = [rule for rule in self.rules if rule.text in line]
        for rule in found:
            rule.matches += 1
            rule.last_line = line
        actions = {rule.action for rule in found}
        if LogAction.Info in actions:
            log.info("model: %s", line)
        if LogAction.ModelLoaded in actions:
            self._loaded_line = line
            self._loaded_line_came.set()
        if LogAction.ModelError in actions:
            self._loaded_line = None
            self._error_lines += 1
            self.readiness.set_error(Cause.LOG, line)

    async def confirm_loaded(self) -> None:
        """Pass each "loaded" line to `readiness` once the model server accepts a connection."""
        while True:
            await self._loaded_line_came.wait()
            self._loaded_line_came = anyio.Event()
            while (line := self._loaded_line) is not None:
                errors = self._error_lines
                accepts = not self.server.url or await self.server.accepts_connections()
                if self._error_lines != errors:  # an error came meanwhile
                    continue
                if accepts:
                    self._loaded_line = None
                    self.readiness.note_signal(ReadySignal.LOG, f"log: {line.strip()}")
                else:
                    await sleep(self.clock, CONNECT_INTERVAL_S)


class HealthWatch:
    """GETs `targets` every 10 s, every 0.5 s while loading or failed, and passes its findings to `readiness`.

    A round of checks succeeds if all of them answer 2xx. With `clears_all`, for workers without a rule for
    "loaded" lines, a success after failures also clears the errors of log and author. `well_since_s` is the
    monotonic time since which all rounds have succeeded; None if the last one has not. `urls` are those that
    are checked.
    """

    def __init__(
        self,
        server: ModelServer,
        targets: Sequence[str],
        readiness: Readiness,
        clock: Clock,
        clears_all: bool,
    ) -> None:
        self._server = server
        self.urls: list[URL] = [server.resolve(target) for target in targets]
        self._shown_url = self.urls[0]
        self._readiness = readiness
        self._clock = clock
        self._clears_all = clears_all
        self._failures = 0
        self.checks = 0
        self.last_problem = ""
        self.well_since_s: float | None = None

    @property
    def url(self) -> str:
        """The absolute URL of the check; of several, that of the one which has failed, or the first."""
        return str(self._shown_url)

    async def follow(self) -> None:
        """Check until cancelled, or until the model server has answered that it has no such checks."""
        succeeded = False
        while True:
            results = await self._round()
            status, problem = self._worst(self._without_absent(results) or results)
            self.checks += 1
            self.last_problem = problem
            self._note_well(not problem)
            if not self.urls:
                reason = f"it answers, without a health check ({status})"
                self._readiness.note_signal(ReadySignal.HEALTH, reason)
                self._readiness.clear_error(Cause.HEALTH, "no such health check")
                return
            if not problem:
                self.note_success()
                succeeded = True
            elif succeeded and self._readiness.measured:
                self._failed(problem)
            is_loaded = succeeded and self._readiness.loaded and not self._readiness.has_error(Cause.HEALTH)
            await sleep(self._clock, HEALTH_INTERVAL_S if is_loaded else HEALTH_INTERVAL_LOADING_S)

    async def ask(self, url: URL) -> int:
        """Return the status of one check, without a time limit. Raises aiohttp's errors and `OSError`."""
        async with self._server.unpooled.get(url, timeout=_NO_TIMEOUT) as answer:
            return answer.status

    async def check(self) -> tuple[int, str]:
        """Check each of `urls`; return a status, 0 without an answer, and what is wrong, "" if nothing is.

        Both are those of the first that has failed.
        """
        return self._worst(await self._round())

    async def _round(self) -> dict[URL, tuple[int, str]]:
        """Check each of `urls`; return their statuses and problems."""
        results: dict[URL, tuple[int, str]] = {}

        async def check_one(url: URL) -> None:
            results[url] = await self._check_one(url)

        async with anyio.create_task_group() as group:
            for url in self.urls:
                group.start_soon(check_one, url)
        return {url: results[url] for url in self.urls}

    def _worst(self, results: Mapping[URL, tuple[int, str]]) -> tuple[int, str]:
        """The status and the problem of the first that has failed, or else of the first."""
        failed = (url for url, (_, problem) in results.items() if problem)
        self._shown_url = url = next(failed, next(iter(results)))
        status, problem = results[url]
        return status, problem

    def _without_absent(self, results: Mapping[URL, tuple[int, str]]) -> dict[URL, tuple[int, str]]:
        """Stop checking URLs that are no checks of the model server's; return the results of the others."""
        for url, (status, _) in results.items():
            if status in NO_SUCH_CHECK:
                log.warning("the model server has no health check at %s (%d): not checked again", url, status)
        self.urls = [url for url, (status, _) in results.items() if status not in NO_SUCH_CHECK]
        return {url: results[url] for url in self.urls}

    async def _check_one(self, url: URL) -> tuple[int, str]:
        """Check `url`. A connection that fails is told to the server's `reach`, as one of a request is."""
        with time_limit(self._clock, HEALTH_TIMEOUT_S):
            try:
                status = await self.ask(url)
                return status, "" if 200 <= status < 300 else f"health check answered {status}"
            except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as e:
                self._server.reach.note_failure(url.host, url.port, e)
                return 0, f"health check failed: {describe_error(e)}"
        return 0, f"health check timed out after {HEALTH_TIMEOUT_S:g} s"

    def _note_well(self, is_well: bool) -> None:
        if not is_well:
            self.well_since_s = None
        elif self.well_since_s is None:
            self.well_since_s = self._clock.monotonic()

    def note_lost(self) -> None:
        """Note that the server takes no connections, so that the next success is that of another start."""
        self._note_well(False)
        self._failures = max(self._failures, 1)

    def note_success(self) -> None:
        """Note that a check has succeeded: clear the errors that this shows to be over."""
        self._readiness.clear_error(Cause.HEALTH, "health check answers again")
        if self._clears_all and self._failures:
            for cause in (Cause.LOG, Cause.AUTHOR):
                self._readiness.clear_error(cause, "the model server is back: health check answers again")
        if not self._readiness.loaded:
            self._readiness.note_signal(ReadySignal.HEALTH, "health check answered 2xx")
        self._failures = 0

    def _failed(self, problem: str) -> None:
        self._failures += 1
        text = f"{self.url}: {problem}" if len(self.urls) > 1 else problem
        log.warning("%s (%d in a row)", text, self._failures)
        if self._failures >= FAILURES_UNTIL_ERROR:
            self._readiness.set_error(Cause.HEALTH, text)
