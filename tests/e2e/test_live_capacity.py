"""A real worker sees its capacity in its requests, and reports it with `LIVE_CAPACITY`; in virtual time."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from lib.life.stop import Stop
from lib.runtime.clock import sleep
from lib.runtime.settings import CarrierKind, Settings
from lib.server import serve
from tests.e2e.test_scenario import TimedModel
from tests.fakes.worker import Setup, build
from tests.system import PortLease
from tests.virtual_time import VirtualClock, in_virtual_time

STATED, SPEED = 100.0, 50.0
WORKLOAD = 25.0
CLIENTS = 3
DURATION_S = 600.0


async def observed(
    directory: Path, carrier: CarrierKind, is_moving: bool, clock: VirtualClock
) -> tuple[dict[str, Any], str]:
    """Keep a worker of one request at a time busy; return its `/status` and its `/metrics`."""
    leases = (PortLease(), PortLease())
    settings = Settings(
        container_id=0,
        engine="none",
        public_url=f"http://127.0.0.1:{leases[0].port}",
        worker_port=leases[0].port,
        worker_http_port=leases[1].port,
        carrier=carrier,
        live_capacity=is_moving,
    )
    loopback_url = f"http://127.0.0.1:{leases[1].port}"
    model, stop, listening = TimedModel(clock=clock, speed=SPEED), Stop(), anyio.Event()
    await model.start()
    model.wake()
    backend = {"allow_parallel_requests": False, "max_perf": STATED, "clock": clock}
    worker = build(model.url, Setup(health="/health", backend=backend))

    async def ask(http: aiohttp.ClientSession) -> None:
        while True:
            async with http.post(f"{settings.public_url}/echo", json={"workload": WORKLOAD}) as answer:
                await answer.read()
                assert answer.status == 200

    async def run() -> None:
        await serve(
            *worker, settings, stop, directory=directory, started=lambda _: listening.set(), host="127.0.0.1"
        )

    timeout = aiohttp.ClientTimeout(total=None)
    status: dict[str, Any] = {}
    metrics = ""
    async with anyio.create_task_group() as tasks, aiohttp.ClientSession(timeout=timeout) as http:
        tasks.start_soon(run)
        await listening.wait()
        readiness = worker[0].running.readiness
        await readiness.until(lambda: readiness.state.value == "ready")
        async with anyio.create_task_group() as clients:
            for _ in range(CLIENTS):
                clients.start_soon(ask, http)
            await sleep(clock, DURATION_S)
            async with http.get(f"{loopback_url}/status") as answer:
                status = await answer.json()
            async with http.get(f"{loopback_url}/metrics") as answer:
                metrics = await answer.text()
            clients.cancel_scope.cancel()
        stop.ask()
    await model.stop()
    for lease in leases:
        lease.close()
    return status, metrics


@pytest.mark.parametrize("carrier", ["direct", "aiohttp"])
@pytest.mark.parametrize("is_moving", [True, False])
def test_requests_show_the_capacity_of_a_worker(
    tmp_path: Path, carrier: CarrierKind, is_moving: bool
) -> None:
    status, metrics = in_virtual_time(partial(observed, tmp_path, carrier, is_moving))
    assert status["observed"]["workload_per_second"] == pytest.approx(SPEED, rel=0.02)
    assert status["observed"]["is_enough"]
    assert status["observed"]["at"] == pytest.approx(status["now"], abs=2.0)
    assert status["max_perf"] == (pytest.approx(SPEED, rel=0.05) if is_moving else STATED)
    lines = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line.startswith("pyworker_workload"))
    assert float(lines["pyworker_workload_per_second_observed"]) == pytest.approx(SPEED, rel=0.02)
    assert float(lines["pyworker_workload_per_second_max"]) == pytest.approx(status["max_perf"], rel=0.01)
