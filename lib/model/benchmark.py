"""Measuring the model server's throughput, in workload/s (docs/writing-a-worker.md, "The benchmark").

Owns which numbers of requests in flight are tried, for how long, and the result. The flow of requests is in
flow.py, what it shows in throughput.py. What one request is, is in benchmark_request.py, when to measure in
benchmark_keeper.py, and saving the result in benchmark_store.py.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import anyio

from lib.model.flow import BIN_S, Attempt, Flow, FlowRequest, Send, flowing
from lib.model.knee import Point, best_between, expected_above
from lib.model.throughput import (
    MIN_WINDOW_S,
    PARTS,
    Estimate,
    Ramp,
    estimate,
    prompt_s,
    ramp_of,
    speed_of,
)
from lib.runtime.clock import Clock

__all__ = [
    "Attempt",
    "BenchmarkFailed",
    "FlowRequest",
    "Measurement",
    "Send",
    "TriedLevel",
    "first_answer_limit_s",
    "measure",
]

log = logging.getLogger(__name__)

# The numbers of requests in flight that are tried, each while the one before has gained `MIN_GAIN`. Whole
# requests show less than the progress within them, so that fewer of them are waited for at a step.
STREAMED_LEVELS = (8, 64, 256)
WHOLE_LEVELS = (4, 16, 64, 256)
MIN_GAIN = 1.05
# At a level with a smaller part of its requests worked on at once, the server queues what is more.
QUEUED = 0.8
# Levels nearer to each other than this part of them are the same.
NEAR = 0.08
# A server whose throughput is this part of the one before has slowed, for example because it is throttled.
SLOWED = 0.85
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
# Where the author has given the level, one generation of requests that agree is enough.
GIVEN_UNSURE_FROM = 0.2
# With this many requests that took about the same time, a result of long jobs is known.
AGREEING_JOBS = 2
# The search goes on for at most this many times the target while levels still gain.
OVERTIME = 2.0
# A result that is unsure is measured for up to this many times the target.
RESULT_OVERTIME = 1.25
# Seconds between two looks at the flow.
LOOK_S = 0.1
# After this many failures without a success, the model counts as broken. A failed warm-up is one failure.
BROKEN_AFTER = 2
# So it does after this many failures one after the other, and this many seconds, since the last success.
BROKEN_IN_A_ROW = 10
BROKEN_AFTER_S = 10.0
# The longest of this many of the latest requests shows how long one may take.
LATEST_DURATIONS = 512
# Seconds until the first answer, which a cold model may take long for: the time limit counts from then on. A
# longer MODEL_TIMEOUT_S is the limit in its place. A shorter one limits calls: a request may make several.
FIRST_ANSWER_LIMIT_S = 1800.0
# The most requests at one level: more would only fill the memory.
MAX_JOBS = 20_000


class BenchmarkFailed(Exception):
    """The benchmark has no result; the message is the reason, with the model server's last message."""


@dataclass(frozen=True)
class TriedLevel:
    """A number of requests in flight, and the throughput that it showed, in workload/s, with its `spread`."""

    concurrency: int
    perf: float
    spread: float


@dataclass(frozen=True)
class Measurement:
    """The result: `perf` in workload/s with `concurrency` requests in flight.

    `spread` is the half of the 95 % interval of `perf`, as a part of it; `duration_s` that of the benchmark.
    `succeeded` and `failed` count requests, the warm-up included. `last_message` is that of the last failure,
    or "". `workload_per_unit` is that of a unit of progress, 0.0 if answers don't stream. `is_cut`: the time
    limit has ended the benchmark. `is_unsure`: too little ended to be sure. `levels` are all that were tried,
    the lowest first; that of one request is the warm-up.
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
    levels: tuple[TriedLevel, ...] = ()


def first_answer_limit_s(model_timeout_s: float | None) -> float:
    """The seconds that the first answer may take, where MODEL_TIMEOUT_S is `model_timeout_s`."""
    return max(FIRST_ANSWER_LIMIT_S, model_timeout_s or 0.0)


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
    first_limit_s: float = FIRST_ANSWER_LIMIT_S,
) -> Measurement:
    """Measure the throughput of a steady flow of requests, within about `target_s` seconds.

    With `concurrency` None, the best number in flight is searched for; `max_concurrency` limits both. At
    least `runs` times as many requests end, if `runs` is given. `send` sends one request and returns after
    the last byte of its answer. `workload_per_unit` is that of an earlier measurement. The first answer may
    take `first_limit_s` seconds. `time_limit_s` seconds after it, requests in flight are cancelled, and the
    result is what is known by then.

    Raises `BenchmarkFailed` when no request succeeded or the workload counted is 0, and whatever `send`
    raises. No request is left in flight.
    """
    bench: _Bench | None = None
    limit_s = first_limit_s
    with anyio.CancelScope() as scope:
        timer = clock.call_later(limit_s, scope.cancel)

        def limit() -> None:
            nonlocal timer, limit_s
            timer.cancel()
            limit_s = time_limit_s
            timer = clock.call_later(limit_s, scope.cancel)

        try:
            async with flowing(send, clock, workload_per_unit) as flow:
                flow.on_evidence = limit
                bench = _Bench(flow, clock, target_s, runs, max_concurrency)
                await bench.run(concurrency, warm_up)
        finally:
            timer.cancel()
    assert bench is not None
    return bench.measurement(limit_s if scope.cancelled_caught else None)


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
        self._is_in_units = flow.workload_per_unit == 0  # of progress, before any request has ended
        self._overtime = OVERTIME
        self._is_gaining = False  # the search has ended before it was over
        self._is_given = False  # the author has given the level
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
            await self._settle(self._capped(concurrency))
            return
        while True:
            await self._search()
            level = self._level_of_result
            if self._is_broken or self._is_gaining:
                return
            if self._is_found(level):
                present = self._levels.get(self._flow.level)
                if present is not None and present.throughput < SLOWED * self._levels[level].throughput:
                    self._is_open = True  # because of the number in flight, or because it has slowed since
                return
            before = self._levels.get(level)
            await self._settle(level)
            if before is None or self._levels[level].throughput >= SLOWED * before.throughput:
                return
            if self._left_s <= 0:
                self._is_open = True
                return
            self._forget_later(level, before.throughput)
            self._overtime = RESULT_OVERTIME

    # The steps

    async def _warm_up(self) -> None:
        """Run the first request alone: the model may still load parts, and it shows how long one takes."""
        log.info("benchmark: warming up")
        flow = self._flow
        flow.set_level(1, is_cold=True)
        while not flow.ended and not flow.failed:
            await flow.changed(LOOK_S)
            first_s = next((job.first_s for job in flow.in_flight if job.first_s is not None), math.inf)
            if self._clock.monotonic() - first_s >= 2 * self._window_s:  # it streams, and ends later
                self._note(1, estimate(flow, 1, first_s, self._window_s))
                return
        self._convert()
        if flow.ended:
            self._levels[1] = Estimate(speed_of(flow.ended[0]), 1.0, 1.0, False)
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
        highest = max(self._levels, default=0)
        above = deque(level for level in (*levels, cap) if highest < level <= cap)
        while not self._is_broken and (hope := self._hope(above)) is not None:
            level = int(hope.concurrency)
            if above and level == above[0]:
                above.popleft()
            elif self._left_s <= 0:
                best = max(known.throughput for known in self._levels.values())
                self._is_open = hope.throughput > (1 + UNSURE_FROM) * best
                return
            if not await self._try(level):
                self._is_gaining = True
                return
            tried = self._levels.get(level)
            if tried is not None and tried.places < QUEUED * level:
                above.clear()

    def _forget_later(self, level: int, before: float) -> None:
        """Forget what was measured after `level`, which had the throughput `before`: the server has slowed.

        What was measured earlier would have slowed as well.
        """
        known = self._levels
        slowed = known[level].throughput / before
        earlier = list(known)[: list(known).index(level)]
        self._levels = {
            tried: replace(known[tried], throughput=known[tried].throughput * slowed) for tried in earlier
        }
        self._levels[level] = known[level]

    def _hope(self, above: Sequence[int]) -> Point | None:
        """The level that can be hoped to gain the most: the first `above`, or one between; None without."""
        points = self._points()
        if not points or (above and len(points) < 2):
            return Point(above[0], math.inf) if above else None
        best = max(points, key=lambda point: point.throughput)
        hopes: list[Point] = []
        if above and best is points[-1]:
            hopes.append(Point(above[0], expected_above(points, above[0])))
        for number in range(1, len(points)):
            hope = best_between(points[:number], points[number])
            level = round(hope.concurrency)
            if level not in self._levels and all(abs(level - p.concurrency) > NEAR * level for p in points):
                hopes.append(Point(level, hope.throughput))
        hope = max(hopes, key=lambda hope: hope.throughput, default=None)
        return None if hope is None or hope.throughput < MIN_GAIN * best.throughput else hope

    def _points(self) -> list[Point]:
        """The known throughputs, in the order of the requests that were worked on at once."""
        known = {
            max(1.0, min(level, tried.places)): tried.throughput
            for level, tried in sorted(self._levels.items())
            if tried.throughput > 0
        }
        return [Point(places, known[places]) for places in sorted(known)]

    async def _try(self, level: int) -> bool:
        """Measure at `level`; return false if the time is over before anything is known."""
        self._begin(level)
        while True:
            self._convert()
            best = self._best_level
            known = self._levels[best] if best is not None else None
            current = estimate(self._flow, level, self._level_s, self._window_s)
            if current is not None:
                if current.is_steady or self._has_ended(MAX_JOBS):
                    break
                if known is not None and self._is_clear(current, known):
                    break
            if self._is_broken:
                return False
            if self._elapsed_s > self._overtime * self._target_s:
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
        is_more = self._at_level_s >= self._window_s and least > known.throughput * CLEAR_GAIN
        return is_more or is_less

    async def _settle(self, level: int) -> None:
        """Measure at `level` until the result is known well, or the time is over."""
        if level != self._flow.level:
            self._begin(level)
        elif self._flow.is_streaming:  # without what has compiled since the level began
            self._note_ramp()
            self._ramps.append(self._ramp)
            self._level_s = self._clock.monotonic() - self._window_s
        wanted = self._runs * level if self._runs is not None else 0
        while not self._is_broken:
            current = self._settled(level)
            if current is not None:
                has_ended = self._has_ended(max(1, wanted))
                if has_ended and wanted:  # the author's choice
                    break
                wanted_s = self._result_s if self._left_s > 0 else self._result_s / 2
                is_precise = current.spread <= PRECISION and self._at_level_s >= wanted_s
                is_over = self._left_s <= 0 and self._is_known(level, current)
                if (has_ended or not wanted) and (is_precise or is_over or self._has_ended(MAX_JOBS)):
                    break
            await self._look()
        settled = self._settled(level)
        self._note(level, settled)
        self._is_open |= settled is None or settled.spread >= 1  # what was seen before is not confirmed
        self._result = level
        if self._is_in_units and not self._is_broken:
            await self._end_one()

    async def _end_one(self) -> None:
        """Let the first request end, without others: it shows the workload of a unit of progress."""
        self._flow.set_level(1)
        while not (self._flow.ended or self._is_broken):
            await self._look()
        self._convert()

    def _settled(self, level: int) -> Estimate | None:
        """The estimate of the present level, over a window that is as long as the time allows."""
        self._convert()
        self._note_ramp()
        shortest_s = min(self._result_s, 0.8 * self._at_level_s)
        return estimate(self._flow, level, self._level_s, max(self._window_s, shortest_s))

    def _is_known(self, level: int, current: Estimate) -> bool:
        """Whether what is known is enough once the target is over: long jobs are waited for."""
        if self._flow.is_streaming and (self._is_in_units or self._flow.workload_per_unit > 0):
            is_late = self._elapsed_s > RESULT_OVERTIME * self._target_s
            return self._at_level_s >= self._result_s and (is_late or current.spread <= UNSURE_FROM)
        ended = [job for job in self._flow.ended if job.began_s >= self._level_s or level == 1]
        if len(ended) < AGREEING_JOBS or (current.spread >= 1 and level in self._levels):
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
        ended = self._flow.ended_since(self._level_s)
        return len(ended) >= count and sum(job.began_s >= self._level_s for job in ended) >= count

    def _convert(self) -> None:
        """Change what is known of the levels to workload/s, once a request has shown that of a unit."""
        if not (self._is_in_units and self._flow.ended):
            return
        self._is_in_units = False
        unit = self._flow.workload_per_unit
        self._levels = {
            level: replace(known, throughput=unit * known.throughput) for level, known in self._levels.items()
        }

    def _places(self, level: int, current: Estimate) -> float:
        """The number of requests worked on at once: each is no faster than with fewer of them."""
        lower = [known for tried, known in self._levels.items() if tried < level and known.throughput > 0]
        least = max((known.places / known.throughput for known in lower), default=0.0) * current.throughput
        return min(float(level), max(current.places, least))

    def _note(self, level: int, current: Estimate | None) -> None:
        self._convert()
        if current is None or (level in self._levels and current.spread >= 1):
            return
        self._levels[level] = replace(current, places=self._places(level, current))
        log.info(
            "benchmark: %.6g %s (± %.0f %%) with %d in flight, after %.0f s",
            current.throughput,
            "events/s" if self._is_in_units else "workload/s",
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
        allowance = 1 + PRECISION if self._flow.is_streaming else MIN_GAIN
        is_as_good = self._levels[present].throughput * allowance >= self._levels[best].throughput
        return present if is_as_good and not self._is_found(best) else best

    def _is_found(self, level: int) -> bool:
        """Whether whole requests have shown the result at `level`: each more would take long."""
        is_known = level in self._levels and self._levels[level].spread <= UNSURE_FROM
        return is_known and self._left_s <= 0 and self._runs is None and not self._flow.is_streaming

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
        longest_s = max(BROKEN_AFTER_S, 2 * max(job.duration_s for job in flow.ended[-LATEST_DURATIONS:]))
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
            self._convert()
            if self._is_in_units:
                self._levels = {}
        level = self._best_level if self._result not in self._levels else self._result
        if level is None or self._levels[level].throughput <= 0:
            raise BenchmarkFailed(self._failure_reason(cut_after_s))
        result = self._levels[level]
        as_good = [tried for tried, e in self._levels.items() if e.throughput * MIN_GAIN >= result.throughput]
        is_complete = not (self._is_gaining or self._is_open)
        unsure_from = GIVEN_UNSURE_FROM if self._is_given else UNSURE_FROM
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
            is_unsure=not is_complete or result.spread > unsure_from,
            levels=tuple(TriedLevel(n, e.throughput, e.spread) for n, e in sorted(self._levels.items())),
        )

    def _failure_reason(self, cut_after_s: float | None) -> str:
        if self._flow.ended:
            return "the benchmark's requests succeeded, but the workload counted is 0: see count_workload"
        limit = "" if cut_after_s is None else f" within {cut_after_s:g} s"
        last = f": {self._flow.last_message}" if self._flow.last_message else ""
        return f"no request of the benchmark succeeded{limit}{last}"
