"""The state, out of signs, measurement, key, errors and draining (lessons 17 to 24)."""

from __future__ import annotations

import logging

import anyio
import pytest

from lib.model.readiness import MAX_ERROR_LENGTH, TIMELINE_LENGTH, Cause, Readiness, ReadySignal, State
from tests.manual_clock import ManualClock


def readiness(*signs: ReadySignal, needs_key: bool = False, clock: ManualClock | None = None) -> Readiness:
    return Readiness(signs, needs_key, clock or ManualClock())


def ready_one(clock: ManualClock | None = None) -> Readiness:
    here = readiness(ReadySignal.LOG, clock=clock)
    here.note_signal(ReadySignal.LOG, "loaded")
    here.set_max_perf(5.0, "measured")
    return here


def told(here: Readiness) -> list[tuple[str, bool]]:
    changes: list[tuple[str, bool]] = []
    here.on_change = lambda error_msg, moved: changes.append((error_msg, moved))
    return changes


def test_the_way_to_ready() -> None:
    here = readiness(ReadySignal.LOG, ReadySignal.HEALTH, needs_key=True)
    assert here.state is State.LOADING
    here.note_signal(ReadySignal.HEALTH, "answered")
    assert here.state is State.LOADING
    here.note_signal(ReadySignal.LOG, "loaded")
    assert here.state is State.BENCHMARKING
    here.set_max_perf(5.0, "measured")
    assert here.state is State.LOADING  # no key: no request can be verified
    here.note_key()
    assert here.state is State.READY
    assert here.max_perf == 5.0


def test_loadtime_counts_from_the_start_of_the_process_and_is_set_once() -> None:
    clock = ManualClock()
    here = Readiness([ReadySignal.LOG], False, clock, process_age_s=2.0)
    clock.advance(3.0)
    here.note_signal(ReadySignal.LOG, "loaded")
    assert here.loadtime_s == 0.0
    clock.advance(4.0)
    here.set_max_perf(5.0, "measured")
    assert here.loadtime_s == 9.0
    clock.advance(1.0)
    here.set_error(Cause.LOG, "CUDA error")
    here.note_signal(ReadySignal.LOG, "loaded")
    assert here.loadtime_s == 9.0


@pytest.mark.parametrize("cause", [Cause.LOG, Cause.AUTHOR, Cause.BENCHMARK])
def test_a_new_loaded_line_clears_these_errors(cause: Cause) -> None:
    here = ready_one()
    here.set_error(cause, "broken")
    assert (here.state, here.error_msg) == (State.ERRORED, "broken")
    here.note_signal(ReadySignal.LOG, "loaded")
    assert (here.state, here.error_msg) == (State.READY, "")


@pytest.mark.parametrize("cause", [Cause.HEALTH, Cause.WORKER])
def test_a_new_loaded_line_leaves_the_others(cause: Cause) -> None:
    here = ready_one()
    here.set_error(cause, "broken")
    here.note_signal(ReadySignal.LOG, "loaded")
    assert here.error_msg == "broken"


def test_only_the_causes_own_error_is_taken_back() -> None:
    here = ready_one()
    here.set_error(Cause.LOG, "CUDA error")
    here.set_error(Cause.HEALTH, "health check timed out")
    assert here.error_msg == "health check timed out"
    here.clear_error(Cause.HEALTH, "answers again")
    assert (here.state, here.error_msg) == (State.ERRORED, "CUDA error")
    here.clear_error(Cause.AUTHOR, "nothing to take back")
    assert here.state is State.ERRORED


def test_draining_is_for_good_and_keeps_the_error() -> None:
    here = ready_one()
    here.set_error(Cause.LOG, "CUDA error")
    here.drain()
    here.note_signal(ReadySignal.LOG, "loaded")
    assert here.state is State.DRAINING
    here.set_error(Cause.WORKER, "bug")
    assert (here.state, here.error_msg) == (State.DRAINING, "bug")


def test_an_error_has_a_message_of_bounded_length() -> None:
    here = ready_one()
    here.set_error(Cause.AUTHOR, " \n")
    assert here.error_msg == "unknown error"
    here.set_error(Cause.AUTHOR, "x" * 5000)
    assert len(here.error_msg) == MAX_ERROR_LENGTH


def test_changes_are_told_and_nothing_else_is() -> None:
    here = ready_one()
    changes = told(here)
    here.note_signal(ReadySignal.LOG, "loaded, once more")
    here.clear_error(Cause.LOG, "nothing to take back")
    assert changes == []
    here.set_error(Cause.LOG, "first")
    here.set_error(Cause.LOG, "first")
    here.set_error(Cause.LOG, "second")
    here.note_signal(ReadySignal.LOG, "loaded")
    here.drain()
    assert changes == [("first", True), ("second", False), ("", True), ("", True)]


def test_the_timeline_says_when_and_why_and_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock(wall_s=100.0)
    with caplog.at_level(logging.INFO):
        here = ready_one(clock)
        clock.advance(1.0)
        here.set_error(Cause.LOG, "CUDA error")
    assert [(c.at, c.state.value, c.reason) for c in here.timeline] == [
        (100.0, "loading", "started"),
        (100.0, "benchmarking", "loaded"),
        (100.0, "ready", "measured"),
        (101.0, "errored", "log: CUDA error"),
    ]
    assert [r.levelno for r in caplog.records] == [logging.INFO, logging.INFO, logging.WARNING]
    for _ in range(TIMELINE_LENGTH):
        here.set_error(Cause.LOG, "CUDA error")
        here.note_signal(ReadySignal.LOG, "loaded")
    assert len(here.timeline) == TIMELINE_LENGTH


async def test_until_is_over_when_it_holds_or_when_time_is_up() -> None:
    clock = ManualClock()
    here = readiness(ReadySignal.LOG, clock=clock)
    held: list[bool] = []

    async def wait(limit_s: float) -> None:
        held.append(await here.until(lambda: here.loaded, limit_s))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, 5.0)
        await clock.wait_for_timers(1)
        here.set_error(Cause.LOG, "no sign of it")
        clock.advance(5.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, 5.0)
        await clock.wait_for_timers(1)
        here.note_signal(ReadySignal.LOG, "loaded")
    assert held == [False, True]
    assert clock.pending == 0
