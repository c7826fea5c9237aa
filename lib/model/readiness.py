"""Is the model server loaded, measured, broken: the worker's state (authoring.md §3).

Owns the states and the rules that lead from one to another. What watches the model server is watch.py;
what a state means for a request is in backend.py.
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
    LOADING = "loading"
    BENCHMARKING = "benchmarking"
    READY = "ready"
    ERRORED = "errored"
    DRAINING = "draining"


class ReadySignal(str, Enum):
    """What can show that the model is loaded."""

    LOG = "log"
    HEALTH = "health"
    LIFECYCLE = "lifecycle"
    HANDLERS = "handlers"


class Cause(str, Enum):
    """Where an error comes from: only its own cause takes it back."""

    LOG = "log"
    HEALTH = "health"
    BENCHMARK = "benchmark"
    AUTHOR = "author"
    WORKER = "worker"


@dataclass(frozen=True)
class Change:
    """A change of state, at a Unix time, with what brought it about."""

    at: float
    state: State
    reason: str


class Readiness:
    """The state, out of what is known: signs of loading, the benchmark, the key, errors, draining.

    `on_change` is called after each change of state or error, with the current error message ("" for none)
    and whether the state changed.
    """

    def __init__(
        self, signs: Collection[ReadySignal], needs_key: bool, clock: Clock, process_age_s: float = 0.0
    ) -> None:
        self.on_change: Callable[[str, bool], None] = _nothing
        self.max_perf = 0.0
        self.loadtime_s = 0.0
        self._clock = clock
        self._started = clock.monotonic() - process_age_s
        self._missing = set(signs)
        self.needs_key = needs_key
        self._measured = False
        self._draining = False
        self._errors: dict[Cause, str] = {}
        self._moved = anyio.Event()
        self.state = State.LOADING
        self._told_error = ""
        self.timeline: deque[Change] = deque(
            [Change(clock.wall(), State.LOADING, "started")], maxlen=TIMELINE_LENGTH
        )

    @property
    def error_msg(self) -> str:
        """The error that holds now, or ""; of several the latest."""
        return next(reversed(self._errors.values()), "")

    @property
    def loaded(self) -> bool:
        """Whether every configured sign has been seen."""
        return not self._missing

    @property
    def measured(self) -> bool:
        return self._measured

    @property
    def missing(self) -> tuple[str, ...]:
        """What has to come before the worker can be ready: signs, then "benchmark" and "key"."""
        later = (("benchmark", not self._measured), ("key", self.needs_key))
        return (*sorted(s.value for s in self._missing), *(name for name, lacks in later if lacks))

    def has_error(self, cause: Cause) -> bool:
        return cause in self._errors

    def seen(self, sign: ReadySignal, reason: str) -> None:
        """`sign` shows that the model is loaded; a "loaded" line also clears other errors than health's."""
        self._missing.discard(sign)
        if sign is ReadySignal.LOG:
            for cause in (Cause.LOG, Cause.AUTHOR, Cause.BENCHMARK):
                self._errors.pop(cause, None)
        self._update(reason)

    def key_found(self) -> None:
        """There is a public key: requests can be verified."""
        self.needs_key = False
        self._update("public key found")

    def measured_as(self, max_perf: float, reason: str) -> None:
        """The throughput is `max_perf` workload/s: the benchmark's, a saved one, or the author's."""
        self.max_perf = max_perf
        self._measured = True
        self._errors.pop(Cause.BENCHMARK, None)
        self._update(reason)

    def fail(self, cause: Cause, message: str) -> None:
        """An error holds from now on; a newer one of the same cause replaces it."""
        self._errors.pop(cause, None)
        self._errors[cause] = str(message).strip()[:MAX_ERROR_LENGTH] or "unknown error"
        self._update(f"{cause.value}: {self._errors[cause]}")

    def recover(self, cause: Cause, reason: str) -> None:
        """The error of `cause`, if there is one, holds no more."""
        if self._errors.pop(cause, None) is not None:
            self._update(reason)

    def drain(self) -> None:
        """The worker is stopping: for good."""
        self._draining = True
        self._update("stopping")

    async def until(self, condition: Callable[[], bool], limit_s: float = math.inf) -> bool:
        """Whether `condition` came to hold within `limit_s` seconds; it is looked at after every change."""
        deadline = self._clock.monotonic() + limit_s
        timer = self._clock.call_later(limit_s, self._wake) if limit_s < math.inf else None
        try:
            while not (held := condition()) and self._clock.monotonic() < deadline:
                await self._moved.wait()
            return held
        finally:
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        moved, self._moved = self._moved, anyio.Event()
        moved.set()

    def _update(self, reason: str) -> None:
        before, self.state = self.state, self._derived()
        if self.state is State.READY and not self.loadtime_s:
            self.loadtime_s = self._clock.monotonic() - self._started
        if self.state is not before:
            self.timeline.append(Change(self._clock.wall(), self.state, reason))
            level = logging.WARNING if self.state is State.ERRORED else logging.INFO
            log.log(level, "%s → %s: %s", before.value, self.state.value, reason)
        self._wake()
        error_before, self._told_error = self._told_error, self.error_msg
        if self.state is not before or self._told_error != error_before:
            self.on_change(self._told_error, self.state is not before)

    def _derived(self) -> State:
        if self._draining:
            return State.DRAINING
        if self._errors:
            return State.ERRORED
        if self._missing:
            return State.LOADING
        if not self._measured:
            return State.BENCHMARKING
        return State.LOADING if self.needs_key else State.READY


def _nothing(error_msg: str, state_changed: bool) -> None:
    return None
