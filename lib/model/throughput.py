"""The throughput of a flow of requests, in workload/s, over the time in which it was steady.

Owns the estimates: by the progress within requests where their answers stream, and by the requests that
ended. Which numbers of requests are tried, and for how long, is decided in benchmark.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import fmean, pstdev, stdev

from lib.model.flow import BIN_S, Flow, FlowRequest

# A window of progress has this many parts, whose differences are its spread, and at least this length.
PARTS = 5
MIN_WINDOW_S = 1.0
# Parts that are equal by chance say no more than this, as a part of the throughput.
LEAST_SPREAD = 0.01
# A throughput is steady if it is known within this part of it.
STEADY_WITHIN = 0.05
# The shortest duration that a request can have, so that no throughput is infinite.
MIN_DURATION_S = 1e-6
# The relative standard deviation that is assumed of durations before there are two, and at least of the work
# on a generation of requests: as many as are in flight, which may begin and end together.
ASSUMED_DEVIATION = 0.3
LEAST_DEVIATION = 0.03
# That of the first generation, which may have waited for something that compiled; a second shows it.
ONCE_DEVIATION = 0.1
MIN_GENERATIONS = 1.5
# Requests that are worked on at once have about the same speed, in workload/s: it deviates by at most this.
SAME_SPEED = 0.15
# A request that has run for this part of its time before a level has run at that level.
FRESH_PART = 0.1
# After this many times as many, those that are left wait as long as those that have ended.
GENERATIONS = 2.5
# The beginnings of fewer requests say nothing about that of one.
MIN_RAMP = 3
UPPER_QUARTILE = 0.75
# The latest requests that are looked at, and of those the latest ends.
MAX_LATEST = 2048
MAX_ENDS = 256
# With beginnings of this part of the requests in a window, it is like any other.
MIXED_FROM = 0.3


@dataclass(frozen=True)
class Estimate:
    """A throughput in workload/s. `spread` is the half of its 95 % interval, as a part of it.

    `places` is the number of requests that were worked on at once, as far as it is known; others waited.
    `is_steady` is false while the throughput is not known well, or still changes.
    """

    throughput: float
    spread: float
    places: float
    is_steady: bool


def estimate(flow: Flow, level: int, since_s: float, shortest_s: float = MIN_WINDOW_S) -> Estimate | None:
    """The throughput of `level` requests in flight since the monotonic time `since_s`; None without any.

    Where answers stream, it is that of a window of at least `shortest_s`. Before any has ended, it is
    in units of progress a second.
    """
    if flow.is_streaming and (flow.workload_per_unit > 0 or not flow.ended):
        full_s = since_s + ramp_of(flow, since_s).duration_s
        by_progress = _of_progress(flow, full_s, shortest_s)
        if by_progress is not None and by_progress.is_steady:
            return by_progress
        by_requests = _of_requests(flow, level, since_s)
        return (
            by_requests if by_requests is not None and by_requests.is_steady else by_progress or by_requests
        )
    return _of_requests(flow, level, since_s)


def speed_of(job: FlowRequest) -> float:
    """The workload/s of a job that has ended, over all of its duration."""
    return job.workload / max(job.duration_s, MIN_DURATION_S)


@dataclass(frozen=True)
class Ramp:
    """The beginning of a level: `requests` more made their first progress within `duration_s` seconds."""

    requests: int
    duration_s: float


def ramp_of(flow: Flow, since_s: float) -> Ramp:
    """The beginning of the level since `since_s`, without the requests that waited for the end of others."""
    ended = flow.ended_since(since_s)
    began = [job for job in (*ended, *flow.in_flight) if since_s <= job.began_s <= since_s + BIN_S]
    until_s = min((job.ended_s for job in ended if job.ended_s > since_s), default=math.inf)
    first = [job.first_s - since_s for job in began if job.first_s is not None and job.first_s < until_s]
    return Ramp(len(first), max(first, default=0.0))


def prompt_s(ramps: Sequence[Ramp]) -> float:
    """Seconds for which the beginning of one request holds up all others, by the beginnings of levels.

    What a level's beginning takes whatever the number of requests, such as compiling, is not counted.
    """
    known = [ramp for ramp in ramps if ramp.requests >= MIN_RAMP]
    pairs = [(a, b) for a, b in pairwise(known) if b.requests >= 2 * a.requests]
    if not pairs:
        return 0.0
    shares = [ramp.duration_s / ramp.requests for ramp in known]
    slopes = [(b.duration_s - a.duration_s) / (b.requests - a.requests) for a, b in pairs]
    return max(0.0, min((*shares, slopes[-1])))


def _of_progress(flow: Flow, since_s: float, shortest_s: float) -> Estimate | None:
    """The throughput over the longest window up to now in which progress was even, or else over all."""
    now_s = flow.clock.monotonic()
    last = int((now_s - flow.began_s) / BIN_S)  # the interval that is not over
    first = int((since_s - flow.began_s) / BIN_S) + 1
    bins = flow.bins[first:last] + [0.0] * max(0, last - max(first, len(flow.bins)))
    length, shortest = len(bins), round(shortest_s / BIN_S)
    moments = [since_s + part * max(0.0, now_s - since_s) / PARTS for part in range(PARTS + 1)]
    places = max(_in_progress(flow, at_s) for at_s in moments)  # at some, all of them may just have ended
    beginnings = _beginnings(flow, first, last)
    scale = flow.workload_per_unit or 1.0
    longest: Estimate | None = None
    while length >= shortest:
        size = length // PARTS
        begin = len(bins) - size * PARTS
        # With many beginnings in the window, they take their usual part of it.
        is_mixed = sum(beginnings[begin:]) >= MIXED_FROM * places
        each_s = 0.0 if is_mixed else flow.prompt_s
        parts = [slice(begin + i * size, begin + (i + 1) * size) for i in range(PARTS)]
        rates = [_rate(bins[part], sum(beginnings[part]) * each_s) for part in parts]
        mean = fmean(rates)
        if mean > 0:
            trend = abs(fmean(rates[-2:]) - fmean(rates[:2])) / mean
            spread = max(2 * stdev(rates) / PARTS**0.5 / mean, _granularity(bins[begin:]), LEAST_SPREAD)
            begin_s = flow.began_s + (first + begin) * BIN_S
            is_steady = spread <= STEADY_WITHIN and trend <= STEADY_WITHIN and not _grew(flow, begin_s)
            answering = 1.0 if is_mixed else _part_of_answers(flow, mean, places)
            current = Estimate(mean * scale * answering, spread, places, is_steady)
            if is_steady:
                return current
            longest = longest or current
        length = int(length * 0.7)
    return longest


def _beginnings(flow: Flow, first: int, last: int) -> list[int]:
    """The number of requests that made their first progress in each interval from `first` to `last`."""
    counts = [0] * max(0, last - first)
    for job in (*flow.ended_since(flow.began_s + first * BIN_S), *flow.in_flight):
        if job.first_s is not None:
            number = int((job.first_s - flow.began_s) / BIN_S) - first
            if 0 <= number < len(counts):
                counts[number] += 1
    return counts


def _rate(bins: Sequence[float], held_up_s: float) -> float:
    """The progress per second in `bins`, without the seconds in which beginnings held up the others."""
    length_s = len(bins) * BIN_S
    return sum(bins) / max(length_s - held_up_s, length_s / 4)


def _part_of_answers(flow: Flow, rate: float, places: int) -> float:
    """The part of the time in which answers go on, at `rate` in units/s: in the rest others begin."""
    ended = [job.units for job in flow.ended[-MAX_LATEST:]]
    answer_s = fmean(ended) * places / rate if ended else 0.0
    return answer_s / (answer_s + places * flow.prompt_s) if answer_s > 0 else 1.0


def _granularity(window: Sequence[float]) -> float:
    """The part of the progress in `window` that one step of the server makes, where steps can be told.

    Of steps of different sizes it is their mean, weighted by the progress: a server that holds back what it
    has generated, and sends it together, says little.
    """
    steps = sum(window) ** 2 / sum(units * units for units in window)
    return 1 / steps if steps < 0.8 * len(window) else 0.0


def _grew(flow: Flow, begin_s: float) -> bool:
    """Whether the number of requests in progress has grown since `begin_s`: the batch was still filling."""
    then, now = _in_progress(flow, begin_s), _in_progress(flow, flow.clock.monotonic())
    return now > then + max(1.0, 0.05 * then)


def _in_progress(flow: Flow, at_s: float) -> int:
    """The number of requests that had made their first progress at the time `at_s`, and were not over."""
    begun = (*flow.ended_since(at_s), *flow.in_flight)
    return sum(job.first_s is not None and job.first_s <= at_s < job.ended_s for job in begun)


def _of_requests(flow: Flow, level: int, since_s: float) -> Estimate | None:
    """The throughput by the requests that ended since `since_s`; None before one has that began then."""
    ended = flow.ended_since(since_s)[-MAX_LATEST:]
    jobs = [job for job in ended if not job.is_cold]
    whole = [job for job in jobs if _has_run_since(job, since_s)]
    if not whole:
        return None
    for cold in (job for job in ended if job.is_cold and job.ended_s > since_s):
        # A warm-up that took as long as the next is no worse than that, and long jobs are few.
        if level == 1 and abs(cold.duration_s - whole[0].duration_s) <= STEADY_WITHIN * whole[0].duration_s:
            jobs, whole = [cold, *jobs], [cold, *whole]
        else:
            since_s = cold.ended_s
    latest = whole[-max(level, 4, len(whole) // 2) :] if level > 1 else whole
    deviation = _deviation([speed_of(job) for job in latest])
    first_left = any(job.began_s <= since_s + BIN_S for job in flow.in_flight)
    has_generation = not first_left and len(whole) >= level
    is_same = deviation <= SAME_SPEED or len(whole) >= GENERATIONS * level
    of_ends = _of_ends(flow, jobs, whole, level, since_s)
    if not (has_generation and is_same):
        return of_ends
    durations = sum(max(job.duration_s, MIN_DURATION_S) for job in latest)
    durations += sum(lost_s for at_s, lost_s in flow.idle if at_s >= latest[0].began_s)
    throughput = level * sum(job.workload for job in latest) / durations  # Little's law
    generations = len(whole) / level
    least = ONCE_DEVIATION if level > 1 and generations < MIN_GENERATIONS else LEAST_DEVIATION
    own = (deviation if len(latest) > 1 else ASSUMED_DEVIATION) / math.sqrt(len(latest))
    spread = 2 * max(own, least / math.sqrt(generations))
    of_durations = Estimate(throughput, spread, level, spread <= STEADY_WITHIN)
    return min(of_durations, of_ends, key=lambda known: known.spread)


def _of_ends(
    flow: Flow, jobs: Sequence[FlowRequest], whole: Sequence[FlowRequest], level: int, since_s: float
) -> Estimate:
    """The throughput by the times at which `jobs` ended, most of which have waited for others.

    Where as many as there are places begin and end together, time and workload from the end of a request to
    that of the k-th after it are the same for all where k is a multiple of the places. So k is the number
    for which they differ the least.
    """
    # Of the requests that didn't wait, but not of the few that may be faster than others.
    speeds = sorted(speed_of(job) for job in whole)
    speed = speeds[int(UPPER_QUARTILE * (len(speeds) - 1))]
    if speed <= 0:
        return Estimate(0.0, 1.0, level, False)
    spread, throughput = math.inf, 0.0
    longest_s = max(job.workload for job in flow.ended[-MAX_LATEST:]) / speed
    if jobs[-1].ended_s - since_s >= 1.9 * longest_s:
        ends = _ends(jobs, since_s)
        for first in {0, len(ends) // 3, len(ends) // 2}:
            spread, throughput = min([(spread, throughput), *_of_lags(ends[first:], longest_s)])
    if not throughput:
        time_s = max(jobs[-1].ended_s - since_s, MIN_DURATION_S)
        return Estimate(sum(job.workload for job in whole) / time_s, 1.0, level, False)
    is_known = spread <= 2 * STEADY_WITHIN
    places = min(float(level), max(1.0, throughput / speed)) if is_known else level
    return Estimate(throughput, spread, places, spread <= STEADY_WITHIN)


def _ends(jobs: Sequence[FlowRequest], since_s: float) -> list[tuple[float, float]]:
    """The time of each of the latest ends, and the workload that had ended by then.

    The first is that of the level's beginning if the work on all of them began then.
    """
    latest = jobs[-MAX_ENDS:]
    workloads = accumulate(job.workload for job in latest)
    ends = [(job.ended_s, workload) for job, workload in zip(latest, workloads, strict=True)]
    is_fresh = len(latest) == len(jobs) and all(_has_run_since(job, since_s) for job in jobs)
    return [(since_s, 0.0), *ends] if is_fresh else ends


def _of_lags(ends: Sequence[tuple[float, float]], longest_s: float) -> Iterator[tuple[float, float]]:
    """The spread and the throughput by requests that ended some number of requests apart, by that number.

    There is none before `ends` are those of as long as a request takes.
    """
    if ends[-1][0] - ends[0][0] < longest_s:
        return
    for lag in range(1, (len(ends) - 1) // 2 + 1):
        spans = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(ends, ends[lag:], strict=False)]
        time_s, workload = sum(span[0] for span in spans), sum(span[1] for span in spans)
        if time_s <= 0 or workload <= 0:
            continue
        throughput = workload / time_s
        off = [span[1] - throughput * span[0] for span in spans]
        deviation = math.sqrt(fmean(value * value for value in off)) / (workload / len(spans))
        count = (len(ends) - 1) / lag
        yield 2 * max(deviation, LEAST_DEVIATION) / math.sqrt(count), throughput


def _has_run_since(job: FlowRequest, since_s: float) -> bool:
    """Whether next to nothing of the job was done before `since_s`."""
    return job.began_s >= since_s - FRESH_PART * job.duration_s


def _deviation(values: Sequence[float]) -> float:
    """The relative standard deviation of `values`."""
    mean = fmean(values)
    return pstdev(values) / mean if mean > 0 else 0.0
