"""Readiness: from loading to ready, to error and back (docs/operating.md, "States")."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from lib.model.readiness import State
from tests.fakes.worker import ERROR_LINE, READY_LINE, Setup
from tests.guard import GUARD_S
from tests.manual_clock import ManualClock
from tests.system import System, with_worker_process, with_worker_task


def log_setup(tmp_path: Path, **more: str) -> Setup:
    return Setup(log=str(tmp_path / "model.log"), health=more.get("health"))


async def state_is(system: System, state: State) -> None:
    assert system.running is not None
    readiness = system.running.readiness
    with anyio.fail_after(GUARD_S):
        await readiness.until(lambda: readiness.state is state)


async def test_a_worker_process_becomes_ready_by_the_models_log(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path, log_setup(tmp_path), wait=False) as system:
        await system.engine.wait_for(lambda: system.last_report)
        assert system.last_report.loadtime == 0.0
        status, body = await system.call("/echo")
        assert (status, b"loading" in body) == (503, True)
        system.write_log("half of it, model is ")
        system.write_log("ready\n")
        await system.ready()
        assert (await system.call("/echo"))[0] == 200
        system.write_log(f"12:00 {ERROR_LINE}: device-side assert\n")
        assert await system.errored() == f"12:00 {ERROR_LINE}: device-side assert"
        assert (await system.call("/echo"))[0] == 200  # requests are still tried
        system.write_log()
        await system.reported()


async def test_a_ready_line_written_before_the_worker_started_is_found(tmp_path: Path) -> None:
    (tmp_path / "model.log").write_bytes(b"\xff\xfe\n" + f"{READY_LINE}\n".encode())
    async with with_worker_task(tmp_path, log_setup(tmp_path)) as system:
        assert system.last_report.loadtime > 0


async def test_a_worker_logs_what_it_waits_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    setup = log_setup(tmp_path)
    setup.backend = {"clock": clock}

    def reasons() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.getMessage().startswith("not ready: ")]

    caplog.set_level(logging.INFO)
    async with with_worker_task(tmp_path, setup, wait=False) as system:
        await advance_until(clock, lambda: len(reasons()) == 2)
        for text in reasons():
            assert text.startswith("not ready: loading for ")
            assert text.endswith(f"; its log {system.model_log} does not exist")


async def test_a_ready_line_of_the_previous_boot_does_not_make_the_worker_ready(tmp_path: Path) -> None:
    (tmp_path / "model.log").write_text(f"{READY_LINE}\n")
    clock = ManualClock()
    setup = log_setup(tmp_path)
    setup.backend = {"clock": clock}
    async with with_worker_task(tmp_path, setup, wait=False) as system:
        await system.model.stop()
        assert system.running is not None
        watch = system.running.log_watch
        assert watch is not None
        await advance_until(clock, lambda: watch.lines == 1)
        for _ in range(20):
            await step(clock)
        assert system.running.readiness.state is State.LOADING
        await system.model.start()
        await advance_until(
            clock, lambda: system.running is not None and system.running.readiness.state is State.READY
        )


async def test_a_load_rule_and_a_health_check_must_both_hold(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, log_setup(tmp_path, health="/health"), wait=False) as system:
        await system.model.until(lambda: system.model.health_checks >= 2)
        await state_is(system, State.LOADING)
        system.model.health_status = 503
        system.write_log()
        checks = system.model.health_checks
        await system.model.until(lambda: system.model.health_checks >= checks + 1)
        system.model.health_status = 200
        await system.ready()


async def test_a_log_that_is_truncated_in_place_is_followed(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, log_setup(tmp_path), wait=False) as system:
        system.write_log(f"old line\n{ERROR_LINE} of the last boot\n")
        await system.errored()
        system.model_log.write_text(f"{READY_LINE}\n")
        await system.ready()


async def test_an_error_set_by_the_author_holds_until_the_model_is_loaded_again(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, log_setup(tmp_path), wait=False) as system:
        system.write_log()
        await system.ready()
        assert system.backend is not None
        system.backend.backend_errored("out of licences")
        assert await system.errored() == "out of licences"
        system.write_log()
        await system.reported()
        assert system.running is not None
        assert system.running.readiness.state is State.READY


async def test_a_model_server_that_dies_is_an_error_until_it_returns(tmp_path: Path) -> None:
    clock = ManualClock()
    async with with_worker_task(tmp_path, Setup(health="/health", backend={"clock": clock})) as system:
        await system.model.stop()
        assert (await system.call("/echo"))[0] == 502
        await advance_until(clock, lambda: system.last_report.error_msg)
        assert system.last_report.error_msg.endswith(" can't be reached: it refuses connections")
        await system.model.start()
        await advance_until(clock, lambda: not system.last_report.error_msg)
        assert (await system.call("/echo"))[0] == 200


async def test_a_model_server_that_hangs_is_an_error_with_a_message(tmp_path: Path) -> None:
    clock = ManualClock()
    async with with_worker_task(tmp_path, Setup(health="/health", backend={"clock": clock})) as system:
        system.model.health_stalls = True
        await advance_until(clock, lambda: system.last_report.error_msg)
        assert system.last_report.error_msg == "health check timed out after 10 s"
        system.model.health_stalls = False
        await advance_until(clock, lambda: not system.last_report.error_msg)


async def test_a_missing_log_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    setup = log_setup(tmp_path)
    setup.backend = {"clock": clock}
    async with with_worker_task(tmp_path, setup, wait=False):
        await advance_until(clock, lambda: "model.log does not exist" in caplog.text)


async def advance_until(clock: ManualClock, condition: Callable[[], object]) -> None:
    """Advance the clock in steps of a tenth of a second until `condition` holds."""
    with anyio.fail_after(GUARD_S):
        while not condition():
            await step(clock)


async def step(clock: ManualClock) -> None:
    clock.advance(0.1)
    for _ in range(20):  # gives the timers' callbacks and the sockets a turn
        await anyio.lowlevel.checkpoint()
