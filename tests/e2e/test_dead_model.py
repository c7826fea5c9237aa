"""A model server that is killed under load, and started again: processes, on both carriers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from lib.runtime.settings import CarrierKind
from tests.fakes.mortal_model import MortalModel, mortal_model
from tests.fakes.worker import READY_LINE, Setup
from tests.system import PortLease, System, engine_and_model_server, worker_process

RATE = 20.0  # requests a second
TOLD_WITHIN_S = 2.0
BACK_WITHIN_S = 3.0
REASON = "it refuses connections"
OF_STATUS = {200: "Success", 502: "Error", 503: "Rejected"}


class Load:
    """Requests at `RATE`. `answers` has the time, the status and the `Retry-After` of each answer."""

    def __init__(self, system: System) -> None:
        self.answers: list[tuple[float, int, str | None]] = []
        self._system = system
        self._is_over = False

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            while not self._is_over:
                tasks.start_soon(self._ask)
                await asyncio.sleep(1 / RATE)

    def end(self) -> None:
        self._is_over = True

    async def _ask(self) -> None:
        async with self._system.post("/echo") as answer:
            await answer.read()
            self.answers.append((time.monotonic(), answer.status, answer.headers.get("Retry-After")))

    def statuses(self, since_s: float = 0.0, until_s: float = float("inf")) -> Counter[int]:
        return Counter(status for at, status, _ in self.answers if since_s <= at < until_s)


async def until_reported(system: System, is_error: bool, limit_s: float) -> float:
    """Return the time at which the worker was seen to report an error, or none any more."""
    await system.engine.wait_for(lambda: bool(system.last_report.error_msg) is is_error, limit_s)
    return time.monotonic()


async def killed_and_started(system: System, model: MortalModel, load: Load) -> None:
    """Kill the model server for some time, and check what the engine is told and clients are answered."""
    await asyncio.sleep(0.5)
    await model.kill()
    told_s = await until_reported(system, True, TOLD_WITHIN_S)
    address = model.url.removeprefix("http://")
    assert system.last_report.error_msg == f"the model server at {address} can't be reached: {REASON}"
    await asyncio.sleep(1.5)
    dead = load.statuses(told_s)
    await model.start()
    back_s = await until_reported(system, False, BACK_WITHIN_S)
    await asyncio.sleep(0.5)
    load.end()
    assert not dead[200]
    assert dead[503] >= 3 * dead[502]  # one is tried every half second
    assert load.statuses(back_s)[200] > 0


@pytest.mark.parametrize("has_check", [True, False], ids=["health check", "plain connect"])
@pytest.mark.parametrize("carrier", ["direct", "aiohttp"])
async def test_a_model_server_killed_under_load(
    tmp_path: Path, carrier: CarrierKind, has_check: bool
) -> None:
    log = tmp_path / "model.log"
    log.write_text(f"{READY_LINE}\n")
    setup = Setup(health="/health") if has_check else Setup(log=str(log))
    with closing(PortLease()) as lease:
        async with mortal_model(lease.port) as model, engine_and_model_server(tmp_path) as system:
            load, env = Load(system), {"TEST_MODEL_URL": model.url, "CARRIER": carrier}
            async with worker_process(system, tmp_path, setup, env):
                await system.ready()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(load.run)
                    await killed_and_started(system, model, load)
            assert all((status == 503) == (retry is not None) for _, status, retry in load.answers)
            counts = Counter(OF_STATUS[status] for _, status, _ in load.answers)
            assert Counter(f.request.status for f in system.engine.finished) == counts
            assert system.totals.cur_perf == counts["Success"]
            assert system.last_report.num_requests_working == 0
