"""The health check in place of a load rule that never matches (docs/operating.md, "States").

Owns the decision that the model is loaded although no line of its log says so, and the reason while it isn't.
The rules and the health check are in watch.py, the request that is tried is in benchmark_request.py.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import anyio

from lib.model.benchmark import BenchmarkFailed
from lib.model.benchmark_request import BenchmarkRequest
from lib.model.log_rules import LogAction
from lib.model.readiness import Cause, Readiness, ReadySignal, State
from lib.model.watch import HealthWatch, LogWatch
from lib.runtime.clock import Clock, sleep
from lib.runtime.excerpt import excerpt

log = logging.getLogger(__name__)

# Seconds for which the health check must have answered 2xx before a request is tried. Models that load and
# log as they should are loaded within this time of their server's first 2xx.
WELL_FOR_S = 30.0
# Seconds from the end of a request that failed to the next: the weights may still load.
RETRY_S = 30.0
# The same reason is logged again after this time.
WARN_EVERY_S = 60.0
POLL_S = 1.0
# Characters that are shown of a line of the log, and of a failure.
MAX_LINE = 160
MAX_FAILURE = 300
# The errors that a "loaded" line clears; a model that proves to be loaded clears them too.
_CLEARED = (Cause.LOG, Cause.AUTHOR)
_WELL = f"the health check has answered 2xx for {WELL_FOR_S:g} s"


@dataclass
class HealthOverride:
    """Tells `readiness` that the model is loaded when `health_watch` and one request say so.

    `request` None: the worker has no benchmark, so that nothing can be tried. A request may take `limit_s`
    seconds. `problem` is the reason why a model that is well does not count as loaded, or "".
    """

    log_watch: LogWatch
    health_watch: HealthWatch
    readiness: Readiness
    request: BenchmarkRequest | None
    limit_s: float
    clock: Clock
    problem: str = ""
    _next_s: float = -math.inf
    _warned: str = ""
    _warned_s: float = -math.inf

    async def follow(self) -> None:
        """Decide, whenever a "loaded" line is all that is missing, until cancelled."""
        while True:
            if not self._is_wanted:
                self.problem = ""
            await self.readiness.until(lambda: self._is_wanted)
            if self._well_for_s < WELL_FOR_S:
                self.problem = ""
            elif self.request is None:
                self._warn("the worker has no benchmark, whose request would show that the model is loaded")
            elif self.clock.monotonic() >= self._next_s:
                await self._try_unless_a_line_comes(self.request)
            await sleep(self.clock, POLL_S)

    @property
    def _is_wanted(self) -> bool:
        """Whether a "loaded" line is missing, for readiness or to end an error, and nothing else is."""
        readiness, missing = self.readiness, self.readiness.missing_signals
        has_error = any(readiness.has_error(cause) for cause in _CLEARED)
        return (
            readiness.state is not State.DRAINING
            and missing <= {ReadySignal.LOG}
            and (bool(missing) or has_error)
            and not self.log_watch.awaiting_connection
        )

    @property
    def _well_for_s(self) -> float:
        """Seconds for which the health check has answered 2xx since the model server began, 0.0 without.

        After an error, only a health check that has failed meanwhile shows that the server was restarted.
        """
        since_s = self.health_watch.well_since_s
        if since_s is None or since_s <= self.readiness.error_s(*_CLEARED):
            return 0.0
        return self.clock.monotonic() - max(since_s, self.log_watch.began_s)

    async def _try_unless_a_line_comes(self, request: BenchmarkRequest) -> None:
        """Try a request, and cancel it if a line of the log says what is true.

        A health check that fails meanwhile doesn't cancel it: a server may be too busy with it to answer.
        """
        log.debug("%s, and %s: trying a benchmark request", _WELL, self._unmatched)
        async with anyio.create_task_group() as group:

            async def attempt(scope: anyio.CancelScope = group.cancel_scope) -> None:
                failure = await self._failure_of(request)
                if failure is None:
                    self._count_as_loaded()
                else:
                    self._warn(failure)
                scope.cancel()

            group.start_soon(attempt)
            await self.readiness.until(lambda: not self._is_wanted)
            group.cancel_scope.cancel()
        self._next_s = self.clock.monotonic() + RETRY_S

    async def _failure_of(self, request: BenchmarkRequest) -> str | None:
        """Send a request; return how it failed, or None."""
        try:
            return await request.failure(self.limit_s, self.clock)
        except BenchmarkFailed as e:
            return f"a benchmark request can't be made: {e}"

    def _count_as_loaded(self) -> None:
        self.problem = ""
        texts = [rule.text for rule in self.log_watch.rules if rule.action is LogAction.ModelLoaded]
        log.warning(
            "%s (%s); %s. But %s, and a benchmark request succeeded: the model counts "
            "as loaded. Correct the rules: MODEL_LOAD_LOG_MSG, or the worker's texts for loaded lines",
            self._unmatched,
            ", ".join(map(repr, texts)),
            self._described_log(),
            _WELL,
        )
        reason = f"{_WELL}, and a benchmark request succeeded, though {self._unmatched}"
        self.readiness.note_signal(ReadySignal.LOG, reason)

    @property
    def _unmatched(self) -> str:
        since = "" if self.readiness.missing_signals else " since the error"
        return f"no load rule has matched{since}"

    def _described_log(self) -> str:
        """The log's trouble, or its last lines."""
        watch = self.log_watch
        if watch.trouble:
            return f"the log {watch.path} {watch.trouble}"
        if not watch.last_lines:
            return f"the log {watch.path} is empty"
        shown = " | ".join(excerpt(line, MAX_LINE) for line in watch.last_lines)
        return f"the last of {watch.lines} lines of {watch.path}: {shown}"

    def _warn(self, why: str) -> None:
        """Set the problem, and log it unless it was logged in the last minute."""
        self.problem = f"{_WELL}, but {excerpt(why, MAX_FAILURE)}"
        now_s = self.clock.monotonic()
        if self.problem != self._warned or now_s - self._warned_s >= WARN_EVERY_S:
            log.warning("%s; %s; %s", self._unmatched, self._described_log(), self.problem)
            self._warned, self._warned_s = self.problem, now_s
