"""Reports reach the engine and add up there, whatever it does to them (lessons 9, 11, 14, 24)."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import aiohttp
import anyio
import pytest
from aiohttp import web

from lib.engine import reports
from lib.engine.engine import Capacity
from lib.engine.reports import (
    COMPLETIONS_INTERVAL_S,
    DELIVERY_TIMEOUT_S,
    EVENT_INTERVAL_S,
    IDLE_INTERVAL_S,
    LAST_RETRY_S,
    MAX_ENTRIES_PER_MESSAGE,
    Reporter,
    WorkerIdentity,
)
from lib.local.faults import Fault
from lib.metrics import MAX_UNDELIVERED, Outcome
from tests.lib.engine.stand import WORKER_ID, stand
from tests.manual_clock import ManualClock


async def test_the_first_report_goes_out_at_once_and_says_who_reports() -> None:
    async with stand() as here:
        report = await here.reported(1)
    assert (report.id, report.mtoken, report.url) == (WORKER_ID, "token", "http://127.0.0.1:3000")
    assert (report.version, report.error_msg, report.loadtime) == ("1.1.0", "", 0.0)
    assert report.disk_usage > 0
    assert report.additional_disk_usage == 0


async def test_silence_lasts_less_than_ten_seconds() -> None:
    assert IDLE_INTERVAL_S < 10
    async with stand() as here:
        await here.reported(1)
        here.clock.advance(IDLE_INTERVAL_S)
        await here.reported(2)


async def test_an_event_is_reported_within_a_second_and_those_that_follow_with_it() -> None:
    assert EVENT_INTERVAL_S < 1
    async with stand() as here:
        await here.reported(1)
        here.serve(2.0)
        here.accept(3.0)
        await here.clock.wait_for_timer(EVENT_INTERVAL_S)
        assert len(here.messages()) == 1
        here.clock.advance(EVENT_INTERVAL_S)
        report = await here.reported(2)
        assert (report.new_load, report.cur_load, report.cur_perf) == (5.0, 3.0, 2.0)
        assert (report.num_requests_working, report.num_requests_received) == (1, 2)


async def test_an_event_after_a_quiet_time_is_reported_at_once() -> None:
    async with stand() as here:
        await here.reported(1)
        here.clock.advance(5.0)
        here.serve(2.0)
        assert (await here.reported(2)).cur_perf == 2.0


async def test_a_change_of_state_is_reported_at_once() -> None:
    async with stand() as here:
        await here.reported(1)
        here.standing = Capacity(12.5, 40.0)
        here.reporter.state_changed("")
        report = await here.reported(2)
        assert (report.loadtime, report.max_perf) == (12.5, 40.0)
        here.reporter.state_changed("CUDA error")
        assert (await here.reported(3)).error_msg == "CUDA error"


async def test_a_change_of_state_during_a_delivery_is_reported_after_it() -> None:
    async with stand() as here:
        await here.reported(1)
        here.engine.faults.reports = Fault(delay_s=1.0)
        here.reporter.state_changed("")
        await here.engine.wait_for(lambda: here.engine.requests_seen["reports"] == 2)
        here.reporter.state_changed("CUDA error")
        here.engine.faults.clear()
        await answer(here.engine_clock)
        assert [m.error_msg for m in (await here.reported(3), *here.messages())] == [
            "CUDA error",
            "",
            "",
            "CUDA error",
        ]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(drop=True, times=3),
        Fault(refuse=True, times=3),
        Fault(status=500, times=3),
        Fault(status=404, times=3),
    ],
)
async def test_what_was_not_acknowledged_is_told_again(fault: Fault) -> None:
    async with stand() as here:
        await here.reported(1)
        here.engine.faults.reports = fault
        here.serve(5.0)
        here.refuse(7.0)
        here.clock.advance(EVENT_INTERVAL_S)
        for tries in (2, 3, 4):
            await here.tried(tries)
            assert here.told() == (0.0, 0.0, 0.0)
            here.serve(1.0)
            here.clock.advance(LAST_RETRY_S)
        await here.reported(2)
        assert here.told() == (8.0, 7.0, 8.0)


async def test_what_happens_while_a_report_is_in_the_air_is_in_the_next_one() -> None:
    async with stand() as here:
        await here.reported(1)
        here.engine.faults.reports = Fault(delay_s=1.0)
        here.reporter.state_changed("")
        await here.engine.wait_for(lambda: here.engine.requests_seen["reports"] == 2)
        here.serve(5.0)
        here.engine.faults.clear()
        await answer(here.engine_clock)
        assert (await here.reported(2)).cur_perf == 0.0
        here.clock.advance(EVENT_INTERVAL_S)
        assert (await here.reported(3)).cur_perf == 5.0
        assert here.told() == (5.0, 0.0, 5.0)


async def test_a_report_whose_acknowledgement_is_lost_counts_twice_and_nothing_is_lost() -> None:
    async with stand() as here:
        await here.reported(1)
        here.engine.faults.reports = Fault(lose=True, times=1)
        here.serve(5.0)
        here.clock.advance(EVENT_INTERVAL_S)
        await here.reported(2)
        here.clock.advance(LAST_RETRY_S)
        await here.reported(3)
        assert here.told() == (10.0, 0.0, 10.0)
        here.clock.advance(IDLE_INTERVAL_S)
        assert (await here.reported(4)).cur_perf == 0.0


async def test_a_report_that_gets_no_answer_is_given_up() -> None:
    async with stand() as here:
        await here.reported(1)
        here.engine.faults.reports = Fault(delay_s=3600.0)
        here.serve(5.0)
        here.clock.advance(EVENT_INTERVAL_S)
        await here.engine.wait_for(lambda: here.engine.requests_seen["reports"] == 2)
        here.engine.faults.clear()
        here.clock.advance(DELIVERY_TIMEOUT_S)
        await here.tried(2)
        assert "no answer" in here.reporter.deliveries[-1].answer
        here.clock.advance(LAST_RETRY_S)
        assert (await here.reported(2)).cur_perf == 5.0


async def test_a_withdrawal_after_its_load_was_told_is_taken_off_what_comes() -> None:
    async with stand() as here:
        entry = here.accept(10.0)
        assert (await here.reported(1)).new_load == 10.0
        entry.set_outcome(Outcome.CANCELLED)
        here.serve(4.0)
        here.clock.advance(EVENT_INTERVAL_S)
        assert (await here.reported(2)).new_load == 0.0
        here.serve(9.0)
        here.clock.advance(EVENT_INTERVAL_S)
        assert (await here.reported(3)).new_load == 3.0


async def test_tries_are_spaced_out_more_and_more() -> None:
    async with stand() as here:
        await here.reported(1)
        here.engine.faults.reports = Fault(refuse=True)
        here.clock.advance(IDLE_INTERVAL_S)
        for tries, most_s in enumerate((0.5, 1.0, 2.0, 4.0, 8.0, 8.0), start=2):
            await here.tried(tries)
            here.clock.advance(most_s / 2 - 0.01)
            assert len(here.reporter.deliveries) == tries
            here.clock.advance(most_s / 2 + 0.01)
        await here.tried(8)


async def test_errors_and_recoveries_are_told_though_the_engine_was_down() -> None:
    async with stand() as here:
        await here.reported(1)
        here.engine.faults.reports = Fault(drop=True)
        for error_msg in ("CUDA error", "", "health check failed", ""):
            here.reporter.state_changed(error_msg)
        await here.tried(2)
        here.engine.faults.clear()
        here.clock.advance(LAST_RETRY_S)
        await here.reported(5)
        assert [m.error_msg for m in here.messages()] == ["", "CUDA error", "", "health check failed", ""]


async def test_a_flood_of_errors_does_not_flood_the_engine() -> None:
    async with stand() as here:
        await here.reported(1)
        here.reporter.state_changed("error 0")
        for number in range(1, 1000):
            here.reporter.state_changed(f"error {number}", at_once=False)
        assert (await here.reported(3)).error_msg == "error 999"
        for number in range(1000, 2000):
            here.reporter.state_changed(f"error {number}", at_once=False)
            await anyio.lowlevel.checkpoint()
        assert len(here.messages()) == 3
        here.clock.advance(EVENT_INTERVAL_S)
        await here.reported(4)
        here.clock.advance(EVENT_INTERVAL_S)
        await here.reported(5)
        assert [m.error_msg for m in here.messages()[1:]] == [
            "error 0",
            "error 999",
            "error 1000",
            "error 1999",
        ]


async def test_only_the_latest_errors_are_remembered_for_an_engine_that_is_down() -> None:
    async with stand() as here:
        await here.reported(1)
        here.engine.faults.reports = Fault(drop=True)
        for number in range(100):
            here.reporter.state_changed(f"error {number}")
            here.reporter.state_changed("")
        await here.tried(2)
        here.engine.faults.clear()
        here.clock.advance(LAST_RETRY_S)
        await here.reported(1 + reports.MAX_UNREPORTED_ERRORS)
        assert [m.error_msg for m in here.messages()[-2:]] == ["error 99", ""]


# Several addresses


async def test_the_next_address_has_what_one_refuses_and_keeps_getting_it() -> None:
    async with stand(2) as here:
        here.engines[0].faults.reports = Fault(refuse=True)
        here.serve(5.0)
        await here.reported(1, engine=1)
        here.serve(2.0)
        here.clock.advance(EVENT_INTERVAL_S)
        await here.reported(2, engine=1)
        assert here.engines[0].requests_seen["reports"] == 1
        here.engines[0].faults.clear()
        here.engines[1].faults.reports = Fault(drop=True)
        here.serve(1.0)
        here.clock.advance(EVENT_INTERVAL_S)
        await here.reported(1, engine=0)
        assert (here.told(0)[2], here.told(1)[2]) == (1.0, 7.0)


async def test_completions_skip_the_address_that_takes_status_reports_only() -> None:
    async with stand(2, key_addrs=slice(1, 2), completions=True) as here:
        here.serve(request_idx=1)
        await here.engines[1].wait_for(lambda: len(here.engines[1].finished) == 1)
        await here.reported(1)
        assert here.engines[0].requests_seen["completions"] == 0
        assert here.engines[1].requests_seen["reports"] == 0


async def test_without_an_address_for_completions_nothing_piles_up() -> None:
    async with stand(key_addrs=slice(0, 0), completions=True) as here:
        for number in range(1, 50):
            here.serve(request_idx=number)
        assert await here.reporter.finish(5.0)
        assert here.told()[2] == 49.0
        assert here.engine.requests_seen["completions"] == 0
        assert here.ledger.finished()[0] == ()


@asynccontextmanager
async def redirecting(status: int) -> AsyncGenerator[tuple[str, list[str]], None]:
    """A server that sends every POST elsewhere, and what it was asked for."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(f"{request.method} {request.path}")
        if request.method == "POST":
            return web.Response(status=status, headers={"Location": "/elsewhere/"})
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", asked
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_acknowledges_nothing(status: int) -> None:
    async with redirecting(status) as (url, asked), stand(status=False) as here:
        async with aiohttp.ClientSession() as http, anyio.create_task_group() as tasks:
            identity = WorkerIdentity(WORKER_ID, "", "http://127.0.0.1:3000")
            addrs = [url, *here.urls]
            reporter = Reporter(http, addrs, addrs, identity, here.ledger, lambda: Capacity(0, 0), here.clock)
            here.serve(5.0)
            tasks.start_soon(reporter.report_status)
            await here.engine.wait_for(lambda: here.told()[2] == 5.0)
            tasks.cancel_scope.cancel()
        assert asked == ["POST /worker_status/"]


# Completions


async def test_completions_are_sent_once_a_second_while_there_are_any() -> None:
    async with stand(status=False, completions=True) as here:
        here.serve(request_idx=1)
        await here.engine.wait_for(lambda: len(here.engine.finished) == 1)
        here.serve(request_idx=2)
        here.serve(request_idx=3)
        await here.clock.wait_for_timer(COMPLETIONS_INTERVAL_S)
        assert here.engine.requests_seen["completions"] == 1
        here.clock.advance(1.0)
        await here.engine.wait_for(lambda: len(here.engine.finished) == 3)
        assert here.engine.requests_seen["completions"] == 2
        first = here.engine.finished[0]
        assert (first.worker_id, first.mtoken, first.request.status) == (WORKER_ID, "token", "Success")


async def test_retries_of_one_request_idx_are_entries_of_their_own() -> None:
    async with stand(status=False, completions=True) as here:
        here.refuse(request_idx=42)
        here.accept(request_idx=42).set_outcome(Outcome.ERRORED)
        here.serve(request_idx=42)
        await here.engine.wait_for(lambda: len(here.engine.finished) == 3)
        told = [(f.request.request_idx, f.request.status, f.request.success) for f in here.engine.finished]
        assert told == [(42, "Rejected", False), (42, "Error", False), (42, "Success", True)]


@pytest.mark.parametrize("fault", [Fault(drop=True), Fault(refuse=True), Fault(lose=True)])
async def test_each_completion_is_delivered_at_least_once(fault: Fault) -> None:
    async with stand(status=False, completions=True) as here:
        here.engine.faults.completions = fault
        here.serve(request_idx=1)
        await here.engine.wait_for(lambda: here.engine.requests_seen["completions"] >= 1)
        here.serve(request_idx=2)
        here.engine.faults.clear()
        await here.clock.wait_for_timer(LAST_RETRY_S)
        here.clock.advance(LAST_RETRY_S)
        await here.engine.wait_for(lambda: {f.request.request_idx for f in here.engine.finished} == {1, 2})


async def test_ten_thousand_completions_go_in_messages_of_bounded_size() -> None:
    async with stand(status=False) as here:
        for number in range(MAX_UNDELIVERED + 1):
            here.serve(request_idx=number + 1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(here.reporter.report_completions)
            await here.engine.wait_for(lambda: len(here.engine.finished) >= MAX_UNDELIVERED)
            tasks.cancel_scope.cancel()
        told = [f.request.request_idx for f in here.engine.finished]
        assert told == list(range(2, MAX_UNDELIVERED + 2))
        assert here.engine.requests_seen["completions"] == MAX_UNDELIVERED / MAX_ENTRIES_PER_MESSAGE


async def test_what_is_kept_of_deliveries_is_short_and_without_secrets() -> None:
    async with stand(status=False, completions=True) as here:
        here.engine.faults.completions = Fault(refuse=True)
        for number in range(1, 501):
            here.serve(request_idx=number)
        await here.engine.wait_for(lambda: here.engine.requests_seen["completions"] >= 1)
        for _ in range(30):
            here.clock.advance(LAST_RETRY_S)
            await here.idle()
        kept = [d.message for d in here.reporter.deliveries]
        assert "token" not in json.dumps(kept)
        assert len(json.dumps(kept)) < 40 * 1000
        assert any(m.get("requests") == 500 for m in kept)


# The end


async def test_the_last_report_tells_everything() -> None:
    async with stand(completions=True) as here:
        await here.engine.wait_for(here.messages)
        here.serve(5.0, request_idx=1)
        assert await here.reporter.finish(10.0)
        assert here.told() == (5.0, 0.0, 5.0)
        assert [f.request.request_idx for f in here.engine.finished] == [1]


async def test_the_last_report_waits_for_the_one_in_the_air_and_takes_nothing_off_twice() -> None:
    async with stand(completions=True) as here:
        await here.tried(1)
        here.engine.faults.reports = Fault(delay_s=1.0, times=1)
        here.engine.faults.completions = Fault(delay_s=1.0, times=1)
        here.serve(5.0, request_idx=1)
        await here.clock.wait_for_timers(2)
        here.clock.advance(COMPLETIONS_INTERVAL_S)
        seen = here.engine.requests_seen
        await here.engine.wait_for(lambda: seen["reports"] == 2 and seen["completions"] == 1)
        here.serve(2.0, request_idx=2)
        ended: list[bool] = []
        async with anyio.create_task_group() as tasks:

            async def finish() -> None:
                ended.append(await here.reporter.finish(60.0))

            tasks.start_soon(finish)
            await answer(here.engine_clock, timers=2)
        assert ended == [True]
        assert [m.cur_perf for m in here.messages()] == [0.0, 5.0, 2.0]
        assert [f.request.request_idx for f in here.engine.finished] == [1, 2]


async def test_the_end_is_tried_again_and_not_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    async with stand(completions=True) as here:
        await here.engine.wait_for(here.messages)
        here.serve(5.0, request_idx=1)
        here.engine.faults.reports = Fault(drop=True)
        here.engine.faults.completions = Fault(drop=True)
        ended: list[bool] = []
        async with anyio.create_task_group() as tasks:

            async def finish() -> None:
                ended.append(await here.reporter.finish(60.0))

            tasks.start_soon(finish)
            await here.engine.wait_for(lambda: here.engine.requests_seen["reports"] >= 2)
            while here.engine.requests_seen["completions"] < 3:
                here.clock.advance(1.0)
                await anyio.lowlevel.checkpoint()
            here.clock.advance(60.0)
        assert ended == [False]
        assert "did not accept the last reports" in caplog.text


async def test_an_error_at_the_very_end_is_told() -> None:
    async with stand(completions=True) as here:
        await here.engine.wait_for(here.messages)
        here.reporter.state_changed("lifecycle failed")
        assert await here.reporter.finish(10.0)
        assert here.messages()[-1].error_msg == "lifecycle failed"


# The log


async def test_a_turn_for_the_worse_or_the_better_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async with stand() as here:
        with caplog.at_level(logging.INFO, logger="lib.engine.reports"):
            await here.reported(1)
            here.engine.faults.reports = Fault(refuse=True)
            here.clock.advance(IDLE_INTERVAL_S)
            for tries in (2, 3, 4):
                await here.tried(tries)
                here.clock.advance(LAST_RETRY_S)
            await here.tried(5)
            here.engine.faults.clear()
            here.clock.advance(LAST_RETRY_S)
            await here.reported(2)
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 2
    assert "accepted no report: 503" in lines[0]
    assert "accepts reports again" in lines[1]


async def test_thousands_of_units_arrive_whole_at_a_slow_engine() -> None:
    """Lesson 9: with counters set back on return, most of what happened meanwhile would be lost."""
    async with stand() as here:
        await here.reported(1)
        here.engine.faults.reports = Fault(delay_s=0.5)
        here.reporter.state_changed("")
        for _ in range(10):
            await here.engine_clock.wait_for_timers()
            for _ in range(1000):
                here.serve(1.0)
            here.engine_clock.advance(0.5)
            await here.clock.wait_for_timer(EVENT_INTERVAL_S)
            here.clock.advance(EVENT_INTERVAL_S)
        here.engine.faults.clear()
        assert (await here.reported(12)).cur_perf == 1000.0
        assert here.told() == (10_000.0, 0.0, 10_000.0)


async def answer(engine_clock: ManualClock, timers: int = 1) -> None:
    """Let an engine answer what its fault holds back."""
    await engine_clock.wait_for_timers(timers)
    engine_clock.advance(1.0)
