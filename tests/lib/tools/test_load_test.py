from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from aiohttp import web

from lib.clock import SystemClock
from lib.tools.load_test import (
    OK,
    LoadTest,
    Plan,
    Sample,
    Summary,
    client_json,
    payload_maker,
    run_and_print,
)
from tests.lib.tools.stand_ins import Answer, Engine, Worker, cut, never, silent
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


async def run(test_plan: Plan) -> list[Sample]:
    test = LoadTest(test_plan, InputData.for_test)
    with anyio.fail_after(GUARD_S):
        await test.run()
    return test.samples


async def test_requests_leave_on_time_however_slow_the_answers_are() -> None:
    clock = ManualClock()
    async with engine_and_worker() as (engine, worker):
        release = asyncio.Event()

        async def when_released(_request: web.Request) -> web.Response:
            await release.wait()
            return web.Response(text="done")

        worker.answer = when_released
        test = LoadTest(plan(engine, 4, rps=0.5), InputData.for_test, clock=clock)
        running = asyncio.ensure_future(test.run())
        with anyio.fail_after(GUARD_S):
            for sent in range(1, 5):
                await clock.wait_for_timers()
                clock.advance(0.0 if sent == 1 else 2.0)
                await worker.until_arrived(sent)
            assert test.samples == []
            clock.advance(10.0)
            release.set()
            await running

    assert sorted(s.due_s for s in test.samples) == [0.0, 2.0, 4.0, 6.0]
    assert {s.left_s for s in test.samples} == {0.0}
    assert {s.due_s + s.ended_s for s in test.samples} == {16.0}


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
        test = LoadTest(plan(engine, 1), InputData.for_test, clock=clock)
        running = asyncio.ensure_future(test.run())
        with anyio.fail_after(GUARD_S):
            await clock.wait_for_timers()
            clock.advance(0.0)
            await asked.wait()
            clock.advance(4.0)
            go_on.set()
            await running

    (sample,) = test.samples
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
        test = LoadTest(plan(engine, 1), InputData.for_test, clock=clock)
        with anyio.fail_after(GUARD_S):
            await test.run()

    (sample,) = test.samples
    began_s = 1.0
    assert sample.first_byte_s == first_timed_s[0] - began_s
    assert sample.ended_s > first_timed_s[0] - began_s
    assert sample.excerpt == "first last"


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
    async with engine_and_worker() as (engine, worker):
        worker.answer = never
        samples = await run(plan(engine, 2, timeout_s=0.2))

    assert [s.result for s in samples] == ["timed out"] * 2


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


def served(number: int, worker: str = "http://a") -> Sample:
    """Due at `number` / 10 s, its last byte `number` s later."""
    return Sample(
        number / 10, 0.0, workload=5.0, worker=worker, routed_s=0.1, first_byte_s=0.2, ended_s=float(number)
    )


def test_percentiles_are_times_that_occurred() -> None:
    times = Summary.of([served(n) for n in range(100, 0, -1)], 100).times["last byte"]

    assert times == {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "max": 100.0}
    assert set(Summary.of([served(7)], 1).times["last byte"].values()) == {7.0}


def test_only_successes_count_as_throughput_and_latency() -> None:
    failed = Sample(0.0, 0.0, 5.0, "http://b", "HTTP 429", '{"error":\n "busy"}', 0.1, 0.2, 0.3)
    summary = Summary.of([served(10), served(20, "http://b"), failed], planned=4)

    assert (summary.planned, summary.ended, summary.ok) == (4, 3, 2)
    assert summary.results == {OK: 2, "HTTP 429": 1}
    assert summary.workers == {"http://a": 1, "http://b": 2}
    assert summary.elapsed_s == 22.0
    assert summary.ok_per_s == pytest.approx(2 / 22)  # pyright: ignore[reportUnknownMemberType]
    assert summary.workload_per_s == pytest.approx(10 / 22)  # pyright: ignore[reportUnknownMemberType]
    assert summary.times["last byte"]["p50"] == 10.0
    text = "\n".join(summary.lines())
    assert text.startswith("3 of 4 requests in 22.00 s")
    assert '{"error": "busy"}' in text


def test_a_summary_of_nothing_can_be_read() -> None:
    assert Summary.of([], 3).lines()[0].startswith("0 of 3 requests in 0.00 s: 0.00 ok/s")


@dataclass
class Wrapped:
    """A payload whose JSON for the model server is not what clients send, and that counts nothing."""

    input: dict[str, Any]

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


async def test_the_exit_status_tells_whether_anything_succeeded(capsys: pytest.CaptureFixture[str]) -> None:
    async with engine_and_worker() as (engine, worker):
        assert await asyncio.to_thread(run_and_print, plan(engine, 2), InputData) == 0
        worker.answer = refuse
        assert await asyncio.to_thread(run_and_print, plan(engine, 1), InputData.for_test()) == 1

    printed = capsys.readouterr().out
    assert "2 of 2 requests" in printed
    assert "HTTP 429" in printed
    assert engine.worker_url in printed
