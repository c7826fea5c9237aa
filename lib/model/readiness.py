"""The worker's state: loading, benchmarking, ready, errored or draining (docs/operating.md, "States").

Owns the states and the rules for changing between them. Watching the model server is in watch.py, measuring
it is in benchmark_keeper.py. Which requests a state refuses is decided in lib/backend.py.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum

import anyio

from lib.runtime.clock import Clock

log = logging.getLogger(__name__)

TIMELINE_LENGTH = 200
MAX_ERROR_LENGTH = 1000


class State(str, Enum):
    """A state of the worker, by its name in /status."""

    LOADING = "loading"
    BENCHMARKING = "benchmarking"
    READY = "ready"
    ERRORED = "errored"
    DRAINING = "draining"


# The states in which a worker serves no requests. In `ERRORED` they are tried: the model may answer.
NOT_READY = (State.LOADING, State.BENCHMARKING, State.DRAINING)


class ReadySignal(str, Enum):
    """An event that shows that the model is loaded."""

    LOG = "log"
    HEALTH = "health"
    LIFECYCLE = "lifecycle"
    HANDLERS = "handlers"


class Cause(str, Enum):
    """The source of an error. An error is cleared by its own source, or by a new "loaded" line.

    That of a GPU is not cleared: it lasts until the worker is restarted.
    """

    LOG = "log"
    HEALTH = "health"
    LOAD = "load"
    CONNECTION = "connection"
    PROBE = "probe"
    BENCHMARK = "benchmark"
    AUTHOR = "author"
    GPU = "gpu"
    WORKER = "worker"


@dataclass(frozen=True)
class Change:
    """A change to `state` at the Unix time `at`, and the reason for it."""

    at: float
    state: State
    reason: str


class Readiness:
    """Computes the state from ready signals, the benchmark's result, the public key, errors and draining.

    `signals` must all come before the model counts as loaded. `max_perf` is in workload/s, 0.0 until it is
    known; `benchmark_perf` is what it was set to, before it was moved. `loadtime_s` is the time from the
    process's start to the first *ready*, 0.0 until then. `on_change` is called after each change of the state
    or the error, with the current error message ("" for none) and whether the state changed; `on_max_perf`
    with each new throughput.
    """

    def __init__(
        self, signals: Collection[ReadySignal], needs_key: bool, clock: Clock, process_age_s: float = 0.0
    ) -> None:
        self.on_change: Callable[[str, bool], None] = _nothing
        self.on_max_perf: Callable[[float], None] = _no_limit
        self.max_perf = self.benchmark_perf = 0.0
        self.loadtime_s = 0.0
        self._clock = clock
        self._started = clock.monotonic() - process_age_s
        self._missing = set(signals)
        self.needs_key = needs_key
        self._measured = False
        self._draining = False
        self._hindrance = ""
        self._errors: dict[Cause, str] = {}
        self._error_times: dict[Cause, float] = {}
        self._changed = anyio.Event()
        self.state = State.LOADING
        self._reported_error = ""
        self.timeline: deque[Change] = deque(
            [Change(clock.wall(), State.LOADING, "started")], maxlen=TIMELINE_LENGTH
        )

    @property
    def error_msg(self) -> str:
        """The current error, that of a GPU or else the latest if there are several; "" without one.

        Without an error, it is what keeps the model from counting as loaded, if that was noted.
        """
        # A broken GPU is the reason for the errors that follow it.
        error = self._errors.get(Cause.GPU) or next(reversed(self._errors.values()), "")
        return error or (self._hindrance if self._missing else "")

    @property
    def loaded(self) -> bool:
        """Whether every configured ready signal has come."""
        return not self._missing

    @property
    def missing_signals(self) -> frozenset[ReadySignal]:
        """The configured ready signals that have not come."""
        return frozenset(self._missing)

    @property
    def measured(self) -> bool:
        """Whether `max_perf` is known."""
        return self._measured

    @property
    def missing(self) -> tuple[str, ...]:
        """The conditions for *ready* that are not met yet: ready signals, then "benchmark" and "key"."""
        later = (("benchmark", not self._measured), ("key", self.needs_key))
        return (*sorted(s.value for s in self._missing), *(name for name, is_missing in later if is_missing))

    def has_error(self, cause: Cause) -> bool:
        """Whether there is an error of this `cause` now."""
        return cause in self._errors

    def error_s(self, *causes: Cause) -> float:
        """The monotonic time of the latest error of these `causes`, also of one that is cleared, or -inf."""
        return max((self._error_times.get(cause, -math.inf) for cause in causes), default=-math.inf)

    def note_signal(self, signal: ReadySignal, reason: str) -> None:
        """Note that `signal` has come; a "loaded" line also clears the errors that a restart ends."""
        self._missing.discard(signal)
        if signal is ReadySignal.LOG:
            for cause in (Cause.LOG, Cause.AUTHOR, Cause.BENCHMARK, Cause.PROBE):
                self._errors.pop(cause, None)
        if self.loaded:
            self._errors.pop(Cause.LOAD, None)
        self._update(reason)

    def note_hindrance(self, reason: str) -> None:
        """Note why the model does not count as loaded although it seems to be: the state stays the same."""
        self._hindrance = reason[:MAX_ERROR_LENGTH]
        self._update(reason)

    def note_key(self) -> None:
        """Note that the public key is known, so that requests can be verified."""
        self.needs_key = False
        self._update("public key found")

    def set_max_perf(self, max_perf: float, reason: str) -> None:
        """Set the throughput in workload/s: measured, saved, or given by the author."""
        self.benchmark_perf = max_perf
        self._measured = True
        self.move_max_perf(max_perf)
        self._errors.pop(Cause.BENCHMARK, None)
        self._update(reason)

    def move_max_perf(self, max_perf: float) -> None:
        """Move the throughput, until it is set the next time, to what requests show (live_capacity.py)."""
        self.max_perf = max_perf
        self.on_max_perf(max_perf)

    def set_error(self, cause: Cause, message: str) -> None:
        """Set the error of `cause` to `message`, shortened to `MAX_ERROR_LENGTH` characters."""
        self._errors.pop(cause, None)
        self._errors[cause] = str(message).strip()[:MAX_ERROR_LENGTH] or "unknown error"
        self._error_times[cause] = self._clock.monotonic()
        self._update(f"{cause.value}: {self._errors[cause]}")

    def clear_error(self, cause: Cause, reason: str) -> None:
        """Clear the error of `cause`, if there is one."""
        if self._errors.pop(cause, None) is not None:
            self._update(reason)

    def drain(self) -> None:
        """Enter *draining*, which no other state follows."""
        self._draining = True
        self._update("stopping")

    async def until(self, condition: Callable[[], bool], limit_s: float = math.inf) -> bool:
        """Wait until `condition` holds, for at most `limit_s` seconds; return whether it does.

        It is evaluated after every change of the state or of what the state is computed from.
        """
        deadline = self._clock.monotonic() + limit_s
        timer = self._clock.call_later(limit_s, self._wake) if limit_s < math.inf else None
        try:
            while not (holds := condition()) and self._clock.monotonic() < deadline:
                await self._changed.wait()
            return holds
        finally:
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def _update(self, reason: str) -> None:
        before, self.state = self.state, self._computed()
        if self.state is State.READY and not self.loadtime_s:
            self.loadtime_s = self._clock.monotonic() - self._started
        if self.state is not before:
            if self.state is State.LOADING and not self._missing:
                # Without this, a saved benchmark would seem to be the reason for loading.
                reason = f"{reason}; the engine's public key is still missing"
            self.timeline.append(Change(self._clock.wall(), self.state, reason))
            level = logging.WARNING if self.state is State.ERRORED else logging.INFO
            log.log(level, "%s → %s: %s", before.value, self.state.value, reason)
        self._wake()
        error_before, self._reported_error = self._reported_error, self.error_msg
        if self.state is not before or self._reported_error != error_before:
            self.on_change(self._reported_error, self.state is not before)

    def _computed(self) -> State:
        if self._draining:
            return State.DRAINING
        if self._errors:
            return State.ERRORED
        if self._missing:
            return State.LOADING
        if not self._measured:
            return State.BENCHMARKING
        return State.LOADING if self.needs_key else State.READY


def _no_limit(max_perf: float) -> None:
    return None


def _nothing(error_msg: str, state_changed: bool) -> None:
    return None
