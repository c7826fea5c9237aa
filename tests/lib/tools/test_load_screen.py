from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest
from rich.console import Console

from lib.client import Target
from lib.tools.load_screen import progress, progress_line, progress_table, show_progress
from lib.tools.load_tally import OK, Sample
from lib.tools.load_test import LoadPlan, LoadTest
from tests.guard import GUARD_S
from tests.lib.tools.fakes import FakeWorker, OneByOne, engine_and_worker
from tests.manual_clock import ManualClock

TARGET = Target("http://engine", "small", "key")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(test: LoadTest) -> str:
    out = io.StringIO()
    Console(file=out, width=100).print(progress_table(test))
    return out.getvalue()


def load_test(count: int = 100) -> LoadTest:
    return LoadTest(LoadPlan(TARGET, "/generate", count, 10.0), dict)


def test_the_table_has_counts_times_failures_and_workers() -> None:
    test = load_test(4)
    test.sent = 4
    test.tally.add(Sample(0.0, 0.0, 5.0, "http://a:1", OK, "fine", 0.125, 0.25, 1.0))
    test.tally.add(Sample(0.0, 0.0, 5.0, "http://b:2", "HTTP 429", "[busy]\n now", 0.125, 0.25, 1.0))
    rows = [" ".join(row.split()) for row in drawn(test).splitlines()]

    assert rows[0].endswith("50% 0:00 left")
    assert rows[1] == "1 ok 1 failed 2 in flight 0.00 ok/s 0.0 workload/s"
    assert "seconds p50 p90 p95 p99 max" in rows
    assert "latency 1.000 1.000 1.000 1.000 1.000" in rows
    assert "HTTP 429 1 [busy] now" in rows
    assert rows[-2:] == ["http://a:1 1", "http://b:2 1 1 failed: HTTP 429 (1)"]


def test_before_the_first_answer_the_table_shows_the_workers_states() -> None:
    test = load_test()
    test.states = {"loading": 2}

    assert "no worker is ready: 2 loading" in drawn(test)
    assert progress_line(test).endswith("; no worker is ready: 2 loading")


def test_a_long_list_is_shortened_with_a_count_of_the_rest() -> None:
    test = load_test()
    for number in range(9):
        test.tally.add(Sample(0.0, 0.0, 5.0, f"http://worker-{number}", f"HTTP 50{number}"))
    text = drawn(test)

    assert "and 5 more" in text
    assert "and 3 more" in text


@asynccontextmanager
async def running(
    clock: ManualClock, count: int | None, duration_s: float | None
) -> AsyncGenerator[tuple[LoadTest, FakeWorker, OneByOne], None]:
    """Run a load test with one request in flight; requests are answered one by one."""
    answers = OneByOne()
    async with engine_and_worker() as (engine, worker), anyio.create_task_group() as group:
        worker.answer = answers.answer
        plan = LoadPlan(engine.target, "/generate", count, concurrency=1, duration_s=duration_s)
        test = LoadTest(plan, lambda: {"any": "payload"}, clock=clock)
        group.start_soon(test.run)
        with anyio.fail_after(GUARD_S):
            yield test, worker, answers
        group.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("count", "duration_s", "done", "left_s"),
    [(4, None, 0.25, 9.0), (None, 12.0, 0.25, 9.0), (4, 5.0, 0.6, 2.0), (100, 3.0, 1.0, 0.0)],
)
async def test_progress_and_time_left_follow_the_plan(
    count: int | None, duration_s: float | None, done: float, left_s: float
) -> None:
    clock = ManualClock()
    async with running(clock, count, duration_s) as (test, worker, answers):
        await worker.until_arrived(1)
        clock.advance(2.0)
        answers.allowed.release()
        await worker.until_arrived(2)
        clock.advance(1.0)

        assert progress(test) == (done, left_s)


async def test_before_the_first_answer_the_time_left_is_unknown() -> None:
    async with running(ManualClock(), 4, None) as (test, worker, _):
        await worker.until_arrived(1)

        assert progress(test) == (0.0, None)


@pytest.mark.parametrize("out_cls", [io.StringIO, Terminal])
async def test_without_a_terminal_a_line_is_printed_every_10_seconds(
    out_cls: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    clock, out = ManualClock(), out_cls()
    async with running(clock, 4, None) as (test, worker, answers):
        watching = asyncio.ensure_future(show_progress(test, out))
        await worker.until_arrived(1)
        answers.allowed.release()
        await worker.until_arrived(2)
        for _ in range(2):
            await clock.wait_for_timer(within_s=10.0)
            clock.advance(10.0)
        await clock.wait_for_timer(within_s=10.0)
        watching.cancel()

    assert out.getvalue().splitlines() == [
        "10 s: 2 sent, 1 ok, 0 failed, 1 in flight, 0.10 ok/s",
        "20 s: 2 sent, 1 ok, 0 failed, 1 in flight, 0.05 ok/s",
    ]


async def test_on_a_terminal_the_table_is_redrawn_and_removed_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    clock, out = ManualClock(), Terminal()
    async with running(clock, 4, None) as (test, worker, answers):
        watching = asyncio.ensure_future(show_progress(test, out))
        await worker.until_arrived(1)
        answers.allowed.release()
        await worker.until_arrived(2)
        await clock.wait_for_timer(within_s=0.5)
        clock.advance(0.5)
        await clock.wait_for_timer(within_s=0.5)
        watching.cancel()
        await asyncio.wait({watching})

    text = out.getvalue()
    hide, show, up = "\x1b[?25l", "\x1b[?25h", "\x1b[1A"
    assert "1 ok" in text
    assert text.index(hide) < text.index("1 ok") < text.index(show)
    assert up in text[text.index(show) :]
