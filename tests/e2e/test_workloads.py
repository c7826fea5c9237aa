"""What clients claim is bounded before the engine is told of it (docs/protocol.md, "Counting")."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from lib.runtime.settings import CarrierKind
from tests.fakes.raw_client import connected
from tests.fakes.worker import Setup
from tests.guard import GUARD_S
from tests.system import System, with_worker_task

# The worker has no benchmark, and gives 100 workload/s: an hour of it.
CAP = 360_000.0
MAX_WORKLOAD = 50.0
WITH_MAXIMUM = Setup(health="/health", handler={"max_workload": MAX_WORKLOAD})


@pytest.mark.parametrize("claimed", [CAP, CAP + 1, 1e12, 1e300])
async def test_a_claimed_workload_is_capped(
    tmp_path: Path, claimed: float, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with with_worker_task(tmp_path) as system:
            for _ in range(2):
                assert (await system.call("/echo", claimed))[0] == 200
            assert (await system.call("/echo", 7.0))[0] == 200
            await system.reported(served=2 * CAP + 7.0)
            assert (system.totals.new_load, system.totals.cur_perf) == (2 * CAP + 7.0, 2 * CAP + 7.0)
    warned = [r for r in caplog.records if "the most without a max_workload" in r.getMessage()]
    assert len(warned) == (claimed > CAP)


async def test_the_deficit_of_a_claim_that_is_withdrawn_is_bounded_too(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        system.model.fail_status = 404  # served without work: its load is withdrawn
        assert (await system.call("/echo", 1e300))[0] == 404
        await system.engine.wait_for(lambda: len(system.engine.finished) == 1, GUARD_S)
        system.model.fail_status = None
        assert (await system.call("/echo", 2 * CAP))[0] == 200
        assert (await system.call("/echo", 5.0))[0] == 200
        await system.reported(served=CAP + 5.0)
        assert CAP + 5.0 <= system.totals.new_load <= 2 * CAP + 5.0


@pytest.mark.parametrize("carrier", ["direct", "aiohttp"])
async def test_the_deficit_of_a_claim_that_is_cancelled_is_bounded_too(
    tmp_path: Path, carrier: CarrierKind
) -> None:
    async with with_worker_task(tmp_path, carrier=carrier) as system:
        async with connected(system.url) as client:
            await client.post("/held", system.envelope(1e300))
            await system.engine.wait_for(lambda: system.last_report.cur_load == CAP, GUARD_S)
            client.leave()
        await system.engine.wait_for(lambda: len(system.engine.finished) == 1, GUARD_S)
        assert system.engine.finished[0].request.status == "Cancelled"
        assert (await system.call("/echo", 2 * CAP))[0] == 200
        assert (await system.call("/echo", 5.0))[0] == 200
        await system.reported(served=CAP + 5.0)
        assert (system.totals.cur_perf, system.totals.new_load) == (CAP + 5.0, CAP + 5.0)


@pytest.mark.parametrize("declared", [False, True])
async def test_more_than_max_workload_is_refused(tmp_path: Path, declared: bool) -> None:
    setup = Setup(health="/health", handler={"max_workload": MAX_WORKLOAD}, declared=declared)
    async with with_worker_task(tmp_path, setup) as system:
        async with system.post("/echo", 51.0) as answer:
            assert (answer.status, await answer.json()) == (
                422,
                {"payload": "its workload is 51, more than 50, the most that is accepted"},
            )
        assert (await system.call("/echo", 50.0))[0] == 200
        await system.reported(served=50.0)
        assert (system.totals.new_load, system.totals.rej_load) == (50.0, 0.0)


async def test_the_cost_of_sessions_is_bounded(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, scheme="url") as system:
        for _ in range(10):
            assert await create_session(system, 1e300) == 201
        await system.engine.wait_for(lambda: system.last_report.cur_load == 10 * CAP, GUARD_S)
        assert (await system.call("/echo", 5.0))[0] == 200


async def test_the_cost_of_sessions_is_at_most_the_largest_max_workload(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, WITH_MAXIMUM, scheme="url") as system:
        assert await create_session(system, MAX_WORKLOAD) == 201
        assert await create_session(system, MAX_WORKLOAD + 1) == 422
        await system.engine.wait_for(lambda: system.last_report.cur_load == MAX_WORKLOAD, GUARD_S)
        await system.engine.wait_for(lambda: len(system.engine.finished) == 1, GUARD_S)
        assert system.engine.finished[0].request.status == "Error"


async def create_session(system: System, cost: float) -> int:
    body: dict[str, Any] = {"auth_data": system.auth(cost), "payload": {}}
    async with system.http.post(system.url + "/session/create", json=body) as answer:
        return answer.status
