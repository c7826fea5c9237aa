"""Measuring the model server's throughput, in workload/s (docs/writing-a-worker.md, "The benchmark").

Owns warm-up, rounds, the search for the best concurrency, and the result. What one request is, and when to
measure, is in benchmark_keeper.py; saving the result is in benchmark_store.py.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio

from lib.runtime.clock import Clock

log = logging.getLogger(__name__)

# The search doubles the concurrency from 1 to this maximum, and ends if a step gains less than the factor.
MAX_CONCURRENCY = 256
MIN_GAIN = 1.05
SEARCH_ROUNDS = 2
# After this many failures without a success, the model counts as broken. A failed warm-up is one failure, and
# so is a failed round.
BROKEN_AFTER = 2
# The shortest duration that a round can have, so that no throughput is infinite.
MIN_DURATION_S = 1e-6
MAX_THROUGHPUT = 1e300


class BenchmarkFailed(Exception):
    """The benchmark has no result; the message is the reason, with the model server's last message."""


@dataclass(frozen=True)
class Attempt:
    """The result of one request. `ok` for a 2xx read to its end; `message` is the model server's."""

    ok: bool
    workload: float
    message: str


@dataclass(frozen=True)
class Measurement:
    """The result: `perf` in workload/s and `concurrency` are those of the best round.

    `rounds` is the number of completed rounds; `succeeded` and `failed` count requests without the warm-up.
    `last_message` is that of the last failure, the warm-up included, or "".
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
    """Measure the throughput with `runs` rounds, at least one, of `concurrency` simultaneous requests.

    With `concurrency` None, the best one is searched for first; `max_concurrency` limits both. `send` sends
    one request and returns after the last byte of its answer. After `time_limit_s`, requests in flight are
    cancelled, and the result is that of the completed rounds, or else of the unfinished round, or else of the
    warm-up.

    Raises `BenchmarkFailed` when no request succeeded or the workload counted is 0, and whatever `send`
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
    """One round of `concurrency` simultaneous requests. `ended_s` is None if the time limit ended it."""

    concurrency: int
    started_s: float
    ended_s: float | None = None
    workload: float = 0.0

    def throughput(self, now_s: float) -> float:
        """The workload/s of this round, up to `now_s` if it has not ended."""
        duration_s = (now_s if self.ended_s is None else self.ended_s) - self.started_s
        return min(self.workload / max(duration_s, MIN_DURATION_S), MAX_THROUGHPUT)


@dataclass
class _Bench:
    """A running measurement: its rounds, and the counts of its requests."""

    send: Send
    clock: Clock
    deadline_s: float
    rounds: list[_Round] = field(default_factory=list[_Round])
    warmed_up: _Round | None = None
    succeeded: int = 0
    failed: int = 0
    failures: int = 0
    last_message: str = ""

    async def warm_up(self) -> None:
        """Send one request that isn't counted, since the model may still load parts of itself during it."""
        log.info("benchmark: warming up")
        warm_up = _Round(1, self.clock.monotonic())
        attempt = await self.send()
        warm_up.ended_s = self.clock.monotonic()
        if attempt.ok:
            warm_up.workload = _usable(attempt.workload)
            self.warmed_up = warm_up
        else:
            self.failures += 1
            self.last_message = attempt.message
            log.warning("benchmark: the warm-up failed: %s", attempt.message)

    async def best_concurrency(self, cap: int) -> int:
        """Search for the concurrency with the highest throughput, between 1 and `cap`."""
        best, best_throughput = 1, 0.0
        concurrency = 1
        while not self.broken:
            throughput = 0.0
            for _ in range(SEARCH_ROUNDS):
                if not self.broken:
                    throughput = max(throughput, await self.round(concurrency))
            log.info(
                "benchmark: %.6g workload/s at concurrency %d, %s", throughput, concurrency, self.time_left()
            )
            gained = throughput > 0 and throughput >= best_throughput * MIN_GAIN
            if throughput > best_throughput:
                best, best_throughput = concurrency, throughput
            if concurrency >= cap or (not gained and concurrency > 1):
                break
            concurrency = min(2 * concurrency, cap)
        return best

    async def run(self, runs: int, concurrency: int) -> None:
        """Run the rounds whose best is the result."""
        started_s = self.clock.monotonic()
        for number in range(1, runs + 1):
            if self.broken:
                return
            throughput = await self.round(concurrency)
            each_s = (self.clock.monotonic() - started_s) / number
            log.info(
                "benchmark: round %d of %d, concurrency %d: %.6g workload/s, %s",
                number,
                runs,
                concurrency,
                throughput,
                self.time_left(each_s * (runs - number)),
            )

    @property
    def broken(self) -> bool:
        """Whether nothing has succeeded after `BROKEN_AFTER` failures: more requests would only add load."""
        return not self.succeeded and self.warmed_up is None and self.failures >= BROKEN_AFTER

    async def round(self, concurrency: int) -> float:
        """Run one round; return its throughput, from the first request sent to the end of the last answer."""
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
                raise unexpected[0] from None  # not the group's ExceptionGroup
            raise
        current.ended_s = self.clock.monotonic()
        self.failures += self.succeeded == succeeded
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
        """The time left for a log line: `estimate_s`, limited by the deadline; without one, the limit."""
        limit_s = max(0.0, self.deadline_s - self.clock.monotonic())
        if estimate_s is None:
            return f"at most {limit_s:.0f} s left"
        return f"about {min(estimate_s, limit_s):.0f} s left"

    def measurement(self, timed_out_after_s: float | None) -> Measurement:
        """Return the result. Raises `BenchmarkFailed`."""
        now_s = self.clock.monotonic()
        best = self._best(now_s)
        if best is None or best.throughput(now_s) <= 0:
            raise BenchmarkFailed(self._failure_reason(timed_out_after_s))
        if timed_out_after_s is not None:
            log.warning(
                "benchmark: stopped by its time limit of %g s, with a result so far", timed_out_after_s
            )
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

    def _failure_reason(self, timed_out_after_s: float | None) -> str:
        if self.succeeded or (self.warmed_up and not self.failed):
            return "the benchmark's requests succeeded, but the workload counted is 0: see count_workload"
        limit = "" if timed_out_after_s is None else f" within {timed_out_after_s:g} s"
        last = f": {self.last_message}" if self.last_message else ""
        return f"no request of the benchmark succeeded{limit}{last}"


def _capped(concurrency: int, max_concurrency: int | None) -> int:
    return max(1, concurrency if max_concurrency is None else min(concurrency, max_concurrency))


def _usable(workload: float) -> float:
    """Return `workload`, or 0 if it is not a finite number above 0."""
    return workload if math.isfinite(workload) and workload > 0 else 0.0
