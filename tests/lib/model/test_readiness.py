"""The state, computed from ready signals, the benchmark, the key, errors and draining."""

from __future__ import annotations

import logging

import anyio
import pytest

from lib.model.readiness import MAX_ERROR_LENGTH, TIMELINE_LENGTH, Cause, Readiness, ReadySignal, State
from tests.manual_clock import ManualClock


def readiness(*signals: ReadySignal, needs_key: bool = False, clock: ManualClock | None = None) -> Readiness:
    return Readiness(signals, needs_key, clock or ManualClock())


def ready(clock: ManualClock | None = None) -> Readiness:
    here = readiness(ReadySignal.LOG, clock=clock)
    here.note_signal(ReadySignal.LOG, "loaded")
    here.set_max_perf(5.0, "measured")
    return here


def changes_of(here: Readiness) -> list[tuple[str, bool]]:
    """The arguments of each later call of `on_change`."""
    changes: list[tuple[str, bool]] = []
    here.on_change = lambda error_msg, state_changed: changes.append((error_msg, state_changed))
    return changes


def test_ready_needs_every_signal_a_benchmark_and_the_key() -> None:
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
    here = ready()
    here.set_error(cause, "broken")
    assert (here.state, here.error_msg) == (State.ERRORED, "broken")
    here.note_signal(ReadySignal.LOG, "loaded")
    assert (here.state, here.error_msg) == (State.READY, "")


@pytest.mark.parametrize("cause", [Cause.HEALTH, Cause.WORKER])
def test_a_new_loaded_line_does_not_clear_these_errors(cause: Cause) -> None:
    here = ready()
    here.set_error(cause, "broken")
    here.note_signal(ReadySignal.LOG, "loaded")
    assert here.error_msg == "broken"


def test_an_error_is_cleared_by_its_own_cause_only() -> None:
    here = ready()
    here.set_error(Cause.LOG, "CUDA error")
    here.set_error(Cause.HEALTH, "health check timed out")
    assert here.error_msg == "health check timed out"
    here.clear_error(Cause.HEALTH, "answers again")
    assert (here.state, here.error_msg) == (State.ERRORED, "CUDA error")
    here.clear_error(Cause.AUTHOR, "no such error")
    assert here.state is State.ERRORED


def test_draining_is_final_and_keeps_the_error() -> None:
    here = ready()
    here.set_error(Cause.LOG, "CUDA error")
    here.drain()
    here.note_signal(ReadySignal.LOG, "loaded")
    assert here.state is State.DRAINING
    here.set_error(Cause.WORKER, "bug")
    assert (here.state, here.error_msg) == (State.DRAINING, "bug")


def test_an_error_message_is_never_empty_and_has_a_limited_length() -> None:
    here = ready()
    here.set_error(Cause.AUTHOR, " \n")
    assert here.error_msg == "unknown error"
    here.set_error(Cause.AUTHOR, "x" * 5000)
    assert len(here.error_msg) == MAX_ERROR_LENGTH


def test_on_change_is_called_for_changes_only() -> None:
    here = ready()
    changes = changes_of(here)
    here.note_signal(ReadySignal.LOG, "loaded, once more")
    here.clear_error(Cause.LOG, "no such error")
    assert changes == []
    here.set_error(Cause.LOG, "first")
    here.set_error(Cause.LOG, "first")
    here.set_error(Cause.LOG, "second")
    here.note_signal(ReadySignal.LOG, "loaded")
    here.drain()
    assert changes == [("first", True), ("second", False), ("", True), ("", True)]


def test_the_timeline_has_times_and_reasons_and_a_limited_length(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock(wall_s=100.0)
    with caplog.at_level(logging.INFO):
        here = ready(clock)
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


async def test_until_ends_when_the_condition_holds_or_after_its_time_limit() -> None:
    clock = ManualClock()
    here = readiness(ReadySignal.LOG, clock=clock)
    results: list[bool] = []

    async def wait(limit_s: float) -> None:
        results.append(await here.until(lambda: here.loaded, limit_s))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, 5.0)
        await clock.wait_for_timers(1)
        here.set_error(Cause.LOG, "not loaded")
        clock.advance(5.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, 5.0)
        await clock.wait_for_timers(1)
        here.note_signal(ReadySignal.LOG, "loaded")
    assert results == [False, True]
    assert clock.pending == 0


def test_the_error_of_a_gpu_stays_and_comes_first() -> None:
    here = ready()
    here.set_error(Cause.LOG, "CUDA error")
    changes = changes_of(here)
    here.set_error(Cause.GPU, "GPU 0 is gone")
    here.set_error(Cause.CONNECTION, "refused")
    here.set_error(Cause.HEALTH, "no answer")
    assert here.error_msg == "GPU 0 is gone"
    for cause in set(Cause) - {Cause.GPU}:
        here.clear_error(cause, "cleared")
    here.note_signal(ReadySignal.LOG, "loaded")
    here.note_signal(ReadySignal.HEALTH, "answered")
    here.set_max_perf(7.0, "measured")
    assert (here.state, here.error_msg) == (State.ERRORED, "GPU 0 is gone")
    assert changes == [("GPU 0 is gone", False)]
    here.drain()
    assert here.state is State.DRAINING
