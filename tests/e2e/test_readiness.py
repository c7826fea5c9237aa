"""From loading to ready, to an error and back, with a real model server behind (lessons 20 to 25)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from lib.model.readiness import State
from tests.fakes.worker import ERROR_LINE, READY_LINE, Setup
from tests.manual_clock import ManualClock
from tests.system import System, with_worker_process, with_worker_task


def by_log(tmp_path: Path, **more: str) -> Setup:
    return Setup(log=str(tmp_path / "model.log"), health=more.get("health"))


async def state_is(system: System, state: State) -> None:
    assert system.running is not None
    readiness = system.running.readiness
    with anyio.fail_after(20):
        await readiness.until(lambda: readiness.state is state)


async def test_a_process_is_ready_by_its_models_log(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path, by_log(tmp_path), wait=False) as here:
        await here.engine.wait_for(lambda: here.last_report, 20)
        assert here.last_report.loadtime == 0.0
        status, body = await here.call("/echo")
        assert (status, b"loading" in body) == (503, True)
        here.write_log("half of it, model is ")
        here.write_log("ready\n")
        await here.ready()
        assert (await here.call("/echo"))[0] == 200
        here.write_log(f"12:00 {ERROR_LINE}: device-side assert\n")
        assert await here.errored() == f"12:00 {ERROR_LINE}: device-side assert"
        assert (await here.call("/echo"))[0] == 200  # the model may answer still: it is tried
        here.write_log()
        await here.told()


async def test_the_line_of_a_model_server_that_was_quicker_is_found(tmp_path: Path) -> None:
    (tmp_path / "model.log").write_bytes(b"\xff\xfe\n" + f"{READY_LINE}\n".encode())
    async with with_worker_task(tmp_path, by_log(tmp_path)) as system:
        assert system.last_report.loadtime > 0


async def test_the_line_of_the_previous_boot_makes_no_dead_server_ready(tmp_path: Path) -> None:
    (tmp_path / "model.log").write_text(f"{READY_LINE}\n")
    clock = ManualClock()
    setup = by_log(tmp_path)
    setup.backend = {"clock": clock}
    async with with_worker_task(tmp_path, setup, wait=False) as system:
        await system.model.stop()
        assert system.running is not None
        watch = system.running.log_watch
        assert watch is not None
        await passing(clock, lambda: watch.lines == 1)
        for _ in range(20):
            await step(clock)
        assert system.running.readiness.state is State.LOADING
        await system.model.start()
        await passing(
            clock, lambda: system.running is not None and system.running.readiness.state is State.READY
        )


async def test_a_load_rule_and_a_health_check_must_both_hold(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, by_log(tmp_path, health="/health"), wait=False) as system:
        await system.model.until(lambda: system.model.health_checks >= 2)
        await state_is(system, State.LOADING)
        system.model.health_status = 503
        system.write_log()
        checks = system.model.health_checks
        await system.model.until(lambda: system.model.health_checks >= checks + 1)
        system.model.health_status = 200
        await system.ready()


async def test_a_log_that_is_truncated_in_place_is_followed(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, by_log(tmp_path), wait=False) as system:
        system.write_log(f"old line\n{ERROR_LINE} of the last boot\n")
        await system.errored()
        system.model_log.write_text(f"{READY_LINE}\n")
        await system.ready()


async def test_an_authors_own_error_holds_until_the_model_is_loaded_anew(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, by_log(tmp_path), wait=False) as system:
        system.write_log()
        await system.ready()
        assert system.backend is not None
        system.backend.backend_errored("out of licences")
        assert await system.errored() == "out of licences"
        system.write_log()
        await system.told()
        assert system.running is not None
        assert system.running.readiness.state is State.READY


async def test_a_model_server_that_dies_and_comes_back(tmp_path: Path) -> None:
    clock = ManualClock()
    async with with_worker_task(tmp_path, Setup(health="/health", backend={"clock": clock})) as system:
        await system.model.stop()
        assert (await system.call("/echo"))[0] == 502
        await passing(clock, lambda: system.last_report.error_msg)
        assert system.last_report.error_msg.startswith("health check failed: ")
        await system.model.start()
        await passing(clock, lambda: not system.last_report.error_msg)
        assert (await system.call("/echo"))[0] == 200


async def test_a_model_server_that_hangs_is_an_error_with_a_message(tmp_path: Path) -> None:
    clock = ManualClock()
    async with with_worker_task(tmp_path, Setup(health="/health", backend={"clock": clock})) as system:
        system.model.health_stalls = True
        await passing(clock, lambda: system.last_report.error_msg)
        assert system.last_report.error_msg == "health check timed out after 10 s"
        system.model.health_stalls = False
        await passing(clock, lambda: not system.last_report.error_msg)


async def test_a_missing_log_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    setup = by_log(tmp_path)
    setup.backend = {"clock": clock}
    async with with_worker_task(tmp_path, setup, wait=False):
        await passing(clock, lambda: "model.log does not exist" in caplog.text)


async def passing(clock: ManualClock, condition: Callable[[], object]) -> None:
    """Let time pass, a tenth of a second at a turn, until `condition` holds."""
    with anyio.fail_after(20):
        while not condition():
            await step(clock)


async def step(clock: ManualClock) -> None:
    clock.advance(0.1)
    for _ in range(20):  # what falls due has its turn, and the sockets theirs
        await anyio.lowlevel.checkpoint()
