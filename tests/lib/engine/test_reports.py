"""Reports reach the engine, and their sums are right, whatever faults the engine has."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import aiohttp
import anyio
import psutil
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver

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
from lib.local.engine import LocalEngine
from lib.local.faults import Fault
from lib.local.serving import serve_engine
from lib.metrics import MAX_UNDELIVERED, Outcome
from lib.runtime.settings import GIB
from tests.event_loop import run_event_loop_turns
from tests.guard import GUARD_S
from tests.lib.engine.reporting import KEY, WORKER_ID, reporting_worker
from tests.manual_clock import ManualClock


async def test_the_first_report_is_immediate_and_has_the_identity() -> None:
    async with reporting_worker() as worker:
        report = await worker.reported(1)
    assert (report.id, report.mtoken, report.url) == (WORKER_ID, "token", "http://127.0.0.1:3000")
    assert (report.version, report.error_msg, report.loadtime) == ("1.1.0", "", 0.0)
    assert report.disk_usage > 0
    assert report.additional_disk_usage == 0


async def test_growth_of_disk_use_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([3, 5, 5, 9])

    def disk_usage(path: str) -> SimpleNamespace:
        return SimpleNamespace(used=next(used) * GIB)

    monkeypatch.setattr(psutil, "disk_usage", disk_usage)
    async with reporting_worker() as worker:
        await worker.reported(1)
        worker.engine.faults.reports = Fault(refuse=True, times=1)
        worker.clock.advance(IDLE_INTERVAL_S)
        await worker.tried(2)
        worker.clock.advance(IDLE_INTERVAL_S)
        await worker.reported(2)
        worker.clock.advance(IDLE_INTERVAL_S)
        await worker.reported(3)
        sizes = [(m.disk_usage, m.additional_disk_usage) for m in worker.messages()]
        assert sizes == [(3.0, 0.0), (5.0, 2.0), (9.0, 4.0)]


async def test_reports_are_less_than_ten_seconds_apart() -> None:
    assert IDLE_INTERVAL_S < 10
    async with reporting_worker() as worker:
        await worker.reported(1)
        worker.clock.advance(IDLE_INTERVAL_S)
        await worker.reported(2)


async def test_events_within_a_second_are_reported_together() -> None:
    assert EVENT_INTERVAL_S < 1
    async with reporting_worker() as worker:
        await worker.reported(1)
        worker.serve(2.0)
        worker.accept(3.0)
        await worker.clock.wait_for_timer(EVENT_INTERVAL_S)
        assert len(worker.messages()) == 1
        worker.clock.advance(EVENT_INTERVAL_S)
        report = await worker.reported(2)
        assert (report.new_load, report.cur_load, report.cur_perf) == (5.0, 3.0, 2.0)
        assert (report.num_requests_working, report.num_requests_received) == (1, 2)


async def test_shorter_pauses_may_be_asked_for() -> None:
    """Between reports, and between messages of finished requests."""
    async with reporting_worker(max_pause_s=0.1) as worker:
        await worker.reported(1)
        worker.serve(2.0)
        await worker.clock.wait_for_timer(0.1)
        assert len(worker.messages()) == 1
        worker.clock.advance(0.1)
        await worker.reported(2)
    async with reporting_worker(status=False, completions=True, max_pause_s=0.1) as worker:
        worker.serve(request_idx=1)
        await worker.engine.wait_for(lambda: len(worker.engine.finished) == 1)
        worker.serve(request_idx=2)
        await worker.clock.wait_for_timer(0.1)
        worker.clock.advance(0.1)
        await worker.engine.wait_for(lambda: len(worker.engine.finished) == 2)


async def test_an_event_after_a_quiet_time_is_reported_at_once() -> None:
    async with reporting_worker() as worker:
        await worker.reported(1)
        worker.clock.advance(5.0)
        worker.serve(2.0)
        assert (await worker.reported(2)).cur_perf == 2.0


async def test_a_change_of_state_is_reported_at_once() -> None:
    async with reporting_worker() as worker:
        await worker.reported(1)
        worker.capacity = Capacity(12.5, 40.0)
        worker.reporter.state_changed("")
        report = await worker.reported(2)
        assert (report.loadtime, report.max_perf) == (12.5, 40.0)
        worker.reporter.state_changed("CUDA error")
        assert (await worker.reported(3)).error_msg == "CUDA error"


async def test_a_change_of_state_during_a_delivery_is_reported_after_it() -> None:
    async with reporting_worker() as worker:
        await worker.reported(1)
        worker.engine.faults.reports = Fault(delay_s=1.0)
        worker.reporter.state_changed("")
        await worker.engine.wait_for(lambda: worker.engine.requests_seen["reports"] == 2)
        worker.reporter.state_changed("CUDA error")
        worker.engine.faults.clear()
        await answer(worker.engine_clock)
        assert [m.error_msg for m in (await worker.reported(3), *worker.messages())] == [
            "CUDA error",
            "",
            "",
            "CUDA error",
        ]


async def test_an_error_and_its_end_during_a_delivery_are_both_reported_after_it() -> None:
    async with reporting_worker() as worker:
        await worker.reported(1)
        worker.engine.faults.reports = Fault(delay_s=1.0)
        worker.reporter.state_changed("")
        await worker.engine.wait_for(lambda: worker.engine.requests_seen["reports"] == 2)
        worker.reporter.state_changed("CUDA error")
        worker.reporter.state_changed("")
        worker.engine.faults.clear()
        await answer(worker.engine_clock)
        await worker.reported(4)
        assert [m.error_msg for m in worker.messages()] == ["", "", "CUDA error", ""]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(drop=True, times=3),
        Fault(refuse=True, times=3),
        Fault(status=500, times=3),
        Fault(status=404, times=3),
        Fault(status=300, times=3),
    ],
)
async def test_numbers_that_were_not_acknowledged_are_reported_again(fault: Fault) -> None:
    async with reporting_worker() as worker:
        await worker.reported(1)
        worker.engine.faults.reports = fault
        worker.serve(5.0)
        worker.refuse(7.0)
        worker.clock.advance(EVENT_INTERVAL_S)
        for tries in (2, 3, 4):
            await worker.tried(tries)
            assert worker.delivered_loads() == (0.0, 0.0, 0.0)
            worker.serve(1.0)
            worker.clock.advance(LAST_RETRY_S)
        await worker.reported(2)
        assert worker.delivered_loads() == (8.0, 7.0, 8.0)


async def test_any_status_of_2xx_acknowledges() -> None:
    async with reporting_worker() as worker:
        worker.engine.faults.reports = Fault(status=299, times=1)
        worker.serve(5.0)
        await worker.tried(1)
        worker.clock.advance(IDLE_INTERVAL_S)
        assert (await worker.reported(1)).cur_perf == 0.0
        assert [d.delivered for d in worker.reporter.deliveries] == [True, True]


async def test_events_during_a_delivery_are_in_the_next_report() -> None:
    async with reporting_worker() as worker:
        await worker.reported(1)
        worker.engine.faults.reports = Fault(delay_s=1.0)
        worker.reporter.state_changed("")
        await worker.engine.wait_for(lambda: worker.engine.requests_seen["reports"] == 2)
        worker.serve(5.0)
        worker.engine.faults.clear()
        await answer(worker.engine_clock)
        assert (await worker.reported(2)).cur_perf == 0.0
        worker.clock.advance(EVENT_INTERVAL_S)
        assert (await worker.reported(3)).cur_perf == 5.0
        assert worker.delivered_loads() == (5.0, 0.0, 5.0)


async def test_a_report_with_a_lost_acknowledgement_is_sent_twice() -> None:
    async with reporting_worker() as worker:
        await worker.reported(1)
        worker.engine.faults.reports = Fault(lose=True, times=1)
        worker.serve(5.0)
        worker.clock.advance(EVENT_INTERVAL_S)
        await worker.reported(2)
        worker.clock.advance(LAST_RETRY_S)
        await worker.reported(3)
        assert worker.delivered_loads() == (10.0, 0.0, 10.0)
        worker.clock.advance(IDLE_INTERVAL_S)
        assert (await worker.reported(4)).cur_perf == 0.0


async def test_a_report_that_gets_no_answer_is_given_up() -> None:
    async with reporting_worker() as worker:
        await worker.reported(1)
        worker.engine.faults.reports = Fault(delay_s=3600.0)
        worker.serve(5.0)
        worker.clock.advance(EVENT_INTERVAL_S)
        await worker.engine.wait_for(lambda: worker.engine.requests_seen["reports"] == 2)
        worker.engine.faults.clear()
        worker.clock.advance(DELIVERY_TIMEOUT_S)
        await worker.tried(2)
        assert "no answer" in worker.reporter.deliveries[-1].answer
        worker.clock.advance(LAST_RETRY_S)
        assert (await worker.reported(2)).cur_perf == 5.0


async def test_a_withdrawal_of_a_reported_load_reduces_later_reports() -> None:
    async with reporting_worker() as worker:
        entry = worker.accept(10.0)
        assert (await worker.reported(1)).new_load == 10.0
        entry.set_outcome(Outcome.CANCELLED)
        worker.serve(4.0)
        worker.clock.advance(EVENT_INTERVAL_S)
        assert (await worker.reported(2)).new_load == 0.0
        worker.serve(9.0)
        worker.clock.advance(EVENT_INTERVAL_S)
        assert (await worker.reported(3)).new_load == 3.0


@pytest.mark.parametrize("has_succeeded", [False, True])
async def test_retries_have_growing_delays(has_succeeded: bool) -> None:
    async with reporting_worker() as worker:
        if has_succeeded:
            await worker.reported(1)
        worker.engine.faults.reports = Fault(refuse=True)
        if has_succeeded:
            worker.clock.advance(IDLE_INTERVAL_S)
        for tries, most_s in enumerate((0.5, 1.0, 2.0, 4.0, 8.0, 8.0), start=has_succeeded + 1):
            await worker.tried(tries)
            worker.clock.advance(most_s / 2 - 0.01)
            assert len(worker.reporter.deliveries) == tries
            worker.clock.advance(most_s / 2 + 0.01)
        await worker.tried(has_succeeded + 7)


async def test_errors_and_recoveries_are_reported_after_the_engine_was_down() -> None:
    async with reporting_worker() as worker:
        await worker.reported(1)
        worker.engine.faults.reports = Fault(drop=True)
        for error_msg in ("CUDA error", "", "health check failed", ""):
            worker.reporter.state_changed(error_msg)
        await worker.tried(2)
        worker.engine.faults.clear()
        worker.clock.advance(LAST_RETRY_S)
        await worker.reported(5)
        assert [m.error_msg for m in worker.messages()] == ["", "CUDA error", "", "health check failed", ""]


async def test_of_errors_in_a_row_the_first_and_the_latest_are_reported() -> None:
    async with reporting_worker() as worker:
        await worker.reported(1)
        worker.engine.faults.reports = Fault(drop=True)
        for error_msg in (
            "first",
            "second",
            "third",
            "",
            "fourth",
            "fifth",
            "sixth",
            "",
            "first",
            "eighth",
        ):
            worker.reporter.state_changed(error_msg)
        await worker.tried(2)
        worker.engine.faults.clear()
        worker.clock.advance(LAST_RETRY_S)
        await worker.reported(9)
        reported = ["first", "third", "", "fourth", "sixth", "", "first", "eighth"]
        assert [m.error_msg for m in worker.messages()[1:]] == reported


async def test_after_an_event_s_report_the_next_comes_with_the_next_event() -> None:
    async with reporting_worker() as worker:
        await worker.reported(1)
        worker.serve(1.0)
        worker.clock.advance(EVENT_INTERVAL_S)
        await worker.reported(2)
        for _ in range(3):
            worker.clock.advance(EVENT_INTERVAL_S)
            await worker.idle()
        assert len(worker.messages()) == 2


async def test_a_flood_of_errors_does_not_flood_the_engine() -> None:
    async with reporting_worker() as worker:
        await worker.reported(1)
        worker.reporter.state_changed("error 0")
        for number in range(1, 1000):
            worker.reporter.state_changed(f"error {number}", at_once=False)
        assert (await worker.reported(3)).error_msg == "error 999"
        for number in range(1000, 2000):
            worker.reporter.state_changed(f"error {number}", at_once=False)
            await anyio.lowlevel.checkpoint()
        assert len(worker.messages()) == 3
        worker.clock.advance(EVENT_INTERVAL_S)
        await worker.reported(4)
        assert len(worker.messages()) == 4
        worker.clock.advance(EVENT_INTERVAL_S)
        await worker.reported(5)
        assert [m.error_msg for m in worker.messages()[1:]] == [
            "error 0",
            "error 999",
            "error 1000",
            "error 1999",
        ]


async def test_only_the_latest_errors_are_remembered_for_an_engine_that_is_down() -> None:
    async with reporting_worker() as worker:
        await worker.reported(1)
        worker.engine.faults.reports = Fault(drop=True)
        for number in range(100):
            worker.reporter.state_changed(f"error {number}")
            worker.reporter.state_changed("")
        await worker.tried(2)
        worker.engine.faults.clear()
        worker.clock.advance(LAST_RETRY_S)
        await worker.reported(1 + reports.MAX_UNREPORTED_ERRORS)
        assert [m.error_msg for m in worker.messages()[-2:]] == ["error 99", ""]
        assert len(worker.messages()) == 1 + reports.MAX_UNREPORTED_ERRORS


# Several addresses


async def test_reports_go_to_the_next_address_after_a_refusal_and_stay_there() -> None:
    async with reporting_worker(2) as worker:
        worker.engines[0].faults.reports = Fault(refuse=True)
        worker.serve(5.0)
        await worker.reported(1, engine=1)
        worker.serve(2.0)
        worker.clock.advance(EVENT_INTERVAL_S)
        await worker.reported(2, engine=1)
        assert worker.engines[0].requests_seen["reports"] == 1
        worker.engines[0].faults.clear()
        worker.engines[1].faults.reports = Fault(drop=True)
        worker.serve(1.0)
        worker.clock.advance(EVENT_INTERVAL_S)
        await worker.reported(1, engine=0)
        assert (worker.delivered_loads(0)[2], worker.delivered_loads(1)[2]) == (1.0, 7.0)


async def test_completions_skip_the_address_that_takes_status_reports_only() -> None:
    async with reporting_worker(2, key_addrs=slice(1, 2), completions=True) as worker:
        worker.serve(request_idx=1)
        await worker.engines[1].wait_for(lambda: len(worker.engines[1].finished) == 1)
        await worker.reported(1)
        assert worker.engines[0].requests_seen["completions"] == 0
        assert worker.engines[1].requests_seen["reports"] == 0


async def test_without_an_address_for_completions_none_are_kept() -> None:
    async with reporting_worker(key_addrs=slice(0, 0), completions=True) as worker:
        for number in range(1, 50):
            worker.serve(request_idx=number)
        assert await worker.reporter.finish(5.0)
        assert worker.delivered_loads()[2] == 49.0
        assert worker.engine.requests_seen["completions"] == 0
        assert worker.ledger.finished()[0] == ()


@asynccontextmanager
async def redirecting(status: int) -> AsyncGenerator[tuple[str, list[str]], None]:
    """A server that redirects every POST, and the requests that it received."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(f"{request.method} {request.path} {request.content_type}")
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
    async with redirecting(status) as (url, asked), reporting_worker(status=False) as worker:
        async with aiohttp.ClientSession() as http, anyio.create_task_group() as tasks:
            identity = WorkerIdentity(WORKER_ID, "", "http://127.0.0.1:3000")
            addrs = [url, *worker.urls]
            reporter = Reporter(
                http, addrs, addrs, identity, worker.ledger, lambda: Capacity(0, 0), worker.clock
            )
            worker.serve(5.0)
            tasks.start_soon(reporter.report_status)
            await worker.engine.wait_for(lambda: worker.delivered_loads()[2] == 5.0)
            tasks.cancel_scope.cancel()
        assert asked == ["POST /worker_status/ application/json"]


# The loopback port

LOOPBACK_URL = "http://127.0.0.1:3001"


class _EverywhereHere(AbstractResolver):
    """Finds this machine under each name."""

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[Any]:
        return [
            {"hostname": host, "host": "127.0.0.1", "port": port, "family": family, "proto": 0, "flags": 0}
        ]

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("host", "told"),
    [("127.0.0.1", LOOPBACK_URL), ("localhost", LOOPBACK_URL), ("engine.example", ""), ("localhost.x", "")],
)
async def test_only_an_engine_on_this_machine_is_told_the_loopback_port(host: str, told: str) -> None:
    async with reporting_worker(status=False) as worker:
        engine = LocalEngine(clock=worker.engine_clock, key=KEY)
        connector = aiohttp.TCPConnector(resolver=_EverywhereHere())
        async with (
            serve_engine(engine, allowed_hosts=[host]) as url,
            aiohttp.ClientSession(connector=connector) as http,
            anyio.create_task_group() as tasks,
        ):
            addrs = [url.replace("127.0.0.1", host)]
            identity = WorkerIdentity(WORKER_ID, "", "http://127.0.0.1:3000", LOOPBACK_URL)
            reporter = Reporter(
                http, addrs, addrs, identity, worker.ledger, lambda: Capacity(0, 0), worker.clock
            )
            tasks.start_soon(reporter.report_status)
            await engine.wait_for(lambda: engine.worker(WORKER_ID).reports)
            tasks.cancel_scope.cancel()
        assert engine.worker(WORKER_ID).loopback_url == told


# Completions


async def test_completions_are_sent_once_a_second_while_there_are_any() -> None:
    async with reporting_worker(status=False, completions=True) as worker:
        worker.serve(request_idx=1)
        await worker.engine.wait_for(lambda: len(worker.engine.finished) == 1)
        worker.serve(request_idx=2)
        worker.serve(request_idx=3)
        await worker.clock.wait_for_timer(COMPLETIONS_INTERVAL_S)
        assert worker.engine.requests_seen["completions"] == 1
        worker.clock.advance(1.0)
        await worker.engine.wait_for(lambda: len(worker.engine.finished) == 3)
        assert worker.engine.requests_seen["completions"] == 2
        first = worker.engine.finished[0]
        assert (first.worker_id, first.mtoken, first.request.status) == (WORKER_ID, "token", "Success")


@pytest.mark.parametrize("has_succeeded", [False, True])
async def test_retries_of_completions_have_growing_delays(has_succeeded: bool) -> None:
    async with reporting_worker(status=False, completions=True) as worker:
        if has_succeeded:
            worker.serve(request_idx=1)
            await worker.engine.wait_for(lambda: len(worker.engine.finished) == 1)
        worker.engine.faults.completions = Fault(refuse=True)
        worker.serve(request_idx=2)
        if has_succeeded:
            await worker.clock.wait_for_timer(COMPLETIONS_INTERVAL_S)
            worker.clock.advance(COMPLETIONS_INTERVAL_S)
        for tries, most_s in enumerate((0.5, 1.0, 2.0, 4.0, 8.0, 8.0), start=1):
            await worker.completions_tried(tries)
            worker.clock.advance(most_s / 2 - 0.01)
            assert (len(worker.reporter.deliveries), worker.clock.pending) == (has_succeeded + tries, 1)
            worker.clock.advance(most_s / 2 + 0.01)
        await worker.completions_tried(7)


async def test_without_completions_no_time_is_waited_for() -> None:
    async with reporting_worker(status=False, completions=True) as worker:
        worker.serve(request_idx=1)
        with anyio.fail_after(GUARD_S):
            while worker.reporter.attempts["/delete_requests/"] != (1, 0):
                await anyio.lowlevel.checkpoint()
        await run_event_loop_turns()
        assert worker.clock.pending == 0


async def test_retries_of_one_request_idx_are_entries_of_their_own() -> None:
    async with reporting_worker(status=False, completions=True) as worker:
        worker.refuse(request_idx=42)
        worker.accept(request_idx=42).set_outcome(Outcome.ERRORED)
        worker.serve(request_idx=42)
        await worker.engine.wait_for(lambda: len(worker.engine.finished) == 3)
        delivered = [
            (f.request.request_idx, f.request.status, f.request.success) for f in worker.engine.finished
        ]
        assert delivered == [(42, "Rejected", False), (42, "Error", False), (42, "Success", True)]


@pytest.mark.parametrize("fault", [Fault(drop=True), Fault(refuse=True), Fault(lose=True)])
async def test_each_completion_is_delivered_at_least_once(fault: Fault) -> None:
    async with reporting_worker(status=False, completions=True) as worker:
        worker.engine.faults.completions = fault
        worker.serve(request_idx=1)
        await worker.engine.wait_for(lambda: worker.engine.requests_seen["completions"] >= 1)
        worker.serve(request_idx=2)
        worker.engine.faults.clear()
        await worker.clock.wait_for_timer(LAST_RETRY_S)
        worker.clock.advance(LAST_RETRY_S)
        await worker.engine.wait_for(
            lambda: {f.request.request_idx for f in worker.engine.finished} == {1, 2}
        )


async def test_ten_thousand_completions_are_sent_in_messages_of_limited_size() -> None:
    async with reporting_worker(status=False) as worker:
        for number in range(MAX_UNDELIVERED + 1):
            worker.serve(request_idx=number + 1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.reporter.report_completions)
            await worker.engine.wait_for(lambda: len(worker.engine.finished) >= MAX_UNDELIVERED)
            tasks.cancel_scope.cancel()
        delivered = [f.request.request_idx for f in worker.engine.finished]
        assert delivered == list(range(2, MAX_UNDELIVERED + 2))
        assert worker.engine.requests_seen["completions"] == MAX_UNDELIVERED / MAX_ENTRIES_PER_MESSAGE


async def test_attempts_are_counted_and_recorded() -> None:
    async with reporting_worker() as worker:
        assert worker.reporter.attempts == {"/worker_status/": (0, 0), "/delete_requests/": (0, 0)}
        worker.engine.faults.reports = Fault(refuse=True, times=2)
        for tries in (1, 2):
            await worker.tried(tries)
            worker.clock.advance(LAST_RETRY_S)
        at = worker.clock.wall()
        await worker.tried(3)
        worker.clock.advance(IDLE_INTERVAL_S)
        await worker.tried(4)
        assert worker.reporter.attempts == {"/worker_status/": (2, 2), "/delete_requests/": (0, 0)}
        third = worker.reporter.deliveries[2]
        assert (third.at, third.path, third.addr) == (at, "/worker_status/", worker.urls[0])
        assert (third.answer, third.delivered) == ("200 OK", True)
        assert [d.delivered for d in worker.reporter.deliveries] == [False, False, True, True]


async def test_the_record_of_deliveries_is_short_and_without_secrets() -> None:
    async with reporting_worker(status=False, completions=True) as worker:
        worker.engine.faults.completions = Fault(refuse=True)
        for number in range(1, 501):
            worker.serve(request_idx=number)
        for tries in range(1, 25):
            await worker.completions_tried(tries)
            worker.clock.advance(LAST_RETRY_S)
        await worker.completions_tried(25)
        kept = [d.message for d in worker.reporter.deliveries]
        assert len(kept) == 20
        assert "token" not in json.dumps(kept)
        assert len(json.dumps(kept)) < 40 * 1000
        assert any(m.get("requests") == 500 for m in kept)


# The end


async def test_the_last_report_includes_every_event() -> None:
    async with reporting_worker(completions=True) as worker:
        await worker.engine.wait_for(worker.messages)
        worker.serve(5.0, request_idx=1)
        assert await worker.reporter.finish(10.0)
        assert worker.delivered_loads() == (5.0, 0.0, 5.0)
        assert [f.request.request_idx for f in worker.engine.finished] == [1]


async def test_reporting_ends_with_the_last_reports() -> None:
    async with reporting_worker(status=False) as worker:
        running = [
            asyncio.ensure_future(worker.reporter.report_status()),
            asyncio.ensure_future(worker.reporter.report_completions()),
        ]
        assert await worker.reporter.finish(10.0)
        with anyio.fail_after(GUARD_S):
            await asyncio.gather(*running)


async def test_the_last_completions_are_retried_after_delays() -> None:
    async with reporting_worker(completions=True) as worker:
        await worker.reported(1)
        worker.engine.faults.completions = Fault(refuse=True)
        worker.serve(request_idx=1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.reporter.finish, 60.0)
            await worker.completions_tried(1)
            worker.clock.advance(0.24)
            await worker.completions_tried(1)
            await run_event_loop_turns()
            assert worker.engine.requests_seen["completions"] == 1
            worker.engine.faults.clear()
            worker.clock.advance(LAST_RETRY_S)
        assert [f.request.request_idx for f in worker.engine.finished] == [1]


async def test_the_last_report_waits_for_the_current_delivery() -> None:
    async with reporting_worker(completions=True) as worker:
        await worker.tried(1)
        worker.engine.faults.reports = Fault(delay_s=1.0, times=1)
        worker.engine.faults.completions = Fault(delay_s=1.0, times=1)
        worker.serve(5.0, request_idx=1)
        await worker.clock.wait_for_timers(2)
        worker.clock.advance(COMPLETIONS_INTERVAL_S)
        seen = worker.engine.requests_seen
        await worker.engine.wait_for(lambda: seen["reports"] == 2 and seen["completions"] == 1)
        worker.serve(2.0, request_idx=2)
        ended: list[bool] = []
        async with anyio.create_task_group() as tasks:

            async def finish() -> None:
                ended.append(await worker.reporter.finish(60.0))

            tasks.start_soon(finish)
            await answer(worker.engine_clock, timers=2)
        assert ended == [True]
        assert [m.cur_perf for m in worker.messages()] == [0.0, 5.0, 2.0]
        assert [f.request.request_idx for f in worker.engine.finished] == [1, 2]


async def test_the_last_report_is_retried_within_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    async with reporting_worker(completions=True) as worker:
        await worker.engine.wait_for(worker.messages)
        worker.serve(5.0, request_idx=1)
        worker.engine.faults.reports = Fault(drop=True)
        worker.engine.faults.completions = Fault(drop=True)
        ended: list[bool] = []
        async with anyio.create_task_group() as tasks:

            async def finish() -> None:
                ended.append(await worker.reporter.finish(60.0))

            tasks.start_soon(finish)
            await worker.engine.wait_for(lambda: worker.engine.requests_seen["reports"] >= 2)
            while worker.engine.requests_seen["completions"] < 3:
                worker.clock.advance(1.0)
                await anyio.lowlevel.checkpoint()
            worker.clock.advance(60.0)
        assert ended == [False]
        assert "did not accept the last reports" in caplog.text


async def test_an_error_at_the_very_end_is_reported() -> None:
    async with reporting_worker(completions=True) as worker:
        await worker.engine.wait_for(worker.messages)
        worker.reporter.state_changed("lifecycle failed")
        assert await worker.reporter.finish(10.0)
        assert worker.messages()[-1].error_msg == "lifecycle failed"


async def test_the_last_report_of_an_idle_worker_is_immediate() -> None:
    async with reporting_worker(completions=True) as worker:
        await worker.reported(1)
        with anyio.fail_after(GUARD_S):
            assert await worker.reporter.finish(10.0)
        assert len(worker.messages()) == 2


# The log


async def test_a_change_between_failure_and_success_is_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    async with reporting_worker() as worker:
        with caplog.at_level(logging.INFO, logger="lib.engine.reports"):
            await worker.reported(1)
            worker.engine.faults.reports = Fault(refuse=True)
            worker.clock.advance(IDLE_INTERVAL_S)
            for tries in (2, 3, 4):
                await worker.tried(tries)
                worker.clock.advance(LAST_RETRY_S)
            await worker.tried(5)
            worker.engine.faults.clear()
            worker.clock.advance(LAST_RETRY_S)
            await worker.reported(2)
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 2
    assert "accepted no report: 503" in lines[0]
    assert "accepts reports again" in lines[1]


async def test_no_load_is_lost_at_a_slow_engine() -> None:
    """A counter reset after a delivery would lose the events that happened during it."""
    async with reporting_worker() as worker:
        await worker.reported(1)
        worker.engine.faults.reports = Fault(delay_s=0.5)
        worker.reporter.state_changed("")
        for _ in range(10):
            await worker.engine_clock.wait_for_timers()
            for _ in range(1000):
                worker.serve(1.0)
            worker.engine_clock.advance(0.5)
            await worker.clock.wait_for_timer(EVENT_INTERVAL_S)
            worker.clock.advance(EVENT_INTERVAL_S)
        worker.engine.faults.clear()
        assert (await worker.reported(12)).cur_perf == 1000.0
        assert worker.delivered_loads() == (10_000.0, 0.0, 10_000.0)


async def answer(engine_clock: ManualClock, timers: int = 1) -> None:
    """Let an engine send the answers that its fault delays."""
    await engine_clock.wait_for_timers(timers)
    engine_clock.advance(1.0)
