"""What the engine is told of real requests (lessons 8 to 11, 13, 14)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from lib.local.faults import Fault
from tests.fakes.worker import Setup
from tests.rig import CONTAINER_ID, MASTER_TOKEN, PortLease, Rig, inner_rig, peers, rig, worker_process


def told_of(rig: Rig) -> list[tuple[str, bool]]:
    """Status and success of each finished request that the engine was told of."""
    return [(f.request.status, f.request.success) for f in rig.engine.finished]


async def outcomes(rig: Rig, count: int) -> list[tuple[str, bool]]:
    await rig.engine.wait_for(lambda: len(rig.engine.finished) >= count)
    return told_of(rig)


async def all_at_once(rig: Rig, path: str, envelopes: Sequence[dict[str, Any]]) -> None:
    """Have the worker answer all of `envelopes`, sent together, with 200."""

    async def send(envelope: dict[str, Any]) -> None:
        async with rig.http.post(rig.url + path, json=envelope) as answer:
            await answer.read()
            assert answer.status == 200

    async with anyio.create_task_group() as tasks:
        for envelope in envelopes:
            tasks.start_soon(send, envelope)


async def test_reports_say_who_and_where(tmp_path: Path) -> None:
    async with inner_rig(tmp_path) as rig:
        report = rig.last_report
        assert (report.id, report.mtoken, report.url) == (CONTAINER_ID, MASTER_TOKEN, rig.url)
        assert (report.max_perf, report.error_msg) == (100.0, "")
        assert report.loadtime > 0
        await rig.call("/echo", 5.0)
        await rig.told(served=5.0)
        assert rig.last_report.loadtime == report.loadtime


@pytest.mark.parametrize(
    ("path", "data", "perf", "told"),
    [
        ("/echo", {}, 5.0, ("Success", True)),
        ("/error422", {}, 5.0, ("Success", True)),  # the model did its part
        ("/error500", {}, 0.0, ("Error", False)),
        ("/close", {}, 0.0, ("Error", False)),
        ("/raising", {"raise": "parser"}, 0.0, ("Error", False)),
        ("/raising", {"raise": "json"}, 0.0, ("Error", False)),
        ("/raising", {"raise": "response"}, 0.0, ("Error", False)),
        ("/raising", {"raise": "errored"}, 0.0, ("Error", False)),
        ("/raising", {"status": 503}, 0.0, ("Error", False)),
    ],
)
async def test_only_what_was_served_counts_as_work(
    tmp_path: Path, path: str, data: dict[str, Any], perf: float, told: tuple[str, bool]
) -> None:
    async with inner_rig(tmp_path) as rig:
        await rig.call(path, 5.0, data=data)
        assert await outcomes(rig, 1) == [told]
        await rig.told(served=perf)
        assert (rig.totals.cur_perf, rig.totals.rej_load) == (perf, 0.0)
        assert rig.last_report.cur_load == 0.0


async def test_a_cancelled_request_is_taken_off_again(tmp_path: Path) -> None:
    async with inner_rig(tmp_path) as rig:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(rig.call, "/held", 5.0)
            await rig.engine.wait_for(lambda: rig.last_report.cur_load == 5.0)
            assert rig.last_report.working_request_idxs
            tasks.cancel_scope.cancel()
        assert await outcomes(rig, 1) == [("Cancelled", True)]
        await rig.call("/echo", 7.0)
        await rig.told(served=7.0)
        assert rig.totals.new_load == 7.0


async def test_a_refused_request_is_told_as_rejected_load(tmp_path: Path) -> None:
    setup = Setup(
        health="/health", handler={"max_queue_time": 0.0}, backend={"allow_parallel_requests": False}
    )
    async with inner_rig(tmp_path, setup) as rig:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(rig.call, "/held", 5.0)
            await rig.model.until(lambda: rig.model.working == 1)
            assert (await rig.call("/echo", 3.0))[0] == 429
            rig.model.release()
        assert sorted(await outcomes(rig, 2)) == [("Rejected", False), ("Success", True)]
        await rig.told(served=5.0)
        assert (rig.totals.new_load, rig.totals.rej_load) == (5.0, 3.0)


async def test_ten_requests_with_one_reqnum_are_ten(tmp_path: Path) -> None:
    async with inner_rig(tmp_path, scheme="url") as rig:
        envelopes = [rig.envelope(2.0, reqnum=7) for _ in range(10)]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(all_at_once, rig, "/held", envelopes)
            await rig.engine.wait_for(lambda: rig.last_report.num_requests_working == 10)
            assert rig.last_report.cur_load == 20.0
            assert len(set(rig.last_report.working_request_idxs)) == 10
            rig.model.release()
        await rig.told(served=20.0)
        assert rig.last_report.num_requests_received == 10
        assert await outcomes(rig, 10) == [("Success", True)] * 10


async def test_each_try_of_a_request_is_told(tmp_path: Path) -> None:
    async with inner_rig(tmp_path) as rig:
        for path in ("/error500", "/echo"):
            envelope = rig.envelope(5.0, request_idx=77)
            async with rig.http.post(rig.url + path, json=envelope):
                pass
        assert await outcomes(rig, 2) == [("Error", False), ("Success", True)]
        assert {f.request.request_idx for f in rig.engine.finished} == {77}


async def test_a_slow_engine_is_told_of_every_unit(tmp_path: Path) -> None:
    """Lesson 9. The engine answers after half a second; requests go on meanwhile."""
    async with inner_rig(tmp_path) as rig:
        rig.engine.faults.reports = Fault(delay_s=0.5)
        for _ in range(10):
            await all_at_once(rig, "/echo", [rig.envelope(100.0) for _ in range(10)])
            seen = rig.engine.requests_seen["reports"]
            if seen < 4:
                await rig.engine.wait_for(lambda seen=seen: rig.engine.requests_seen["reports"] > seen)
        rig.engine.faults.clear()
        await rig.told(served=10_000.0)
        assert (rig.totals.cur_perf, rig.totals.new_load) == (10_000.0, 10_000.0)


@pytest.mark.parametrize("fault", [Fault(refuse=True), Fault(drop=True)])
async def test_nothing_is_lost_while_the_engine_is_down(tmp_path: Path, fault: Fault) -> None:
    async with inner_rig(tmp_path) as rig:
        rig.engine.faults.reports = rig.engine.faults.completions = fault
        assert rig.backend is not None
        rig.backend.backend_errored("GPU fell off the bus")
        await rig.call("/echo", 5.0)
        await rig.engine.wait_for(lambda: rig.engine.requests_seen["completions"] > 0)
        await rig.call("/echo", 7.0)
        rig.engine.faults.clear()
        await rig.told(served=12.0, error_msg="GPU fell off the bus")
        assert rig.totals.cur_perf == 12.0
        assert await outcomes(rig, 2) == [("Success", True)] * 2


async def test_several_addresses_are_one_list_to_every_part(tmp_path: Path) -> None:
    dead = PortLease()
    async with peers(tmp_path) as here:
        env = {"REPORT_ADDR": f"http://127.0.0.1:{dead.port}/ , {here.engine_url}/e/chat/"}
        async with worker_process(here, tmp_path, Setup(health="/health"), env) as worker:
            here.worker = worker
            await here.ready()
            assert (await here.call("/echo", 5.0))[0] == 200
            await here.told(served=5.0)
            assert await outcomes(here, 1) == [("Success", True)]
            assert here.engine.worker(CONTAINER_ID).endpoint == "chat"
    dead.close()


async def test_a_process_reports_exactly_what_it_did(tmp_path: Path) -> None:
    async with rig(tmp_path) as here:
        await all_at_once(here, "/echo", [here.envelope(float(n)) for n in range(1, 101)])
        await here.told(served=5050.0)
        assert here.worker is not None
        here.worker.terminate()
        assert await here.worker.exit_status() == 0
        assert (here.totals.cur_perf, here.totals.new_load) == (5050.0, 5050.0)
        assert len(here.engine.finished) == 100
