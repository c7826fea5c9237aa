from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from aiohttp import web

from lib.client import Target
from lib.runtime.clock import Clock, SystemClock
from lib.tools.load_tally import OK, Sample
from lib.tools.load_test import LoadTest, Plan, client_json, payload_maker
from tests.lib.tools.stand_ins import Answer, Engine, InTurn, Worker, cut, never, silent
from tests.manual_clock import ManualClock
from workers.hello_world.data_types import InputData

GUARD_S = 60


@asynccontextmanager
async def engine_and_worker() -> AsyncGenerator[tuple[Engine, Worker], None]:
    worker = Worker()
    async with worker.server:
        engine = Engine(worker.url)
        async with engine.server:
            yield engine, worker


def plan(engine: Engine, count: int, rps: float = 1000.0, timeout_s: float = 30.0) -> Plan:
    return Plan(engine.target, "/generate", count, rps, timeout_s)


async def run(test_plan: Plan, clock: Clock | None = None) -> list[Sample]:
    samples: list[Sample] = []
    test = LoadTest(test_plan, InputData.for_test, clock=clock, on_sample=samples.append)
    with anyio.fail_after(GUARD_S):
        await test.run()
    assert test.sent == test.tally.ended == len(samples)
    return samples


async def test_requests_leave_on_time_however_slow_the_answers_are() -> None:
    clock = ManualClock()
    async with engine_and_worker() as (engine, worker):
        release = asyncio.Event()

        async def when_released(_request: web.Request) -> web.Response:
            await release.wait()
            return web.Response(text="done")

        worker.answer = when_released
        samples: list[Sample] = []
        test = LoadTest(plan(engine, 4, rps=0.5), InputData.for_test, clock=clock, on_sample=samples.append)
        running = asyncio.ensure_future(test.run())
        with anyio.fail_after(GUARD_S):
            for sent in range(1, 5):
                await clock.wait_for_timer(within_s=2.0)
                clock.advance(0.0 if sent == 1 else 2.0)
                await worker.until_arrived(sent)
            assert (samples, test.in_flight) == ([], 4)
            clock.advance(10.0)
            release.set()
            await running

    assert sorted(s.due_s for s in samples) == [0.0, 2.0, 4.0, 6.0]
    assert {s.left_s for s in samples} == {0.0}
    assert {s.due_s + s.ended_s for s in samples} == {16.0}
    assert (test.elapsed_s, test.in_flight) == (16.0, 0)


async def test_a_clock_that_is_behind_sends_what_is_due_and_says_how_late() -> None:
    clock = ManualClock()
    async with engine_and_worker() as (engine, _):
        running = asyncio.ensure_future(run(plan(engine, 3, rps=1.0), clock))
        with anyio.fail_after(GUARD_S):
            await clock.wait_for_timers()
            clock.advance(0.0)
            await clock.wait_for_timer(within_s=1.0)
            clock.advance(5.0)
            await clock.wait_for_timer(within_s=0.0)
            clock.advance(0.0)
            samples = await running

    assert sorted((s.due_s, s.left_s) for s in samples) == [(0.0, 0.0), (1.0, 4.0), (2.0, 3.0)]


async def test_at_a_concurrency_the_next_leaves_when_one_has_ended() -> None:
    clock, turn = ManualClock(), InTurn()
    async with engine_and_worker() as (engine, worker):
        worker.answer = turn.answer
        samples: list[Sample] = []
        closed = Plan(engine.target, "/generate", 4, concurrency=2)
        test = LoadTest(closed, InputData.for_test, clock=clock, on_sample=samples.append)
        running = asyncio.ensure_future(test.run())
        with anyio.fail_after(GUARD_S):
            for arrived in (2, 3, 4):
                await worker.until_arrived(arrived)
                assert (test.sent, test.in_flight) == (arrived, 2)
                clock.advance(1.0)
                turn.allowed.release()
            turn.allowed.release()
            await running

    assert sorted(s.due_s for s in samples) == [0.0, 0.0, 1.0, 2.0]
    assert {s.left_s for s in samples} == {0.0}
    assert sum(s.ended_s for s in samples) == 6.0


async def test_no_more_are_at_once_than_there_are() -> None:
    async with engine_and_worker() as (engine, _):
        samples = await run(Plan(engine.target, "/generate", 2, concurrency=50))

    assert len(samples) == 2


async def test_a_duration_ends_the_sending_and_lets_those_in_flight_finish() -> None:
    clock, turn = ManualClock(), InTurn()
    async with engine_and_worker() as (engine, worker):
        worker.answer = turn.answer
        lasting = Plan(engine.target, "/generate", None, concurrency=1, duration_s=10.0)
        running = asyncio.ensure_future(run(lasting, clock))
        with anyio.fail_after(GUARD_S):
            for arrived, then_s in ((1, 9.0), (2, 9.0)):
                await worker.until_arrived(arrived)
                clock.advance(then_s)
                turn.allowed.release()
            samples = await running

    assert [s.due_s for s in samples] == [0.0, 9.0]
    assert [s.result for s in samples] == [OK, OK]


async def test_a_rate_and_a_duration_make_a_number() -> None:
    async with engine_and_worker() as (engine, _):
        short = Plan(engine.target, "/generate", None, 1000.0, duration_s=0.0075)
        assert sorted(s.due_s for s in await run(short)) == [n / 1000 for n in range(8)]
        assert len(await run(Plan(engine.target, "/generate", 3, 1000.0, duration_s=0.0075))) == 3


@pytest.mark.parametrize(
    ("count", "rps", "options"),
    [(1, None, {}), (1, 1.0, {"concurrency": 1}), (None, 1.0, {}), (None, None, {"concurrency": 1})],
)
def test_a_plan_without_a_pace_or_an_end_is_refused(
    count: int | None, rps: float | None, options: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match="needed"):
        Plan(Target("http://engine", "e", "k"), "/", count, rps, concurrency=options.get("concurrency"))


async def test_requests_past_a_pools_usual_limit_are_in_flight_together() -> None:
    count = 130
    async with engine_and_worker() as (engine, worker):

        async def when_all_are_here(_request: web.Request) -> web.Response:
            await worker.until_arrived(count)
            return web.Response(text="done")

        worker.answer = when_all_are_here
        samples = await run(plan(engine, count, rps=100_000.0))

    assert [s.result for s in samples] == [OK] * count


async def test_each_request_is_routed_by_its_cost_and_brings_its_payload() -> None:
    async with engine_and_worker() as (engine, worker):
        samples = await run(plan(engine, 3))

    assert {asked["cost"] for asked in engine.asked} == {InputData.for_test().count_workload()}
    envelopes = [json.loads(body) for body in worker.bodies]
    assert sorted(e["auth_data"]["request_idx"] for e in envelopes) == [1, 2, 3]
    assert len({e["payload"]["prompt"] for e in envelopes}) == 3
    assert {s.worker for s in samples} == {engine.worker_url}


async def test_times_count_from_when_the_request_was_due() -> None:
    clock = ManualClock()
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(_request: web.Request) -> web.StreamResponse:
        asked.set()
        await go_on.wait()
        return web.Response(text="whole")

    async with engine_and_worker() as (engine, worker):
        worker.answer = slowly
        running = asyncio.ensure_future(run(plan(engine, 1), clock))
        with anyio.fail_after(GUARD_S):
            await clock.wait_for_timers()
            clock.advance(0.0)
            await asked.wait()
            clock.advance(4.0)
            go_on.set()
            (sample,) = await running

    assert (sample.routed_s, sample.first_byte_s, sample.ended_s) == (0.0, 4.0, 4.0)
    assert sample.excerpt == "whole"


class TickingClock(SystemClock):
    """Each look at it is a second after the last, and is noted."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.looked_at = asyncio.Event()

    def monotonic(self) -> float:
        self.looked_at.set()
        self.now_s += 1.0
        return self.now_s


async def test_the_first_byte_is_timed_when_it_comes_and_the_last_when_that_does() -> None:
    clock = TickingClock()
    first_timed_s: list[float] = []

    async def in_two_parts(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        clock.looked_at.clear()
        await response.write(b"first ")
        await clock.looked_at.wait()
        first_timed_s.append(clock.now_s)
        await response.write(b"last")
        return response

    async with engine_and_worker() as (engine, worker):
        worker.answer = in_two_parts
        (sample,) = await run(plan(engine, 1), clock)

    began_s = 1.0
    assert sample.first_byte_s == first_timed_s[0] - began_s
    assert sample.ended_s > first_timed_s[0] - began_s
    assert sample.excerpt == "first last"


class WatchedClock(ManualClock):
    """Notes that it was looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.looked_at = asyncio.Event()

    def monotonic(self) -> float:
        self.looked_at.set()
        return super().monotonic()


async def test_the_time_between_a_streams_chunks_is_told() -> None:
    clock = WatchedClock()

    async def in_three_chunks(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for chunk, then_s in ((b"one ", 2.0), (b"two ", 3.0), (b"three", 4.0)):
            clock.looked_at.clear()
            await response.write(chunk)
            await clock.looked_at.wait()
            clock.advance(then_s)
        return response

    async with engine_and_worker() as (engine, worker):
        worker.answer = in_three_chunks
        (sample,) = await run(Plan(engine.target, "/generate", 1, concurrency=1), clock)

    assert (sample.first_byte_s, list(sample.gaps_s), sample.ended_s) == (0.0, [2.0, 3.0], 9.0)
    assert sample.excerpt == "one two three"


async def test_an_answer_of_a_known_length_is_one_however_it_arrives() -> None:
    async def whole(_request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 1_000_000)

    async with engine_and_worker() as (engine, worker):
        worker.answer = whole
        (sample,) = await run(plan(engine, 1))

    assert list(sample.gaps_s) == []


async def refuse(_request: web.Request) -> web.Response:
    return web.json_response({"error": "too busy"}, status=429)


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (refuse, "HTTP 429"),
        (cut, "answer cut short"),
        (silent, "closed without an answer"),
    ],
)
async def test_failures_of_the_worker_are_told_by_kind(answer: Answer, result: str) -> None:
    async with engine_and_worker() as (engine, worker):
        worker.answer = answer
        samples = await run(plan(engine, 2))

    assert [s.result for s in samples] == [result] * 2


async def test_what_a_refusal_says_is_kept() -> None:
    async with engine_and_worker() as (engine, worker):
        worker.answer = refuse
        (sample,) = await run(plan(engine, 1))

    assert json.loads(sample.excerpt) == {"error": "too busy"}


async def test_a_long_answer_is_read_whole_and_kept_in_part() -> None:
    async def long(_request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 3_000_000)

    async with engine_and_worker() as (engine, worker):
        worker.answer = long
        (sample,) = await run(plan(engine, 1))

    assert (sample.result, sample.excerpt) == (OK, "x" * 200)


async def test_a_request_that_takes_too_long_is_given_up() -> None:
    clock = ManualClock()
    async with engine_and_worker() as (engine, worker):
        worker.answer = never
        closed = Plan(engine.target, "/generate", 2, timeout_s=30.0, concurrency=2)
        running = asyncio.ensure_future(run(closed, clock))
        with anyio.fail_after(GUARD_S):
            await worker.until_arrived(2)
            clock.advance(30.0)
            samples = await running

    assert [(s.result, s.ended_s) for s in samples] == [("timed out", 30.0)] * 2


async def test_an_engine_that_does_not_answer_is_told() -> None:
    clock = ManualClock()
    async with engine_and_worker() as (engine, _):
        asked = asyncio.Event()

        async def say_nothing(request: web.Request) -> web.StreamResponse:
            asked.set()
            return await never(request)

        engine.answer = say_nothing
        running = asyncio.ensure_future(run(Plan(engine.target, "/generate", 1, concurrency=1), clock))
        with anyio.fail_after(GUARD_S):
            await asked.wait()
            clock.advance(600.0)
            (sample,) = await running

    assert sample.result == "engine: timed out"


async def test_the_states_of_workers_are_told_as_long_as_none_is_ready() -> None:
    clock = ManualClock()
    async with engine_and_worker() as (engine, _):
        engine.not_ready = 1
        test = LoadTest(Plan(engine.target, "/generate", 1, concurrency=1), InputData.for_test, clock=clock)
        running = asyncio.ensure_future(test.run())
        with anyio.fail_after(GUARD_S):
            await clock.wait_for_timer(within_s=1.0)
            assert test.states == {"loading": 1}
            clock.advance(1.0)
            await running

    assert (test.states, test.tally.ok) == (None, 1)


async def test_a_worker_that_is_not_there_is_told() -> None:
    async with engine_and_worker() as (engine, worker):
        await worker.server.close()
        (sample,) = await run(plan(engine, 1))

    assert sample.result == "cannot connect"


async def test_an_engine_that_is_not_there_is_told() -> None:
    async with engine_and_worker() as (engine, _):
        test_plan = plan(engine, 1)
    (sample,) = await run(test_plan)

    assert (sample.result, sample.worker) == ("engine: cannot connect", "")


async def test_an_engine_that_refuses_is_told() -> None:
    async with engine_and_worker() as (engine, _):

        async def unknown_key(_request: web.Request) -> web.Response:
            return web.Response(status=401, text="who are you?")

        engine.answer = unknown_key
        (sample,) = await run(plan(engine, 1))

    assert sample.result == "engine HTTP 401"
    assert "who are you?" in sample.excerpt


async def test_no_worker_in_time_is_told() -> None:
    async with engine_and_worker() as (engine, _):
        engine.not_ready = 99
        (sample,) = await run(plan(engine, 1, timeout_s=0.5))

    assert sample.result == "no worker"


@dataclass
class Wrapped:
    """A payload whose JSON for the model server is not what clients send, and that counts nothing."""

    input: dict[str, Any]
    id: str = field(init=False, default="the worker's own")

    @classmethod
    def for_test(cls) -> Wrapped:
        return cls({"a": 1})

    def generate_payload_json(self) -> dict[str, Any]:
        return self.input


class Plain:
    """A payload class that is no dataclass."""

    def generate_payload_json(self) -> dict[str, Any]:
        return {"plain": True}


def test_a_client_sends_what_from_json_msg_reads() -> None:
    assert client_json(Wrapped.for_test()) == {"input": {"a": 1}}
    assert client_json(Plain()) == {"plain": True}
    assert client_json({"raw": 1}) == {"raw": 1}


def test_a_class_makes_payloads_anew_and_an_instance_is_sent_as_it_is() -> None:
    one = Wrapped({"b": 2})

    assert payload_maker(one)() is one
    assert payload_maker(Wrapped)() == Wrapped({"a": 1})
    assert payload_maker(Wrapped)() is not payload_maker(Wrapped)()


async def test_a_payload_that_counts_nothing_costs_what_the_worker_counts() -> None:
    async with engine_and_worker() as (engine, _):
        test = LoadTest(plan(engine, 1), Wrapped.for_test)
        await test.run()

    assert engine.asked[0]["cost"] == 100.0
