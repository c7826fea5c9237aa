"""Model servers without HTTP whose capacity is known: one batches as text servers do, one queues jobs.

Both follow a clock, so that minutes of them take seconds in virtual time (tests/virtual_time.py). They draw
from generators of their own: the same seed gives the same server.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean

from lib.runtime.clock import Clock, sleep

# Seconds between two steps. In virtual time all that follows from a step happens in it, so that a request
# that ends and the next one of the same client are in consecutive steps.
SCHEDULING_S = 1e-6
# The largest batch that `capacity` takes into account, as no benchmark tries more requests at once.
LARGEST_BATCH = 256
# Lengths drawn for the mean of answers that end early.
DRAWN_LENGTHS = 20_000

OnToken = Callable[[int], object]


@dataclass(eq=False, slots=True)
class _Request:
    """A request. Its caller waits for `done`, which is cancelled with the caller."""

    left: int
    on_token: OnToken | None
    done: asyncio.Future[None]


@dataclass(kw_only=True)
class BatchingModel:
    """A server that generates a token for each request of its batch in each step, with `most` in the batch.

    A step takes `base_s` + `each_s` x batch + `past_knee_s` x (batch - `knee`)^2. Other requests wait, first
    come first served, and are admitted between steps; each adds `prefill_s` to its first step. The first step
    of each size class of batches (powers of two) takes `compile_s` more. Steps vary by `noise`.

    An answer has a uniform share between `early_end` and 1 of the tokens asked for, unless its request
    ignores the end of text. While a neighbour works, for `neighbour_s` of every `neighbour_every_s` seconds,
    steps take `neighbour_factor` as long; from `throttle_at_s` after the server's start on, they take
    `throttle_factor` as long.
    """

    clock: Clock
    base_s: float = 0.02
    each_s: float = 0.001
    most: int = 64
    prefill_s: float = 0.0
    compile_s: float = 0.0
    early_end: float = 1.0
    noise: float = 0.0
    neighbour_s: float = 0.0
    neighbour_every_s: float = 0.0
    neighbour_factor: float = 1.0
    throttle_at_s: float = float("inf")
    throttle_factor: float = 1.0
    knee: int = LARGEST_BATCH
    past_knee_s: float = 0.0
    seed: int = 0
    # For tests: steps so far, the largest batch, and the size classes compiled.
    steps: int = field(default=0, init=False)
    most_batch: int = field(default=0, init=False)
    compiled: set[int] = field(default_factory=set[int], init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._started_s = self.clock.monotonic()
        self._phase_s = self._random.uniform(0, self.neighbour_every_s)
        self._batch: list[_Request] = []
        self._waiting: deque[_Request] = deque()
        self._is_running = False

    async def generate(self, tokens: int, on_token: OnToken | None = None, ignore_eos: bool = True) -> int:
        """Generate an answer, with a call `on_token(1)` for each of its tokens; return their number."""
        length = self._length(tokens, ignore_eos, self._random)
        request = _Request(length, on_token, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        if not self._is_running:
            self._is_running = True
            self.clock.call_later(SCHEDULING_S, self._begin_step)
        await request.done
        return length

    def capacity(self, tokens: int, ignore_eos: bool = True) -> float:
        """The highest steady throughput for requests of `tokens`, in tokens/s.

        It is that of the best batch, always full, with the neighbour's mean effect and without throttling.
        """
        length = self.mean_length(tokens, ignore_eos)
        best = max(self.throughput(batch, length) for batch in range(1, self._largest + 1))
        return best * self._neighbours_share

    def best_batch(self, tokens: int, ignore_eos: bool = True) -> int:
        """The size of the batch that has the highest throughput."""
        length = self.mean_length(tokens, ignore_eos)
        return max(range(1, self._largest + 1), key=lambda batch: self.throughput(batch, length))

    def mean_length(self, tokens: int, ignore_eos: bool = True) -> float:
        """The mean number of tokens in an answer to a request of `tokens`."""
        if ignore_eos or self.early_end >= 1:
            return tokens
        generator = random.Random(self.seed)
        return fmean(self._length(tokens, False, generator) for _ in range(DRAWN_LENGTHS))

    def throughput(self, batch: int, length: float) -> float:
        """Tokens/s of a batch that is always full: in each step, `batch` / `length` requests are new."""
        return batch / (self._step_s(batch) + batch * self.prefill_s / length + SCHEDULING_S)

    @property
    def _largest(self) -> int:
        return min(self.most, LARGEST_BATCH)

    @property
    def _neighbours_share(self) -> float:
        """The mean speed, 1 without a neighbour."""
        if not self.neighbour_every_s:
            return 1.0
        share = self.neighbour_s / self.neighbour_every_s
        return 1 - share + share / self.neighbour_factor

    def _length(self, tokens: int, ignore_eos: bool, generator: random.Random) -> int:
        if ignore_eos or self.early_end >= 1:
            return tokens
        return max(1, round(tokens * generator.uniform(self.early_end, 1)))

    def _step_s(self, batch: int) -> float:
        return self.base_s + self.each_s * batch + self.past_knee_s * max(0, batch - self.knee) ** 2

    def _begin_step(self) -> None:
        """Admit requests and schedule the end of a step, or rest if there are none."""
        batch = self._batch = [request for request in self._batch if not request.done.cancelled()]
        running = len(batch)
        while self._waiting and len(batch) < self.most:
            request = self._waiting.popleft()
            if not request.done.cancelled():
                batch.append(request)
        if not batch:
            self._is_running = False
            return
        work_s = self._step_s(len(batch)) + (len(batch) - running) * self.prefill_s
        if self.noise:
            work_s *= self._random.uniform(1 - self.noise, 1 + self.noise)
        size_class = 1 << (len(batch) - 1).bit_length()
        if size_class not in self.compiled:
            self.compiled.add(size_class)
            work_s += self.compile_s
        self.steps += 1
        self.most_batch = max(self.most_batch, len(batch))
        self.clock.call_later(self._duration_s(work_s), self._end_step)

    def _end_step(self) -> None:
        alive: list[_Request] = []
        for request in self._batch:
            if request.done.cancelled():
                continue
            if request.on_token is not None:
                request.on_token(1)
            request.left -= 1
            if request.left:
                alive.append(request)
            else:
                request.done.set_result(None)
        self._batch = alive
        self.clock.call_later(SCHEDULING_S, self._begin_step)

    def _duration_s(self, work_s: float) -> float:
        """Seconds that `work_s` of undisturbed work takes, from now."""
        began_s = now_s = self.clock.monotonic() - self._started_s
        while True:
            factor, until_s = self._slowness(now_s)
            done_s = (until_s - now_s) / factor
            if work_s <= done_s:
                return now_s + work_s * factor - began_s
            work_s -= done_s
            now_s = until_s

    def _slowness(self, now_s: float) -> tuple[float, float]:
        """The factor by which work takes longer at `now_s`, and the time until which it does."""
        throttled = now_s >= self.throttle_at_s
        factor = self.throttle_factor if throttled else 1.0
        until_s = float("inf") if throttled else self.throttle_at_s
        if self.neighbour_every_s:
            in_period_s = (now_s + self._phase_s) % self.neighbour_every_s
            is_slow = in_period_s < self.neighbour_s
            factor *= self.neighbour_factor if is_slow else 1.0
            change_s = self.neighbour_s if is_slow else self.neighbour_every_s
            # At least a nanosecond, so that rounding can't stop the time at a change.
            until_s = min(until_s, now_s + max(change_s - in_period_s, 1e-9))
        return factor, until_s


@dataclass(kw_only=True)
class JobModel:
    """A server of jobs that don't stream: `slots` at once, first come first served.

    A job takes `mean_s`, up to `jitter` of it more or less, and counts as `workload`.
    """

    clock: Clock
    slots: int = 1
    mean_s: float = 1.0
    jitter: float = 0.0
    workload: float = 100.0
    seed: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._free = asyncio.Semaphore(self.slots)

    async def run(self) -> float:
        """Run a job; return its workload."""
        async with self._free:
            await sleep(self.clock, self.mean_s * self._random.uniform(1 - self.jitter, 1 + self.jitter))
        return self.workload

    def capacity(self) -> float:
        """The highest steady throughput, in workload/s."""
        return self.slots * self.workload / self.mean_s
