"""Measuring the model server's throughput, in workload/s (docs/writing-a-worker.md, "The benchmark").

Owns which numbers of requests in flight are tried, for how long, and the result. The flow of requests is in
flow.py, what it shows in throughput.py. What one request is, is in benchmark_request.py, when to measure in
benchmark_keeper.py, and saving the result in benchmark_store.py.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import anyio

from lib.model.flow import BIN_S, Attempt, Flow, FlowRequest, Send, flowing
from lib.model.throughput import (
    MIN_DURATION_S,
    MIN_WINDOW_S,
    PARTS,
    Estimate,
    Ramp,
    estimate,
    optimistic,
    prompt_s,
    ramp_of,
)
from lib.runtime.clock import Clock

__all__ = ["Attempt", "BenchmarkFailed", "FlowRequest", "Measurement", "Send", "measure"]

log = logging.getLogger(__name__)

# The numbers of requests in flight that are tried, each while the one before has gained `MIN_GAIN`. Whole
# requests show less than the progress within them, so that fewer of them are waited for at a step.
STREAMED_LEVELS = (8, 64, 256)
WHOLE_LEVELS = (4, 16, 64, 256)
MIN_GAIN = 1.05
# From one level to a higher one, throughput grows by at least this part of the root of what the number grows
# by; where it grows less, a peak may be between them.
LEAST_GAIN = 0.8
# At a level with a smaller part of its requests worked on at once, the server queues what is more.
QUEUED = 0.8
# Levels next to each other by less than this factor are not refined further.
REFINED_TO = 1.3
# A level that gains this much is not measured any better, unless it is the last.
CLEAR_GAIN = 1.3
# The level of jobs that take longer than the target.
LONG_JOBS_LEVEL = 8
# How well the result should be known, as a part of it, and the least time that it is measured for.
PRECISION = 0.03
RESULT_S = 6.0
# The part of the target that it takes at most.
RESULT_PART = 0.3
# The part of the target that a level is looked at for, at least.
WINDOW_PART = 0.05
# A result that is known less well than this is unsure.
UNSURE_FROM = 0.1
# With this many requests that took about the same time, a result of long jobs is known.
AGREEING_JOBS = 2
# The search goes on for at most this many times the target while levels still gain.
OVERTIME = 2.0
# The part of the target after which a warm-up that still streams is not waited for.
WARM_UP_PART = 0.4
# Seconds between two looks at the flow.
LOOK_S = 0.1
# After this many failures without a success, the model counts as broken. A failed warm-up is one failure.
BROKEN_AFTER = 2
# So it does after this many failures one after the other, and this many seconds, since the last success.
BROKEN_IN_A_ROW = 10
BROKEN_AFTER_S = 10.0
MAX_LATEST = 512
# Seconds until the first answer, which a cold model may take long for: the time limit counts from then on.
FIRST_ANSWER_LIMIT_S = 1800.0
# The most requests at one level: more would only fill the memory.
MAX_JOBS = 20_000


class BenchmarkFailed(Exception):
    """The benchmark has no result; the message is the reason, with the model server's last message."""


@dataclass(frozen=True)
class Measurement:
    """The result: `perf` in workload/s with `concurrency` requests in flight.

    `spread` is the half of the 95 % interval of `perf`, as a part of it; `duration_s` that of the benchmark.
    `succeeded` and `failed` count requests, the warm-up included. `last_message` is that of the last failure,
    or "". `workload_per_unit` is that of a unit of progress, 0.0 if answers don't stream. `is_cut`: the time
    limit has ended the benchmark. `is_unsure`: too little ended to be sure.
    """

    perf: float
    concurrency: int
    spread: float
    duration_s: float
    succeeded: int
    failed: int
    last_message: str
    workload_per_unit: float = 0.0
    is_cut: bool = False
    is_unsure: bool = False


async def measure(
    send: Send,
    *,
    runs: int | None,
    concurrency: int | None,
    max_concurrency: int | None,
    target_s: float,
    time_limit_s: float,
    clock: Clock,
    warm_up: bool = True,
    workload_per_unit: float = 0.0,
) -> Measurement:
    """Measure the throughput of a steady flow of requests, within about `target_s` seconds.

    With `concurrency` None, the best number in flight is searched for; `max_concurrency` limits both. At
    least `runs` times as many requests end, if `runs` is given. `send` sends one request and returns after
    the last byte of its answer. `workload_per_unit` is that of an earlier measurement. `time_limit_s` seconds
    after the first answer, requests in flight are cancelled, and the result is what is known by then.

    Raises `BenchmarkFailed` when no request succeeded or the workload counted is 0, and whatever `send`
    raises. No request is left in flight.
    """
    bench: _Bench | None = None
    with anyio.CancelScope() as scope:
        timer = clock.call_later(FIRST_ANSWER_LIMIT_S, scope.cancel)

        def limit() -> None:
            nonlocal timer
            timer.cancel()
            timer = clock.call_later(time_limit_s, scope.cancel)

        try:
            async with flowing(send, clock, workload_per_unit) as flow:
                flow.on_evidence = limit
                bench = _Bench(flow, clock, target_s, runs, max_concurrency)
                await bench.run(concurrency, warm_up)
        finally:
            timer.cancel()
    assert bench is not None
    return bench.measurement(time_limit_s if scope.cancelled_caught else None)


class _Bench:
    """A running measurement: the levels that were tried, with what each showed."""

    def __init__(
        self, flow: Flow, clock: Clock, target_s: float, runs: int | None, max_concurrency: int | None
    ) -> None:
        self._flow = flow
        self._clock = clock
        self._began_s = clock.monotonic()
        self._target_s = target_s
        self._result_s = min(RESULT_S, RESULT_PART * target_s)
        self._window_s = min(MIN_WINDOW_S, max(PARTS * BIN_S, WINDOW_PART * target_s))
        self._runs = runs
        self._cap = max_concurrency
        self._level_s = self._began_s  # since when the present level is kept
        self._levels: dict[int, Estimate] = {}
        self._is_gaining = False  # the search has ended before it was over
        self._is_given = False  # the author has given the level
        self._repeated: set[int] = set()  # the levels at which requests followed others that began there
        self._is_open = False  # there may be a better level between those that were tried
        self._ramps: list[Ramp] = []
        self._ramp = Ramp(0, 0.0)
        self._result: int | None = None  # the level at which the result was measured

    async def run(self, concurrency: int | None, warm_up: bool) -> None:
        """Measure at `concurrency`, or at the best."""
        if warm_up:
            await self._warm_up()
        self._is_given = concurrency is not None
        if concurrency is not None:
            level = self._capped(concurrency)
        else:
            await self._search()
            level = self._level_of_result
        if not (self._is_broken or self._is_gaining or self._is_found(level)):
            await self._settle(level)

    # The steps

    async def _warm_up(self) -> None:
        """Run the first request alone: the model may still load parts, and it shows how long one takes."""
        log.info("benchmark: warming up")
        flow = self._flow
        flow.set_level(1, is_cold=True)
        while not flow.ended and not flow.failed:
            await flow.changed(LOOK_S)
            if flow.is_streaming and self._elapsed_s >= WARM_UP_PART * self._target_s:
                return  # it ends later
        if flow.ended:
            job = flow.ended[0]
            throughput = job.workload / max(job.duration_s, MIN_DURATION_S)
            self._levels[1] = Estimate(throughput, 1.0, 1.0, False)
        else:
            log.warning("benchmark: the warm-up failed: %s", flow.last_message)

    async def _search(self) -> None:
        """Try higher levels while they gain, and then between the best and its neighbours."""
        cap = self._capped(256)
        if cap == 1:
            return
        if self._left_s <= 0:  # jobs are so long that there is time for one level
            self._begin(min(LONG_JOBS_LEVEL, cap))
            return
        levels = STREAMED_LEVELS if self._flow.is_streaming or not self._flow.ended else WHOLE_LEVELS
        for level in [*(level for level in levels if level < cap), cap]:
            best = self._best_level
            before = self._levels[best].throughput if best is not None else 0.0
            if not await self._try(level):
                self._is_gaining = True
                return
            tried = self._levels.get(level)
            if tried is not None and (tried.throughput < before * MIN_GAIN or tried.places < QUEUED * level):
                break
        while (level := self._between()) is not None and not self._is_broken:
            if self._left_s <= 0 or not await self._try(level):
                self._is_open = True
                return

    def _between(self) -> int | None:
        """A level between the best and a neighbour that is further from it than `REFINED_TO`, or None.

        Where no more requests are worked on at once above than at the best, the server queues what is more.
        Where the best has gained little from the level below, there may be a peak between them.
        """
        if not self._levels:
            return None
        highest = max(tried.throughput for tried in self._levels.values())
        best = min(level for level, tried in self._levels.items() if tried.throughput * MIN_GAIN >= highest)
        known = self._levels[best]
        above = min((level for level in self._levels if level > best), default=None)
        below = max((level for level in self._levels if level < best), default=None)
        places = min(best, known.places) if self._flow.is_streaming else best
        neighbours: list[int] = []
        has_gained = True
        is_worse = above is not None and self._levels[above].throughput < known.throughput / MIN_GAIN
        if above is not None and (is_worse or self._levels[above].places > REFINED_TO * known.places):
            neighbours.append(above)
        if below is not None:
            gain = known.throughput / max(self._levels[below].throughput, MIN_DURATION_S)
            has_gained = gain > LEAST_GAIN * math.sqrt(places / self._levels[below].places)
        if below is not None and (is_worse or not has_gained):
            neighbours.append(below)
        for neighbour in sorted(neighbours, key=lambda n: self._levels[n].throughput, reverse=True):
            low, high = sorted((round(places), neighbour))
            middle = round(math.sqrt(low * high))
            if low and high / low > REFINED_TO and middle not in self._levels:
                return middle
        return None

    async def _try(self, level: int) -> bool:
        """Measure at `level`; return false if the time is over before anything is known."""
        best = self._best_level
        known = self._levels[best] if best is not None else None
        self._begin(level)
        while True:
            current = estimate(self._flow, level, self._level_s, self._window_s)
            if current is not None:
                if current.is_steady or self._has_ended(MAX_JOBS):
                    break
                if known is not None and self._is_clear(current, known):
                    break
            if self._is_broken:
                return False
            if known is not None and best is not None and (shown := self._shown_by_ends(best)) is not None:
                is_worse = shown < known.throughput / CLEAR_GAIN
                current = Estimate(shown if is_worse else known.throughput, 1.0, known.places, False)
                break
            if self._elapsed_s > OVERTIME * self._target_s:
                self._note(level, current)
                return False
            if current is not None and self._left_s < 0 and current.spread < 2 * UNSURE_FROM:
                break
            await self._look()
        self._note(level, current)
        return True

    def _is_clear(self, current: Estimate, known: Estimate) -> bool:
        """Whether `current`, of a level above the best, is clearly more than the best, or clearly less."""
        least = current.throughput * (1 - current.spread)
        most = current.throughput * (1 + current.spread)
        has_settled = self._at_level_s >= 2 * self._window_s and current.spread < 0.5
        is_less = has_settled and most < known.throughput / CLEAR_GAIN and self._flow.is_streaming
        return least > known.throughput * CLEAR_GAIN or is_less

    def _shown_by_ends(self, best: int) -> float | None:
        """The most that this level can give, if the ends of requests show that `best` gives as much."""
        if self._flow.is_streaming or not self._has_ended(2 * best + 1):
            return None
        shown = optimistic(self._flow, self._level_s, best)
        return shown if shown < self._levels[best].throughput * MIN_GAIN else None

    async def _settle(self, level: int) -> None:
        """Measure at `level` until the result is known well, or the time is over."""
        if level != self._flow.level:
            self._begin(level)
        wanted = self._runs * level if self._runs is not None else 0
        while not self._is_broken:
            current = self._settled(level)
            if current is not None:
                has_ended = self._has_ended(max(1, wanted))
                if has_ended and wanted:  # the author's choice
                    break
                is_precise = current.spread <= PRECISION and self._at_level_s >= self._result_s
                is_over = self._left_s <= 0 and self._is_known(level, current)
                if (has_ended or not wanted) and (is_precise or is_over or self._has_ended(MAX_JOBS)):
                    break
            await self._look()
        self._note(level, self._settled(level))
        self._result = level

    def _settled(self, level: int) -> Estimate | None:
        """The estimate of the present level, over a window that is as long as the time allows."""
        self._note_ramp()
        shortest_s = min(self._result_s, 0.8 * self._at_level_s)
        return estimate(self._flow, level, self._level_s, max(self._window_s, shortest_s))

    def _is_known(self, level: int, current: Estimate) -> bool:
        """Whether what is known is enough once the target is over: long jobs are waited for."""
        if self._flow.is_streaming and self._flow.workload_per_unit > 0:
            return self._at_level_s >= self._result_s
        ended = [job for job in self._flow.ended if job.began_s >= self._level_s or level == 1]
        if len(ended) < AGREEING_JOBS:
            return False
        longest = max(job.duration_s for job in ended)
        if longest <= self._target_s:
            return True
        last, before = ended[-1].duration_s, ended[-2].duration_s
        return abs(last - before) <= (MIN_GAIN - 1) * max(last, before) or current.spread <= UNSURE_FROM

    # The flow

    def _begin(self, level: int) -> None:
        self._note_ramp()
        self._ramps.append(self._ramp)
        self._flow.set_level(level)
        self._level_s = self._clock.monotonic()

    def _note_ramp(self) -> None:
        """Note how the present level has begun."""
        self._ramp = ramp_of(self._flow, self._level_s)
        self._flow.prompt_s = prompt_s([*self._ramps, self._ramp])

    async def _look(self) -> None:
        """Wait until there may be more to see."""
        before_s = self._clock.monotonic()
        await self._flow.changed(LOOK_S)
        if self._clock.monotonic() == before_s:
            return
        while self._clock.monotonic() - before_s < LOOK_S / 2:
            await self._flow.changed(LOOK_S / 2)

    def _has_ended(self, count: int) -> bool:
        """Whether `count` requests that began at this level have ended."""
        ended = self._flow.ended
        return sum(job.began_s >= self._level_s for job in ended[-2 * count - 512 :]) >= count

    def _note(self, level: int, current: Estimate | None) -> None:
        if current is None:
            return
        self._levels[level] = current
        later = sum(job.began_s > self._level_s + LOOK_S for job in self._flow.ended)
        if level == 1 or self._flow.is_streaming or later >= current.places / 2:
            self._repeated.add(level)
        log.info(
            "benchmark: %.6g workload/s (± %.0f %%) with %d in flight, after %.0f s",
            current.throughput,
            100 * current.spread,
            level,
            self._elapsed_s,
        )

    @property
    def _best_level(self) -> int | None:
        return max(self._levels, key=lambda level: self._levels[level].throughput, default=None)

    @property
    def _level_of_result(self) -> int:
        """The level to measure the result at: the present one if it is as good as the best."""
        best, present = self._best_level, self._flow.level
        if best is None or present not in self._levels:
            return max(1, present)
        is_as_good = self._levels[present].throughput * MIN_GAIN >= self._levels[best].throughput
        return present if is_as_good and not self._is_found(best) else best

    def _is_found(self, level: int) -> bool:
        """Whether whole requests have shown the result at `level`: each more would take long."""
        is_known = level in self._levels and self._levels[level].spread <= UNSURE_FROM
        is_over = level in self._repeated or self._left_s <= 0
        return is_known and is_over and self._runs is None and not self._flow.is_streaming

    @property
    def _elapsed_s(self) -> float:
        return self._clock.monotonic() - self._began_s

    @property
    def _at_level_s(self) -> float:
        """Seconds for which the present level is kept, without those in which it began."""
        return self._clock.monotonic() - self._level_s - self._ramp.duration_s

    @property
    def _left_s(self) -> float:
        """Seconds until the target; negative after it."""
        return self._target_s - self._elapsed_s

    @property
    def _is_broken(self) -> bool:
        """Whether more requests would only add load.

        Nothing has succeeded after `BROKEN_AFTER` failures, or no more since then, for longer than requests
        took before.
        """
        flow = self._flow
        if not flow.ended:
            return flow.failed >= BROKEN_AFTER
        longest_s = max(BROKEN_AFTER_S, 2 * max(job.duration_s for job in flow.ended[-MAX_LATEST:]))
        return (
            flow.failed_in_a_row >= BROKEN_IN_A_ROW and self._clock.monotonic() - flow.last_good_s > longest_s
        )

    def _capped(self, concurrency: int) -> int:
        return max(1, concurrency if self._cap is None else min(concurrency, self._cap))

    # The result

    def measurement(self, cut_after_s: float | None) -> Measurement:
        """Return the result. Raises `BenchmarkFailed`."""
        flow, present = self._flow, max(1, self._flow.level)
        if flow.ended and self._is_broken:
            raise BenchmarkFailed(f"the model server has begun to fail: {flow.last_message}")
        if cut_after_s is not None:
            current = estimate(flow, present, self._level_s)
            if current is not None and (present not in self._levels or current.spread < 1):
                self._levels[present] = current
        level = self._best_level if self._result not in self._levels else self._result
        if level is None or self._levels[level].throughput <= 0:
            raise BenchmarkFailed(self._failure_reason(cut_after_s))
        result = self._levels[level]
        as_good = [tried for tried, e in self._levels.items() if e.throughput * MIN_GAIN >= result.throughput]
        is_complete = not (self._is_gaining or self._is_open)
        is_complete = is_complete and (level in self._repeated or self._is_given)
        if cut_after_s is not None:
            log.warning("benchmark: stopped by its time limit of %g s, with a result so far", cut_after_s)
        return Measurement(
            perf=result.throughput,
            concurrency=min(level, *as_good),
            spread=result.spread,
            duration_s=self._elapsed_s,
            succeeded=len(flow.ended),
            failed=flow.failed,
            last_message=flow.last_message,
            workload_per_unit=flow.workload_per_unit if flow.is_streaming else 0.0,
            is_cut=cut_after_s is not None,
            is_unsure=not is_complete or result.spread > UNSURE_FROM,
        )

    def _failure_reason(self, cut_after_s: float | None) -> str:
        if self._flow.ended:
            return "the benchmark's requests succeeded, but the workload counted is 0: see count_workload"
        limit = "" if cut_after_s is None else f" within {cut_after_s:g} s"
        last = f": {self._flow.last_message}" if self._flow.last_message else ""
        return f"no request of the benchmark succeeded{limit}{last}"
