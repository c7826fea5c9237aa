"""The benchmark is true and quick: it measures many servers of known capacity, in virtual time."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pytest

from lib.model.benchmark import Attempt, FlowRequest, Measurement, Send, measure
from tests.fakes.batching_model import LARGEST_BATCH, BatchingModel, JobModel
from tests.virtual_time import VirtualClock, in_virtual_time

SEEDS = (1, 2)
SERVERS = 100
# The longest answers that don't stream, with as many at once as a server takes.
MOST_WHOLE_S = 3.0
# The part of the servers that run jobs; the others generate text.
JOB_SERVERS = 0.2
# A server that is throttled is so before this: what happens as the benchmark ends, none can measure.
THROTTLED_BEFORE_S = 8.0
TARGET_S = 20.0
TIME_LIMIT_S = 300.0
# Most results are within `CLOSE` of the capacity. Those off by more than `WRONG`, and those that take longer
# than `QUICK_S`, say that they are unsure.
CLOSE = 0.1
CLOSE_RESULTS = 95
WRONG = 0.2
QUICK_S = 45.0


@dataclass(frozen=True)
class Server:
    """A server with a capacity in workload/s, at `best` requests in flight that take `answer_s` each.

    From `throttle_at_s` after its start on, everything takes `throttle_factor` as long.
    """

    send: Send
    capacity: float
    best: int
    answer_s: float
    max_concurrency: int | None
    description: str
    throttle_at_s: float = math.inf
    throttle_factor: float = 1.0

    def capacity_after(self, duration_s: float) -> float:
        """The capacity that the server has `duration_s` after its start."""
        return self.capacity / (self.throttle_factor if duration_s >= self.throttle_at_s else 1.0)


@dataclass(frozen=True)
class Result:
    """The benchmark's result for a server, and the seconds that it took."""

    number: int
    server: Server
    measured: Measurement
    duration_s: float

    @property
    def error(self) -> float:
        return self.measured.perf / self.server.capacity_after(self.duration_s) - 1

    @property
    def is_close(self) -> bool:
        return abs(self.error) <= CLOSE

    @property
    def is_wrong(self) -> bool:
        return abs(self.error) > WRONG and not self.measured.is_unsure

    @property
    def is_slow(self) -> bool:
        return self.duration_s > QUICK_S and not self.measured.is_unsure

    def row(self) -> str:
        measured, server = self.measured, self.server
        faults = [name for name in ("wrong", "slow") if getattr(self, f"is_{name}")]
        return (
            f"{self.number:3} {self.error:+7.1%} {measured.spread:6.1%} {self.duration_s:6.1f} "
            f"{'unsure' if measured.is_unsure else '':6} {' '.join(faults):10} "
            f"{measured.concurrency:4} of {server.best:3} {server.answer_s:7.2f}  {server.description}"
        )


# In flight: the result's number, and the best. Seconds: of the benchmark, and of an answer at the best.
HEADING = (
    f"{'#':>3} {'off by':>7} {'spread':>6} {'s':>6} {'':6} {'fault':10} "
    f"{'in flight':>11} {'answer':>7}  server"
)


def log_uniform(rng: random.Random, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def text_server(rng: random.Random, clock: VirtualClock) -> Server:
    model = BatchingModel(
        clock=clock,
        base_s=log_uniform(rng, 0.005, 0.04),
        each_s=log_uniform(rng, 0.00002, 0.0015),
        most=round(log_uniform(rng, 4, LARGEST_BATCH)),
        prefill_s=log_uniform(rng, 0.0005, 0.01),
        noise=rng.uniform(0, 0.05),
        seed=rng.randrange(2**32),
    )
    tokens, is_streaming = rng.randint(50, 500), rng.random() < 0.7
    if not is_streaming:  # long answers that don't stream can't be known within the target, and are unsure
        one_s = tokens * (model.base_s + model.each_s * model.most)
        tokens = max(20, round(tokens * min(1.0, MOST_WHOLE_S / one_s)))
    traits = ["streaming" if is_streaming else "whole"]
    if rng.random() < 0.15:
        model.compile_s = rng.uniform(2, 4)
        traits.append(f"compile {model.compile_s:.1f} s")
    if rng.random() < 0.25:
        model.early_end = rng.uniform(0.1, 0.9)
        traits.append(f"ends at {model.early_end:.0%} to 100 %")
    if rng.random() < 0.2:
        every_s, share, factor = rng.uniform(3, 8), rng.uniform(0.1, 0.4), rng.uniform(1.2, 2)
        model.neighbour_every_s, model.neighbour_s = every_s, share * every_s
        model.neighbour_factor = factor
        traits.append(f"neighbour {share:.0%} of {every_s:.1f} s x {factor:.1f}")
    if rng.random() < 0.2 and model.most >= 8:
        model.knee = rng.randint(model.most // 4, model.most // 2)
        # The largest batch takes two to five times as long as without the knee.
        largest_s = model.base_s + model.each_s * model.most
        model.past_knee_s = rng.uniform(1, 4) * largest_s / (model.most - model.knee) ** 2
        traits.append(f"knee {model.knee}")
    if rng.random() < 0.05:
        model.throttle_at_s, model.throttle_factor = rng.uniform(2, THROTTLED_BEFORE_S), rng.uniform(1.2, 2.5)
        traits.append(f"throttled x {model.throttle_factor:.1f} after {model.throttle_at_s:.1f} s")
    best, capacity = model.best_batch(tokens, ignore_eos=False), model.capacity(tokens, ignore_eos=False)
    return Server(
        send=partial(generate, model, tokens, is_streaming),
        capacity=capacity,
        best=best,
        answer_s=best * model.mean_length(tokens, ignore_eos=False) / capacity,
        max_concurrency=None,
        description=(
            f"{capacity:.0f} tokens/s: {model.base_s * 1e3:.1f} + {model.each_s * 1e3:.2f} x batch ms, "
            f"at most {model.most}, {model.prefill_s * 1e3:.1f} ms a prompt, noise {model.noise:.0%}, "
            f"{tokens} tokens, {', '.join(traits)}"
        ),
        throttle_at_s=model.throttle_at_s,
        throttle_factor=model.throttle_factor,
    )


async def generate(model: BatchingModel, tokens: int, is_streaming: bool, job: FlowRequest) -> Attempt:
    generated = await model.generate(tokens, job.note if is_streaming else None, ignore_eos=False)
    return Attempt(True, generated, "")


def job_server(rng: random.Random, clock: VirtualClock) -> Server:
    model = JobModel(
        clock=clock,
        slots=rng.randint(1, 8),
        mean_s=log_uniform(rng, 0.5, 5),
        jitter=rng.uniform(0, 0.2),
        seed=rng.randrange(2**32),
    )
    max_concurrency = rng.choice([None, model.slots])
    return Server(
        send=partial(run_job, model),
        capacity=model.capacity(),
        best=model.slots,
        answer_s=model.mean_s,
        max_concurrency=max_concurrency,
        description=(
            f"{model.capacity():.0f} workload/s: jobs of {model.mean_s:.1f} s ± {model.jitter:.0%}, "
            f"{model.slots} at once, max_concurrency {max_concurrency}"
        ),
    )


async def run_job(model: JobModel, job: FlowRequest) -> Attempt:
    return Attempt(True, await model.run(), "")


async def result(seed: int, number: int, clock: VirtualClock) -> Result:
    """Draw server `number` of `seed`, and measure it."""
    rng = random.Random(f"server {number} of seed {seed}")
    draw: Callable[[random.Random, VirtualClock], Server]
    draw = job_server if rng.random() < JOB_SERVERS else text_server
    server = draw(rng, clock)
    began_s = clock.monotonic()
    measured = await measure(
        server.send,
        runs=None,
        concurrency=None,
        max_concurrency=server.max_concurrency,
        target_s=TARGET_S,
        time_limit_s=TIME_LIMIT_S,
        clock=clock,
    )
    return Result(number, server, measured, clock.monotonic() - began_s)


def table(results: Sequence[Result]) -> str:
    return "\n".join([HEADING, *(result.row() for result in results)])


@pytest.mark.long
@pytest.mark.one_python
@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("seed", SEEDS)
def test_results_are_close_to_the_capacity_and_quick(seed: int) -> None:
    results = [in_virtual_time(partial(result, seed, number)) for number in range(SERVERS)]
    close = sum(r.is_close for r in results)
    wrong, slow = (sum(getattr(r, name) for r in results) for name in ("is_wrong", "is_slow"))
    unsure = sum(r.measured.is_unsure for r in results)
    faulty = [r for r in results if not r.is_close or r.is_wrong or r.is_slow]
    assert (close >= CLOSE_RESULTS, wrong, slow) == (True, 0, 0), (
        f"{close} of {SERVERS} within {CLOSE:.0%} (at least {CLOSE_RESULTS} must be), {unsure} unsure; "
        f"{wrong} off by more than {WRONG:.0%} and {slow} slower than {QUICK_S:g} s, and not unsure:\n"
        f"{table(faulty)}"
    )


@pytest.mark.parametrize("throttle_at_s", [1.0, 3.0, 5.0, 7.0])
@pytest.mark.parametrize("factor", [1.5, 2.5])
def test_what_a_server_gave_before_it_was_throttled_is_not_the_result(
    throttle_at_s: float, factor: float
) -> None:
    """A level that was tried before is not compared with one that was tried afterwards."""

    async def measured(clock: VirtualClock) -> tuple[Measurement, float]:
        model = BatchingModel(clock=clock, base_s=0.01, each_s=0.0002, most=128, prefill_s=0.001)
        model.throttle_at_s, model.throttle_factor = throttle_at_s, factor
        result = await measure(
            partial(generate, model, 200, True),
            runs=None,
            concurrency=None,
            max_concurrency=None,
            target_s=TARGET_S,
            time_limit_s=TIME_LIMIT_S,
            clock=clock,
        )
        return result, model.capacity(200) / factor

    result, capacity = in_virtual_time(measured)
    assert result.perf == pytest.approx(capacity, rel=CLOSE)
