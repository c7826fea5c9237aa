from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from aiohttp import web

from lib.client import Target
from lib.fields.client_json import client_json
from lib.runtime.clock import Clock, SystemClock
from lib.tools.load_tally import OK, Sample
from lib.tools.load_test import LoadPlan, LoadTest, payload_maker
from tests.guard import GUARD_S
from tests.lib.tools.fakes import Answer, FakeEngine, OneByOne, cut, engine_and_worker, never, silent
from tests.manual_clock import ManualClock
from workers.hello_world.data_types import InputData


def plan_at_rate(engine: FakeEngine, count: int, rps: float = 1000.0, timeout_s: float = 30.0) -> LoadPlan:
    return LoadPlan(engine.target, "/generate", count, rps, timeout_s)


async def run(plan: LoadPlan, clock: Clock | None = None) -> list[Sample]:
    samples: list[Sample] = []
    test = LoadTest(plan, InputData.for_test, clock=clock, on_sample=samples.append)
    with anyio.fail_after(GUARD_S):
        await test.run()
    assert test.sent == test.tally.ended == len(samples)
    return samples


async def test_at_a_rate_requests_are_sent_on_time_however_slow_the_answers_are() -> None:
    clock = ManualClock()
    async with engine_and_worker() as (engine, worker):
        release = asyncio.Event()

        async def when_released(_request: web.Request) -> web.Response:
            await release.wait()
            return web.Response(text="done")

        worker.answer = when_released
        samples: list[Sample] = []
        test = LoadTest(
            plan_at_rate(engine, 4, rps=0.5), InputData.for_test, clock=clock, on_sample=samples.append
        )
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
    assert {s.late_s for s in samples} == {0.0}
    assert {s.due_s + s.ended_s for s in samples} == {16.0}
    assert (test.elapsed_s, test.in_flight) == (16.0, 0)


async def test_requests_that_are_overdue_are_sent_at_once_and_counted_as_late() -> None:
    clock = ManualClock()
    async with engine_and_worker() as (engine, _):
        running = asyncio.ensure_future(run(plan_at_rate(engine, 3, rps=1.0), clock))
        with anyio.fail_after(GUARD_S):
            await clock.wait_for_timers()
            clock.advance(0.0)
            await clock.wait_for_timer(within_s=1.0)
            clock.advance(5.0)
            await clock.wait_for_timer(within_s=0.0)
            clock.advance(0.0)
            samples = await running

    assert sorted((s.due_s, s.late_s) for s in samples) == [(0.0, 0.0), (1.0, 4.0), (2.0, 3.0)]


async def test_at_a_concurrency_the_next_request_is_sent_when_one_has_ended() -> None:
    clock, answers = ManualClock(), OneByOne()
    async with engine_and_worker() as (engine, worker):
        worker.answer = answers.answer
        samples: list[Sample] = []
        closed = LoadPlan(engine.target, "/generate", 4, concurrency=2)
        test = LoadTest(closed, InputData.for_test, clock=clock, on_sample=samples.append)
        running = asyncio.ensure_future(test.run())
        with anyio.fail_after(GUARD_S):
            for arrived in (2, 3, 4):
                await worker.until_arrived(arrived)
                assert (test.sent, test.in_flight) == (arrived, 2)
                clock.advance(1.0)
                answers.allowed.release()
            answers.allowed.release()
            await running

    assert sorted(s.due_s for s in samples) == [0.0, 0.0, 1.0, 2.0]
    assert {s.late_s for s in samples} == {0.0}
    assert sum(s.ended_s for s in samples) == 6.0


async def test_a_concurrency_above_the_count_sends_only_the_count() -> None:
    async with engine_and_worker() as (engine, _):
        samples = await run(LoadPlan(engine.target, "/generate", 2, concurrency=50))

    assert len(samples) == 2


async def test_after_the_duration_nothing_is_sent_and_requests_in_flight_finish() -> None:
    clock, answers = ManualClock(), OneByOne()
    async with engine_and_worker() as (engine, worker):
        worker.answer = answers.answer
        lasting = LoadPlan(engine.target, "/generate", None, concurrency=1, duration_s=10.0)
        running = asyncio.ensure_future(run(lasting, clock))
        with anyio.fail_after(GUARD_S):
            for arrived, then_s in ((1, 9.0), (2, 9.0)):
                await worker.until_arrived(arrived)
                clock.advance(then_s)
                answers.allowed.release()
            samples = await running

    assert [s.due_s for s in samples] == [0.0, 9.0]
    assert [s.result for s in samples] == [OK, OK]


async def test_rate_and_duration_determine_the_number_of_requests() -> None:
    async with engine_and_worker() as (engine, _):
        short = LoadPlan(engine.target, "/generate", None, 1000.0, duration_s=0.0075)
        assert sorted(s.due_s for s in await run(short)) == [n / 1000 for n in range(8)]
        assert len(await run(LoadPlan(engine.target, "/generate", 3, 1000.0, duration_s=0.0075))) == 3


@pytest.mark.parametrize(
    ("count", "rps", "options"),
    [(1, None, {}), (1, 1.0, {"concurrency": 1}), (None, 1.0, {}), (None, None, {"concurrency": 1})],
)
def test_a_plan_without_rate_or_concurrency_or_end_is_refused(
    count: int | None, rps: float | None, options: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match="needed"):
        LoadPlan(Target("http://engine", "e", "k"), "/", count, rps, concurrency=options.get("concurrency"))


async def test_more_requests_than_a_pools_default_limit_can_be_in_flight() -> None:
    count = 130
    async with engine_and_worker() as (engine, worker):

        async def when_all_are_here(_request: web.Request) -> web.Response:
            await worker.until_arrived(count)
            return web.Response(text="done")

        worker.answer = when_all_are_here
        samples = await run(plan_at_rate(engine, count, rps=100_000.0))

    assert [s.result for s in samples] == [OK] * count


async def test_each_request_is_routed_with_its_cost_and_sends_its_payload() -> None:
    async with engine_and_worker() as (engine, worker):
        samples = await run(plan_at_rate(engine, 3))

    assert {request["cost"] for request in engine.requests} == {InputData.for_test().count_workload()}
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
        running = asyncio.ensure_future(run(plan_at_rate(engine, 1), clock))
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
    """Advances by a second each time it is read; `read` is set then."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.read = asyncio.Event()

    def monotonic(self) -> float:
        self.read.set()
        self.now_s += 1.0
        return self.now_s


async def test_first_and_last_byte_are_timed_when_they_arrive() -> None:
    clock = TickingClock()
    first_timed_s: list[float] = []

    async def in_two_parts(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        clock.read.clear()
        await response.write(b"first ")
        await clock.read.wait()
        first_timed_s.append(clock.now_s)
        await response.write(b"last")
        return response

    async with engine_and_worker() as (engine, worker):
        worker.answer = in_two_parts
        (sample,) = await run(plan_at_rate(engine, 1), clock)

    began_s = 1.0
    assert sample.first_byte_s == first_timed_s[0] - began_s
    assert sample.ended_s > first_timed_s[0] - began_s
    assert sample.excerpt == "first last"


class WatchedClock(ManualClock):
    """Sets `read` when it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.read = asyncio.Event()

    def monotonic(self) -> float:
        self.read.set()
        return super().monotonic()


async def test_the_times_between_the_chunks_of_a_stream_are_recorded() -> None:
    clock = WatchedClock()

    async def in_three_chunks(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for chunk, then_s in ((b"one ", 2.0), (b"two ", 3.0), (b"three", 4.0)):
            clock.read.clear()
            await response.write(chunk)
            await clock.read.wait()
            clock.advance(then_s)
        return response

    async with engine_and_worker() as (engine, worker):
        worker.answer = in_three_chunks
        (sample,) = await run(LoadPlan(engine.target, "/generate", 1, concurrency=1), clock)

    assert (sample.first_byte_s, list(sample.gaps_s), sample.ended_s) == (0.0, [2.0, 3.0], 9.0)
    assert sample.excerpt == "one two three"


async def test_an_answer_with_a_content_length_has_no_times_between_chunks() -> None:
    async def whole(_request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 1_000_000)

    async with engine_and_worker() as (engine, worker):
        worker.answer = whole
        (sample,) = await run(plan_at_rate(engine, 1))

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
async def test_failures_of_the_worker_are_recorded_by_kind(answer: Answer, result: str) -> None:
    async with engine_and_worker() as (engine, worker):
        worker.answer = answer
        samples = await run(plan_at_rate(engine, 2))

    assert [s.result for s in samples] == [result] * 2


async def test_the_text_of_a_refusal_is_stored() -> None:
    async with engine_and_worker() as (engine, worker):
        worker.answer = refuse
        (sample,) = await run(plan_at_rate(engine, 1))

    assert json.loads(sample.excerpt) == {"error": "too busy"}


async def test_of_a_long_answer_only_the_beginning_is_stored() -> None:
    async def long(_request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 3_000_000)

    async with engine_and_worker() as (engine, worker):
        worker.answer = long
        (sample,) = await run(plan_at_rate(engine, 1))

    assert (sample.result, sample.excerpt) == (OK, "x" * 200)


async def test_a_request_times_out() -> None:
    clock = ManualClock()
    async with engine_and_worker() as (engine, worker):
        worker.answer = never
        closed = LoadPlan(engine.target, "/generate", 2, timeout_s=30.0, concurrency=2)
        running = asyncio.ensure_future(run(closed, clock))
        with anyio.fail_after(GUARD_S):
            await worker.until_arrived(2)
            clock.advance(30.0)
            samples = await running

    assert [(s.result, s.ended_s) for s in samples] == [("timed out", 30.0)] * 2


async def test_an_engine_that_does_not_answer_times_out() -> None:
    clock = ManualClock()
    async with engine_and_worker() as (engine, _):
        asked = asyncio.Event()

        async def say_nothing(request: web.Request) -> web.StreamResponse:
            asked.set()
            return await never(request)

        engine.answer = say_nothing
        running = asyncio.ensure_future(run(LoadPlan(engine.target, "/generate", 1, concurrency=1), clock))
        with anyio.fail_after(GUARD_S):
            await asked.wait()
            clock.advance(600.0)
            (sample,) = await running

    assert sample.result == "engine: timed out"


async def test_the_states_of_workers_are_available_while_none_is_ready() -> None:
    clock = ManualClock()
    async with engine_and_worker() as (engine, _):
        engine.not_ready = 1
        test = LoadTest(
            LoadPlan(engine.target, "/generate", 1, concurrency=1), InputData.for_test, clock=clock
        )
        running = asyncio.ensure_future(test.run())
        with anyio.fail_after(GUARD_S):
            await clock.wait_for_timer(within_s=1.0)
            assert test.states == {"loading": 1}
            clock.advance(1.0)
            await running

    assert (test.states, test.tally.ok) == (None, 1)


async def test_a_worker_that_does_not_listen_is_reported() -> None:
    async with engine_and_worker() as (engine, worker):
        await worker.server.close()
        (sample,) = await run(plan_at_rate(engine, 1))

    assert sample.result == "cannot connect"


async def test_an_engine_that_does_not_listen_is_reported() -> None:
    async with engine_and_worker() as (engine, _):
        plan = plan_at_rate(engine, 1)
    (sample,) = await run(plan)

    assert (sample.result, sample.worker) == ("engine: cannot connect", "")


async def test_the_status_of_an_engine_that_refuses_is_reported() -> None:
    async with engine_and_worker() as (engine, _):

        async def unknown_key(_request: web.Request) -> web.Response:
            return web.Response(status=401, text="who are you?")

        engine.answer = unknown_key
        (sample,) = await run(plan_at_rate(engine, 1))

    assert sample.result == "engine HTTP 401"
    assert "who are you?" in sample.excerpt


async def test_no_ready_worker_in_time_is_reported() -> None:
    async with engine_and_worker() as (engine, _):
        engine.not_ready = 99
        (sample,) = await run(plan_at_rate(engine, 1, timeout_s=0.5))

    assert sample.result == "no worker"


@dataclass
class Wrapped:
    """A payload whose JSON for the model server differs from what clients send, without `count_workload`."""

    input: dict[str, Any]
    id: str = field(init=False, default="the worker's own")

    @classmethod
    def for_test(cls) -> Wrapped:
        return cls({"a": 1})

    def generate_payload_json(self) -> dict[str, Any]:
        return self.input


class Plain:
    """A payload class that is not a dataclass."""

    def generate_payload_json(self) -> dict[str, Any]:
        return {"plain": True}


def test_the_client_sends_the_fields_that_from_json_msg_reads() -> None:
    assert client_json(Wrapped.for_test()) == {"input": {"a": 1}}
    assert client_json(Plain()) == {"plain": True}
    assert client_json({"raw": 1}) == {"raw": 1}


def test_a_class_makes_a_new_payload_each_time_and_an_instance_is_reused() -> None:
    one = Wrapped({"b": 2})

    assert payload_maker(one)() is one
    assert payload_maker(Wrapped)() == Wrapped({"a": 1})
    assert payload_maker(Wrapped)() is not payload_maker(Wrapped)()


async def test_a_payload_without_count_workload_costs_the_default_workload() -> None:
    async with engine_and_worker() as (engine, _):
        test = LoadTest(plan_at_rate(engine, 1), Wrapped.for_test)
        await test.run()

    assert engine.requests[0]["cost"] == 100.0
