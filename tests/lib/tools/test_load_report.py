from __future__ import annotations

import asyncio
import json
from array import array

import anyio

from lib.client import Target
from lib.tools.load_report import headline, summary_json, summary_lines
from lib.tools.load_tally import OK, Sample
from lib.tools.load_test import LoadPlan, LoadTest
from tests.guard import GUARD_S
from tests.lib.tools.fakes import OneByOne, engine_and_worker
from tests.manual_clock import ManualClock

TARGET = Target("http://engine", "small", "secret-key")


def finished_test(plan: LoadPlan | None = None) -> LoadTest:
    """A load test of which three requests have ended, without a clock."""
    test = LoadTest(plan or LoadPlan(TARGET, "/generate", 4, 2.0), dict)
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


def test_the_text_has_counts_times_and_workers() -> None:
    assert summary_lines(finished_test()) == [
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


def test_a_test_without_requests_has_a_summary() -> None:
    nothing = LoadTest(LoadPlan(TARGET, "/generate", 3, 1.0), dict)

    assert summary_lines(nothing)[0].startswith("0 of 3 requests in 0.00 s: 0.00 ok/s")
    assert json.loads(json.dumps(summary_json(nothing)))["seconds"] == {}


def test_the_headline_of_an_interrupted_test_counts_requests_in_flight() -> None:
    assert headline(finished_test(), interrupted=True).startswith(
        "interrupted: 3 of 4 requests in 0.00 s (1 more were in flight)"
    )


def test_lateness_is_reported_at_a_rate_only() -> None:
    closed = finished_test(LoadPlan(TARGET, "/generate", 4, concurrency=2))

    assert not any(line.startswith("  late ") for line in summary_lines(closed))
    assert "late" not in summary_json(closed)["seconds"]


def test_above_10000_values_the_error_of_percentiles_is_reported() -> None:
    test = finished_test()
    for _ in range(10_000):
        test.tally.add(Sample(0.0, 0.0, 5.0, "http://a", OK, "", 0.1, 0.2, 0.3))

    assert "  (above 10,000 values, percentiles are approximate, to within 0.5%)" in summary_lines(test)
    assert 0 < summary_json(test)["seconds"]["latency"]["error"] < 0.005


def test_the_json_has_the_same_figures() -> None:
    summary = summary_json(finished_test(), interrupted=True)

    assert json.loads(json.dumps(summary)) == summary
    assert summary["plan"] == {
        "engine": "http://engine",
        "endpoint": "small",
        "route": "/generate",
        "requests": 4,
        "rps": 2.0,
        "concurrency": None,
        "duration_s": None,
        "timeout_s": 600.0,
    }
    counts = {name: summary[name] for name in ("interrupted", "sent", "ended", "ok", "failed")}
    assert counts == {"interrupted": True, "sent": 4, "ended": 3, "ok": 2, "failed": 1}
    assert summary["seconds"]["latency"] == {
        "count": 2,
        "mean": 2.0,
        "p50": 1.0,
        "p90": 3.0,
        "p95": 3.0,
        "p99": 3.0,
        "max": 3.0,
        "error": 0.0,
    }
    assert set(summary["seconds"]) == {"routing", "first_byte", "between_chunks", "latency", "late"}
    assert summary["errors"] == [{"kind": "HTTP 429", "count": 1, "excerpt": '{"error":\n "busy"}'}]
    assert summary["workers"] == [
        {"url": "http://a", "requests": 1, "errors": {}},
        {"url": "http://b", "requests": 2, "errors": {"HTTP 429": 1}},
    ]
    slices = summary["timeline"]["slices"]
    assert [(s["ok"], s["failed"]) for s in slices] == [(0, 0), (0, 0), (1, 1), *[(0, 0)] * 4, (1, 0)]
    assert slices[7]["latency_s"]["p50"] == 3.0


def test_the_key_is_in_no_summary() -> None:
    test = finished_test()

    assert TARGET.api_key not in json.dumps(summary_json(test)) + "\n".join(summary_lines(test))


async def test_throughput_is_over_the_time_until_the_last_answer() -> None:
    clock, answers = ManualClock(), OneByOne()
    async with engine_and_worker() as (engine, worker):
        worker.answer = answers.answer
        plan = LoadPlan(engine.target, "/generate", 2, concurrency=1)
        test = LoadTest(plan, lambda: {"any": "payload"}, clock=clock)
        running = asyncio.ensure_future(test.run())
        with anyio.fail_after(GUARD_S):
            for arrived in (1, 2):
                await worker.until_arrived(arrived)
                clock.advance(2.0)
                answers.allowed.release()
            await running
    clock.advance(100.0)

    assert headline(test) == "2 of 2 requests in 4.00 s: 0.50 ok/s, 50.0 workload/s"
