"""The reports that the engine gets (docs/protocol.md, "Reports" and "Counting")."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from lib.local.faults import Fault
from tests.fakes.worker import Setup
from tests.system import (
    CONTAINER_ID,
    MASTER_TOKEN,
    PortLease,
    System,
    engine_and_model_server,
    with_worker_process,
    with_worker_task,
    worker_process,
)


def reported_outcomes(system: System) -> list[tuple[str, bool]]:
    """Status and success of each finished request that was reported."""
    return [(f.request.status, f.request.success) for f in system.engine.finished]


async def wait_for_outcomes(system: System, count: int) -> list[tuple[str, bool]]:
    await system.engine.wait_for(lambda: len(system.engine.finished) >= count)
    return reported_outcomes(system)


async def all_at_once(system: System, path: str, envelopes: Sequence[dict[str, Any]]) -> None:
    """Send all `envelopes` concurrently; check that each is answered with 200."""

    async def send(envelope: dict[str, Any]) -> None:
        async with system.http.post(system.url + path, json=envelope) as answer:
            await answer.read()
            assert answer.status == 200

    async with anyio.create_task_group() as tasks:
        for envelope in envelopes:
            tasks.start_soon(send, envelope)


async def test_reports_contain_the_workers_id_and_address(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        report = system.last_report
        assert (report.id, report.mtoken, report.url) == (CONTAINER_ID, MASTER_TOKEN, system.url)
        assert (report.max_perf, report.error_msg) == (100.0, "")
        assert report.loadtime > 0
        await system.call("/echo", 5.0)
        await system.reported(served=5.0)
        assert system.last_report.loadtime == report.loadtime


@pytest.mark.parametrize(
    ("path", "data", "perf", "expected"),
    [
        ("/echo", {}, 5.0, ("Success", True)),
        ("/error422", {}, 0.0, ("Success", True)),  # the worker has done its part, and no work was done
        ("/error500", {}, 0.0, ("Error", False)),
        ("/close", {}, 0.0, ("Error", False)),
        ("/raising", {"raise": "parser"}, 0.0, ("Error", False)),
        ("/raising", {"raise": "json"}, 0.0, ("Error", False)),
        ("/raising", {"raise": "response"}, 0.0, ("Error", False)),
        ("/raising", {"raise": "errored"}, 0.0, ("Error", False)),
        ("/raising", {"status": 503}, 0.0, ("Error", False)),
    ],
)
async def test_only_work_that_was_done_counts_as_performance(
    tmp_path: Path, path: str, data: dict[str, Any], perf: float, expected: tuple[str, bool]
) -> None:
    async with with_worker_task(tmp_path) as system:
        await system.call(path, 5.0, data=data)
        assert await wait_for_outcomes(system, 1) == [expected]
        await system.reported(served=perf)
        assert (system.totals.cur_perf, system.totals.rej_load) == (perf, 0.0)
        assert system.last_report.cur_load == 0.0


async def test_a_cancelled_request_is_withdrawn_from_the_load(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(system.call, "/held", 5.0)
            await system.engine.wait_for(lambda: system.last_report.cur_load == 5.0)
            assert system.last_report.working_request_idxs
            tasks.cancel_scope.cancel()
        assert await wait_for_outcomes(system, 1) == [("Cancelled", True)]
        await system.call("/echo", 7.0)
        await system.reported(served=7.0)
        assert system.totals.new_load == 7.0


async def test_a_refused_request_is_reported_as_rejected_load(tmp_path: Path) -> None:
    setup = Setup(
        health="/health", handler={"max_queue_time": 0.0}, backend={"allow_parallel_requests": False}
    )
    async with with_worker_task(tmp_path, setup) as system:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(system.call, "/held", 5.0)
            await system.model.until(lambda: system.model.working == 1)
            assert (await system.call("/echo", 3.0))[0] == 429
            system.model.release()
        assert sorted(await wait_for_outcomes(system, 2)) == [("Rejected", False), ("Success", True)]
        await system.reported(served=5.0)
        assert (system.totals.new_load, system.totals.rej_load) == (5.0, 3.0)


async def test_ten_requests_with_one_reqnum_count_as_ten(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, scheme="url") as system:
        envelopes = [system.envelope(2.0, reqnum=7) for _ in range(10)]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(all_at_once, system, "/held", envelopes)
            await system.engine.wait_for(lambda: system.last_report.num_requests_working == 10)
            assert system.last_report.cur_load == 20.0
            assert len(set(system.last_report.working_request_idxs)) == 10
            system.model.release()
        await system.reported(served=20.0)
        assert system.last_report.num_requests_received == 10
        assert await wait_for_outcomes(system, 10) == [("Success", True)] * 10


async def test_each_attempt_at_a_request_is_reported(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        for path in ("/error500", "/echo"):
            envelope = system.envelope(5.0, request_idx=77)
            async with system.http.post(system.url + path, json=envelope):
                pass
        assert await wait_for_outcomes(system, 2) == [("Error", False), ("Success", True)]
        assert {f.request.request_idx for f in system.engine.finished} == {77}


async def test_a_slow_engine_gets_every_unit_of_load(tmp_path: Path) -> None:
    """The engine answers after half a second while requests go on."""
    async with with_worker_task(tmp_path) as system:
        system.engine.faults.reports = Fault(delay_s=0.5)
        for _ in range(10):
            await all_at_once(system, "/echo", [system.envelope(100.0) for _ in range(10)])
            seen = system.engine.requests_seen["reports"]
            if seen < 4:
                await system.engine.wait_for(lambda seen=seen: system.engine.requests_seen["reports"] > seen)
        system.engine.faults.clear()
        await system.reported(served=10_000.0)
        assert (system.totals.cur_perf, system.totals.new_load) == (10_000.0, 10_000.0)


@pytest.mark.parametrize("fault", [Fault(refuse=True), Fault(drop=True)])
async def test_nothing_is_lost_while_the_engine_is_down(tmp_path: Path, fault: Fault) -> None:
    async with with_worker_task(tmp_path) as system:
        system.engine.faults.reports = system.engine.faults.completions = fault
        assert system.backend is not None
        system.backend.backend_errored("GPU fell off the bus")
        await system.call("/echo", 5.0)
        await system.engine.wait_for(lambda: system.engine.requests_seen["completions"] > 0)
        await system.call("/echo", 7.0)
        system.engine.faults.clear()
        await system.reported(served=12.0, error_msg="GPU fell off the bus")
        assert system.totals.cur_perf == 12.0
        assert await wait_for_outcomes(system, 2) == [("Success", True)] * 2


async def test_several_engine_addresses_all_get_reports(tmp_path: Path) -> None:
    dead = PortLease()
    async with engine_and_model_server(tmp_path) as system:
        env = {"REPORT_ADDR": f"http://127.0.0.1:{dead.port}/ , {system.engine_url}/e/chat/"}
        async with worker_process(system, tmp_path, Setup(health="/health"), env) as worker:
            system.worker = worker
            await system.ready()
            assert (await system.call("/echo", 5.0))[0] == 200
            await system.reported(served=5.0)
            assert await wait_for_outcomes(system, 1) == [("Success", True)]
            assert system.engine.worker(CONTAINER_ID).endpoint == "chat"
    dead.close()


async def test_a_process_reports_exactly_what_it_did(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path) as system:
        await all_at_once(system, "/echo", [system.envelope(float(n)) for n in range(1, 101)])
        await system.reported(served=5050.0)
        assert system.worker is not None
        system.worker.terminate()
        assert await system.worker.exit_status() == 0
        assert (system.totals.cur_perf, system.totals.new_load) == (5050.0, 5050.0)
        assert len(system.engine.finished) == 100
