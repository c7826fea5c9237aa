from __future__ import annotations

import asyncio
import json
from array import array

import anyio

from lib.client import Target
from lib.tools.load_report import document, headline, lines
from lib.tools.load_tally import OK, Sample
from lib.tools.load_test import LoadTest, Plan
from tests.lib.tools.stand_ins import Engine, InTurn, Worker
from tests.manual_clock import ManualClock

TARGET = Target("http://engine", "small", "secret-key")


def counted(plan: Plan | None = None) -> LoadTest:
    """Three requests have ended, none of them on a clock."""
    test = LoadTest(plan or Plan(TARGET, "/generate", 4, 2.0), dict)
    test.sent = 4
    a, b = "http://a", "http://b"
    gaps_s = array("d", [0.25, 0.75])
    for sample in (
        Sample(0.0, 0.5, 5.0, a, OK, "fine", 0.125, 0.25, 1.0, gaps_s),
        Sample(0.5, 0.0, 5.0, b, OK, "well", 0.125, 0.5, 3.0),
        Sample(1.0, 0.0, 5.0, b, "HTTP 429", '{"error":\n "busy"}', 0.125, 0.25, 0.25),
    ):
        test.tally.add(sample)
    return test


def test_people_read_counts_times_and_workers() -> None:
    assert lines(counted()) == [
        "3 of 4 requests in 0.00 s: 0.00 ok/s, 0.0 workload/s",
        "  ok                               2  fine",
        '  HTTP 429                         1  {"error": "busy"}',
        "  seconds                          p50       p90       p95       p99       max",
        "  routing                        0.125     0.125     0.125     0.125     0.125",
        "  first byte                     0.250     0.500     0.500     0.500     0.500",
        "  between chunks                 0.250     0.750     0.750     0.750     0.750",
        "  latency                        1.000     3.000     3.000     3.000     3.000",
        "  late                           0.000     0.500     0.500     0.500     0.500",
        "  workers used                     2",
        "  http://a                         1",
        "  http://b                         2  1 failed: HTTP 429 (1)",
    ]


def test_a_summary_of_nothing_can_be_read() -> None:
    nothing = LoadTest(Plan(TARGET, "/generate", 3, 1.0), dict)

    assert lines(nothing)[0].startswith("0 of 3 requests in 0.00 s: 0.00 ok/s")
    assert json.loads(json.dumps(document(nothing)))["seconds"] == {}


def test_an_interruption_is_told_with_what_is_missing() -> None:
    assert headline(counted(), interrupted=True).startswith(
        "interrupted: 3 of 4 requests in 0.00 s (1 more without an answer)"
    )


def test_nothing_is_late_where_no_time_was_set() -> None:
    closed = counted(Plan(TARGET, "/generate", 4, concurrency=2))

    assert not any(line.startswith("  late ") for line in lines(closed))
    assert "late" not in document(closed)["seconds"]


def test_of_many_requests_the_error_is_told() -> None:
    test = counted()
    for _ in range(10_000):
        test.tally.add(Sample(0.0, 0.0, 5.0, "http://a", OK, "", 0.1, 0.2, 0.3))

    assert "  (of so many requests, percentiles are told to within 0.5%)" in lines(test)
    assert 0 < document(test)["seconds"]["latency"]["error"] < 0.005


def test_programs_read_the_same() -> None:
    told = document(counted(), interrupted=True)

    assert json.loads(json.dumps(told)) == told
    assert told["plan"] == {
        "engine": "http://engine",
        "endpoint": "small",
        "route": "/generate",
        "requests": 4,
        "rps": 2.0,
        "concurrency": None,
        "duration_s": None,
        "timeout_s": 600.0,
    }
    counts = {name: told[name] for name in ("interrupted", "sent", "ended", "ok", "failed")}
    assert counts == {"interrupted": True, "sent": 4, "ended": 3, "ok": 2, "failed": 1}
    assert told["seconds"]["latency"] == {
        "count": 2,
        "mean": 2.0,
        "p50": 1.0,
        "p90": 3.0,
        "p95": 3.0,
        "p99": 3.0,
        "max": 3.0,
        "error": 0.0,
    }
    assert set(told["seconds"]) == {"routing", "first_byte", "between_chunks", "latency", "late"}
    assert told["errors"] == [{"kind": "HTTP 429", "count": 1, "excerpt": '{"error":\n "busy"}'}]
    assert told["workers"] == [
        {"url": "http://a", "requests": 1, "errors": {}},
        {"url": "http://b", "requests": 2, "errors": {"HTTP 429": 1}},
    ]
    slices = told["timeline"]["slices"]
    assert [(s["ok"], s["failed"]) for s in slices] == [(0, 0), (0, 0), (1, 1), *[(0, 0)] * 4, (1, 0)]
    assert slices[7]["latency_s"]["p50"] == 3.0


def test_the_key_is_told_to_nobody() -> None:
    test = counted()

    assert TARGET.api_key not in json.dumps(document(test)) + "\n".join(lines(test))


async def test_rates_are_over_the_time_until_the_last_answer() -> None:
    clock, turn, worker = ManualClock(), InTurn(), Worker()
    worker.answer = turn.answer
    async with worker.server:
        engine = Engine(worker.url)
        async with engine.server:
            plan = Plan(engine.target, "/generate", 2, concurrency=1)
            test = LoadTest(plan, lambda: {"any": "payload"}, clock=clock)
            running = asyncio.ensure_future(test.run())
            with anyio.fail_after(30):
                for arrived in (1, 2):
                    await worker.until_arrived(arrived)
                    clock.advance(2.0)
                    turn.allowed.release()
                await running
    clock.advance(100.0)

    assert headline(test) == "2 of 2 requests in 4.00 s: 0.50 ok/s, 50.0 workload/s"
