"""The servers that the benchmark's accuracy is tested on: their capacity is that of a long steady flow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import pytest

from lib.runtime.clock import sleep
from tests.fakes.batching_model import BatchingModel, JobModel, OnToken
from tests.virtual_time import VirtualClock, in_virtual_time

# Seconds of virtual time: until the flow is steady, and then until it is measured.
SETTLING_S = 20.0
MEASURED_S = 200.0
TOLERANCE = 0.03

Send = Callable[[OnToken], Awaitable[Any]]


async def flow_rate(
    clock: VirtualClock, concurrency: int, send: Callable[[OnToken], Awaitable[Any]]
) -> float:
    """Units/s noted by `concurrency` requests in flight at any time, once they are steady."""
    done = 0.0

    def note(units: float) -> None:
        nonlocal done
        done += units

    async def keep_one() -> None:
        while True:
            await send(note)

    async with anyio.create_task_group() as group:
        for _ in range(concurrency):
            group.start_soon(keep_one)
        await sleep(clock, SETTLING_S)
        done = 0.0
        await sleep(clock, MEASURED_S)
        group.cancel_scope.cancel()
    return done / MEASURED_S


@pytest.mark.parametrize(
    ("fields", "tokens", "ignore_eos"),
    [
        ({}, 100, True),
        ({"base_s": 0.03, "each_s": 0.0005, "most": 16}, 70, True),
        ({"prefill_s": 0.01, "most": 48}, 50, True),
        ({"prefill_s": 0.005, "early_end": 0.1, "most": 32}, 200, False),
        ({"early_end": 0.1, "most": 32}, 200, True),
        ({"noise": 0.05, "most": 12}, 100, True),
        ({"compile_s": 2.0, "most": 32}, 150, True),
        ({"neighbour_s": 1.0, "neighbour_every_s": 4.0, "neighbour_factor": 2.0}, 100, True),
        ({"knee": 20, "past_knee_s": 0.0005, "prefill_s": 0.002}, 100, True),
        ({"base_s": 0.04, "each_s": 0.0015, "most": 256, "prefill_s": 0.01, "noise": 0.02}, 60, True),
    ],
)
def test_the_capacity_is_the_throughput_of_the_best_batch(
    fields: dict[str, Any], tokens: int, ignore_eos: bool
) -> None:
    async def measured(clock: VirtualClock) -> tuple[float, BatchingModel]:
        model = BatchingModel(clock=clock, **fields)
        concurrency = model.best_batch(tokens, ignore_eos)
        send = partial(model.generate, tokens, ignore_eos=ignore_eos)
        return await flow_rate(clock, concurrency, send), model

    rate, model = in_virtual_time(measured)
    assert rate == pytest.approx(model.capacity(tokens, ignore_eos), rel=TOLERANCE)


@pytest.mark.parametrize("concurrency", [4, 7])
def test_the_capacity_of_jobs_needs_no_more_than_the_slots(concurrency: int) -> None:
    async def measured(clock: VirtualClock) -> tuple[float, JobModel]:
        model = JobModel(clock=clock, slots=4, mean_s=0.7, jitter=0.2, workload=25.0)

        async def send(note: OnToken) -> None:
            await model.run()
            note(25)

        return await flow_rate(clock, concurrency, send), model

    rate, model = in_virtual_time(measured)
    assert model.capacity() == pytest.approx(4 * 25 / 0.7)
    assert rate == pytest.approx(model.capacity(), rel=TOLERANCE)


def test_past_the_knee_more_requests_are_slower() -> None:
    async def measured(clock: VirtualClock) -> float:
        return await flow_rate(clock, 64, partial(model_at(clock).generate, 100))

    def model_at(clock: VirtualClock) -> BatchingModel:
        return BatchingModel(clock=clock, knee=16, past_knee_s=0.0005)

    async def known(clock: VirtualClock) -> tuple[int, float]:
        return model_at(clock).best_batch(100), model_at(clock).capacity(100)

    best, capacity = in_virtual_time(known)
    assert 16 <= best < 32
    assert in_virtual_time(measured) < 0.6 * capacity


def durations_of(fields: dict[str, Any], tokens: list[int], pauses_s: list[float]) -> list[float]:
    """Seconds that each request takes, when the next one comes a pause after it came."""

    async def measured(clock: VirtualClock) -> list[float]:
        model = BatchingModel(clock=clock, **fields)

        async def one(length: int) -> float:
            began_s = clock.monotonic()
            assert await model.generate(length) == length
            return clock.monotonic() - began_s

        tasks: list[asyncio.Task[float]] = []
        for length, pause_s in zip(tokens, pauses_s, strict=True):
            tasks.append(asyncio.create_task(one(length)))
            if pause_s:
                await sleep(clock, pause_s)
        return await asyncio.gather(*tasks)

    return in_virtual_time(measured)


STEP: dict[str, Any] = {"base_s": 1.0, "each_s": 0.25}


@pytest.mark.parametrize(
    ("fields", "tokens", "pauses_s", "expected_s"),
    [
        pytest.param({}, [3], [0], [3.75], id="alone"),
        pytest.param({}, [2, 2], [0, 0], [3.0, 3.0], id="in one batch"),
        pytest.param({}, [2, 1], [0.5, 0], [2.75, 2.25], id="admitted between steps"),
        pytest.param({"most": 1}, [1, 1, 1], [0, 0, 0], [1.25, 2.5, 3.75], id="first come first served"),
        pytest.param({"prefill_s": 0.5}, [2, 2], [0, 0], [4.0, 4.0], id="each prompt adds to its first step"),
        pytest.param({"compile_s": 8.0}, [2, 2], [0, 0], [11.0, 11.0], id="compiles a size class once"),
        pytest.param({"knee": 1, "past_knee_s": 0.5}, [1, 1, 1], [0, 0, 0], [3.75] * 3, id="past the knee"),
        pytest.param(
            {"throttle_at_s": 2.0, "throttle_factor": 3.0},
            [2],
            [0],
            [3.5],
            id="throttled in a step",
        ),
        pytest.param(
            {"neighbour_s": 1.0, "neighbour_every_s": 1.0, "neighbour_factor": 2.0},
            [2],
            [0],
            [5.0],
            id="a neighbour that never rests",
        ),
    ],
)
def test_steps(
    fields: dict[str, Any], tokens: list[int], pauses_s: list[float], expected_s: list[float]
) -> None:
    assert durations_of({**STEP, **fields}, tokens, pauses_s) == pytest.approx(expected_s, abs=1e-4)


def test_a_cancelled_caller_leaves_the_batch_and_the_queue() -> None:
    async def run(clock: VirtualClock) -> tuple[float, list[int], int]:
        model = BatchingModel(clock=clock, **STEP, most=2)
        tokens = [0] * 4

        def note(number: int, units: int) -> None:
            tokens[number] += units

        tasks = [asyncio.create_task(model.generate(4, partial(note, number))) for number in range(4)]
        began_s = clock.monotonic()
        await sleep(clock, 2.0)  # in the second step of the first two
        tasks[1].cancel()
        tasks[2].cancel()
        await asyncio.wait(tasks)
        return clock.monotonic() - began_s, tokens, model.steps

    duration_s, tokens, steps = in_virtual_time(run)
    assert tokens == [4, 1, 0, 4]
    # Four steps of two, and two that the last request is alone in.
    assert (duration_s, steps) == (pytest.approx(4 * 1.5 + 2 * 1.25, abs=1e-4), 6)


def test_answers_end_early_unless_the_end_of_text_is_ignored() -> None:
    async def lengths(clock: VirtualClock) -> tuple[list[int], int]:
        model = BatchingModel(clock=clock, early_end=0.2, most=256)
        answers = [model.generate(100, ignore_eos=False) for _ in range(256)]
        return list(await asyncio.gather(*answers)), await model.generate(100)

    early, whole = in_virtual_time(lengths)
    assert whole == 100
    assert 20 <= min(early) < 30
    assert 90 < max(early) <= 100
    assert sum(early) / len(early) == pytest.approx(60, rel=0.1)


def test_each_size_class_is_compiled() -> None:
    async def run(clock: VirtualClock) -> set[int]:
        model = BatchingModel(clock=clock, compile_s=3.0)
        for count in (1, 2, 3, 4, 5, 33):
            await asyncio.gather(*(model.generate(2) for _ in range(count)))
        assert model.most_batch == 33
        return model.compiled

    assert in_virtual_time(run) == {1, 2, 4, 8, 64}


def test_the_same_seed_gives_the_same_server() -> None:
    async def ended_s(seed: int, clock: VirtualClock) -> float:
        model = BatchingModel(clock=clock, noise=0.05, early_end=0.5, seed=seed)
        await asyncio.gather(*(model.generate(50, ignore_eos=False) for _ in range(8)))
        return clock.monotonic()

    first, again, other = (in_virtual_time(partial(ended_s, seed)) for seed in (1, 1, 2))
    assert first == again != other
