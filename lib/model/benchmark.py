"""Throughput of the model server, in workload per second (authoring.md §3 Benchmark).

Owns warm-up, rounds, the search for a concurrency, and what the outcome means. What one request is, and
when to measure, is rating.py's; the saved result is benchmark_store.py's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio

from lib.runtime.clock import Clock

log = logging.getLogger(__name__)

# The search for a concurrency, doubled from 1: it ends here, or where it gains less than this factor.
MAX_CONCURRENCY = 256
MIN_GAIN = 1.05
SEARCH_ROUNDS = 2
# So many failures before any success (the warm-up counts as one, a round as one) and the model is broken.
HOPELESS_AFTER = 2
# No clock is finer than this, and no throughput infinite.
MIN_DURATION_S = 1e-6


class BenchmarkFailed(Exception):
    """There is no result; the text says why, with the model's own last message."""


@dataclass(frozen=True)
class Attempt:
    """What became of one request. `ok` only for a 2xx read to its end; `message` is the model's own."""

    ok: bool
    workload: float
    message: str


@dataclass(frozen=True)
class Measurement:
    """`perf` in workload/s is the best round's, and `concurrency` that round's requests at once.

    `rounds` are those completed; `succeeded` and `failed` count requests without the warm-up.
    `last_message` is that of the last failure, warm-up included, or "".
    """

    perf: float
    concurrency: int
    rounds: int
    succeeded: int
    failed: int
    last_message: str
    timed_out: bool


Send = Callable[[], Awaitable[Attempt]]


async def measure(
    send: Send,
    *,
    runs: int,
    concurrency: int | None,
    max_concurrency: int | None,
    time_limit_s: float,
    clock: Clock,
    warm_up: bool = True,
) -> Measurement:
    """Throughput with `runs` rounds (at least one) of `concurrency` requests at once, None: of the best.

    `send` does one request and returns once the last byte of its answer was read. Past `time_limit_s` the
    requests in flight are cancelled and what is there counts: the rounds completed, or else the part of
    a round, or else the warm-up.

    Raises `BenchmarkFailed` when no request succeeded or none of them was any work, and whatever `send`
    raises. No request is left in flight.
    """
    bench = _Bench(send, clock, deadline_s=clock.monotonic() + time_limit_s)
    with anyio.CancelScope() as scope:
        timer = clock.call_later(time_limit_s, scope.cancel)
        try:
            if warm_up:
                await bench.warm_up()
            if concurrency is None:
                concurrency = await bench.best_concurrency(_capped(MAX_CONCURRENCY, max_concurrency))
            await bench.run(max(1, runs), _capped(concurrency, max_concurrency))
        finally:
            timer.cancel()
    return bench.measurement(time_limit_s if scope.cancelled_caught else None)


@dataclass
class _Round:
    """So many requests at once. `ended_s` None: cut by the time limit."""

    concurrency: int
    started_s: float
    ended_s: float | None = None
    workload: float = 0.0

    def throughput(self, now_s: float) -> float:
        duration_s = (now_s if self.ended_s is None else self.ended_s) - self.started_s
        return min(self.workload / max(duration_s, MIN_DURATION_S), 1e300)


@dataclass
class _Bench:
    """One measurement under way: what was sent and what came back."""

    send: Send
    clock: Clock
    deadline_s: float
    rounds: list[_Round] = field(default_factory=list[_Round])
    warmed_up: _Round | None = None
    succeeded: int = 0
    failed: int = 0
    setbacks: int = 0
    last_message: str = ""

    async def warm_up(self) -> None:
        """One request that isn't counted: it loads what the model loads late."""
        log.info("benchmark: warming up")
        warm_up = _Round(1, self.clock.monotonic())
        attempt = await self.send()
        warm_up.ended_s = self.clock.monotonic()
        if attempt.ok:
            warm_up.workload = _usable(attempt.workload)
            self.warmed_up = warm_up
        else:
            self.setbacks += 1
            self.last_message = attempt.message
            log.warning("benchmark: the warm-up failed: %s", attempt.message)

    async def best_concurrency(self, cap: int) -> int:
        """How many requests at once give the highest throughput, between 1 and `cap`."""
        best, best_throughput = 1, 0.0
        concurrency = 1
        while not self.hopeless:
            throughput = 0.0
            for _ in range(SEARCH_ROUNDS):
                if not self.hopeless:
                    throughput = max(throughput, await self.round(concurrency))
            log.info(
                "benchmark: %.6g workload/s with %d at once, %s", throughput, concurrency, self.time_left()
            )
            gained = throughput > 0 and throughput >= best_throughput * MIN_GAIN
            if throughput > best_throughput:
                best, best_throughput = concurrency, throughput
            if concurrency >= cap or (not gained and concurrency > 1):
                break
            concurrency = min(2 * concurrency, cap)
        return best

    async def run(self, runs: int, concurrency: int) -> None:
        """The rounds proper."""
        started_s = self.clock.monotonic()
        for number in range(1, runs + 1):
            if self.hopeless:
                return
            throughput = await self.round(concurrency)
            each_s = (self.clock.monotonic() - started_s) / number
            log.info(
                "benchmark: round %d of %d, %d at once: %.6g workload/s, %s",
                number,
                runs,
                concurrency,
                throughput,
                self.time_left(each_s * (runs - number)),
            )

    @property
    def hopeless(self) -> bool:
        """Nothing has ever succeeded, though enough was tried: more would hammer a broken model."""
        return not self.succeeded and self.warmed_up is None and self.setbacks >= HOPELESS_AFTER

    async def round(self, concurrency: int) -> float:
        """The throughput of so many requests at once, from the first sent to the last answer's end."""
        current = _Round(concurrency, self.clock.monotonic())
        self.rounds.append(current)
        succeeded = self.succeeded
        unexpected: list[Exception] = []
        try:
            async with anyio.create_task_group() as group:
                for _ in range(concurrency):
                    group.start_soon(self._attempt, current, unexpected)
        except BaseException:
            if unexpected:
                raise unexpected[0] from None  # as itself, not as the group's ExceptionGroup
            raise
        current.ended_s = self.clock.monotonic()
        self.setbacks += self.succeeded == succeeded
        return current.throughput(current.ended_s)

    async def _attempt(self, current: _Round, unexpected: list[Exception]) -> None:
        try:
            attempt = await self.send()
        except Exception as e:
            unexpected.append(e)
            raise
        if attempt.ok:
            self.succeeded += 1
            current.workload += _usable(attempt.workload)
        else:
            self.failed += 1
            self.last_message = attempt.message

    def time_left(self, estimate_s: float | None = None) -> str:
        limit_s = max(0.0, self.deadline_s - self.clock.monotonic())
        if estimate_s is None:
            return f"at most {limit_s:.0f} s left"
        return f"about {min(estimate_s, limit_s):.0f} s left"

    def measurement(self, timed_out_after_s: float | None) -> Measurement:
        """The outcome. Raises `BenchmarkFailed`."""
        now_s = self.clock.monotonic()
        best = self._best(now_s)
        if best is None or best.throughput(now_s) <= 0:
            raise BenchmarkFailed(self._why_not(timed_out_after_s))
        if timed_out_after_s is not None:
            log.warning("benchmark: ended by its limit of %g s with what it has", timed_out_after_s)
        return Measurement(
            perf=best.throughput(now_s),
            concurrency=best.concurrency,
            rounds=sum(r.ended_s is not None for r in self.rounds),
            succeeded=self.succeeded,
            failed=self.failed,
            last_message=self.last_message,
            timed_out=timed_out_after_s is not None,
        )

    def _best(self, now_s: float) -> _Round | None:
        completed = [r for r in self.rounds if r.ended_s is not None and r.workload > 0]
        partial = [r for r in self.rounds if r.ended_s is None and r.workload > 0]
        warm_up = [self.warmed_up] if self.warmed_up and not self.succeeded and not self.failed else []
        candidates = completed or partial or warm_up
        return max(candidates, key=lambda r: r.throughput(now_s), default=None)

    def _why_not(self, timed_out_after_s: float | None) -> str:
        if self.succeeded or (self.warmed_up and not self.failed):
            return "the benchmark's requests succeeded, but the workload counted is 0: see count_workload"
        limit = "" if timed_out_after_s is None else f" within {timed_out_after_s:g} s"
        last = f": {self.last_message}" if self.last_message else ""
        return f"no request of the benchmark succeeded{limit}{last}"


def _capped(concurrency: int, max_concurrency: int | None) -> int:
    return max(1, concurrency if max_concurrency is None else min(concurrency, max_concurrency))


def _usable(workload: float) -> float:
    """`workload`, or 0 for what is no amount of work."""
    return workload if math.isfinite(workload) and workload > 0 else 0.0
