"""The state, computed from ready signals, the benchmark, the key, errors and draining."""

from __future__ import annotations

import logging
import math
from typing import Any, cast

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_without_the_key_the_step_back_to_loading_says_what_is_missing() -> None:
    here = readiness(ReadySignal.HEALTH, needs_key=True)
    here.note_signal(ReadySignal.HEALTH, "health check answered 2xx")
    here.set_max_perf(5.0, "saved benchmark: 5 workload/s")
    assert (here.timeline[-1].state, here.timeline[-1].reason) == (
        State.LOADING,
        "saved benchmark: 5 workload/s; the engine's public key is still missing",
    )


def test_what_is_missing_is_named() -> None:
    here = readiness(ReadySignal.LOG, ReadySignal.HEALTH, needs_key=True)
    assert (here.max_perf, here.benchmark_perf, here.measured) == (0.0, 0.0, False)
    assert here.missing == ("health", "log", "benchmark", "key")
    assert here.missing_signals == {ReadySignal.LOG, ReadySignal.HEALTH}
    here.note_signal(ReadySignal.HEALTH, "answered")
    assert here.missing == ("log", "benchmark", "key")
    assert here.missing_signals == {ReadySignal.LOG}
    here.set_max_perf(5.0, "measured")
    assert (here.missing, here.measured) == (("log", "key"), True)
    here.note_key()
    here.note_signal(ReadySignal.LOG, "loaded")
    assert here.missing == ()


def test_a_moved_throughput_lasts_until_it_is_set() -> None:
    here = ready()
    here.move_max_perf(7.0)
    assert (here.max_perf, here.benchmark_perf) == (7.0, 5.0)
    here.set_max_perf(6.0, "measured")
    assert (here.max_perf, here.benchmark_perf) == (6.0, 6.0)


def test_errors_have_the_times_at_which_they_last_came() -> None:
    clock = ManualClock()
    here = ready(clock)
    assert here.error_s() == here.error_s(Cause.LOG, Cause.HEALTH) == -math.inf
    here.set_error(Cause.LOG, "CUDA error")
    first_s = clock.monotonic()
    clock.advance(1.0)
    here.set_error(Cause.HEALTH, "timed out")
    here.clear_error(Cause.LOG, "well again")
    assert here.error_s(Cause.LOG) == first_s
    assert here.error_s(Cause.LOG, Cause.HEALTH, Cause.AUTHOR) == first_s + 1.0


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


def test_loadtime_counts_from_its_own_start_without_an_age_of_the_process() -> None:
    clock = ManualClock()
    here = readiness(ReadySignal.LOG, clock=clock)
    here.set_max_perf(5.0, "given")
    clock.advance(3.0)
    here.note_signal(ReadySignal.LOG, "loaded")
    assert here.loadtime_s == 3.0


@pytest.mark.parametrize("cause", [Cause.LOG, Cause.AUTHOR, Cause.BENCHMARK, Cause.PROBE])
def test_a_new_loaded_line_clears_these_errors(cause: Cause) -> None:
    here = ready()
    here.set_error(cause, "broken")
    assert (here.state, here.error_msg) == (State.ERRORED, "broken")
    here.note_signal(ReadySignal.LOG, "loaded")
    assert (here.state, here.error_msg) == (State.READY, "")


@pytest.mark.parametrize("cause", [Cause.HEALTH, Cause.CONNECTION, Cause.WORKER])
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


# Any sequence of events, compared with a state computed anew from all of them

STEPS: st.SearchStrategy[tuple[str, Any]] = st.one_of(
    st.tuples(st.just("signal"), st.sampled_from(ReadySignal)),
    st.tuples(st.sampled_from(["key", "perf", "perf"]), st.just(None)),
    st.tuples(st.just("set"), st.tuples(st.sampled_from(Cause), st.sampled_from("ab"))),
    st.tuples(st.just("hindrance"), st.sampled_from("xy")),
    st.tuples(st.just("clear"), st.sampled_from([cause for cause in Cause if cause is not Cause.GPU])),
)


class ReadinessModel:
    """Plain facts, from which the state and the error follow."""

    def __init__(self, signals: set[ReadySignal], needs_key: bool) -> None:
        self.missing, self.needs_key, self.measured = signals, needs_key, False
        self.errors: list[tuple[Cause, str]] = []
        self.hindrance = ""

    def play(self, kind: str, what: Any) -> None:
        ended: set[Cause] = set()
        if kind == "signal":
            self.missing = self.missing - {what}
            if what == ReadySignal.LOG:
                ended = {Cause.LOG, Cause.AUTHOR, Cause.BENCHMARK, Cause.PROBE}
            if not self.missing:
                ended.add(Cause.LOAD)
        elif kind == "hindrance":
            self.hindrance = what
        elif kind == "key":
            self.needs_key = False
        elif kind == "perf":
            self.measured, ended = True, {Cause.BENCHMARK}
        else:
            ended = {what} if kind == "clear" else {what[0]}
        self.errors = [error for error in self.errors if error[0] not in ended]
        if kind == "set":
            self.errors.append(cast("tuple[Cause, str]", what))

    @property
    def seen(self) -> tuple[State, str]:
        if self.errors:
            return State.ERRORED, dict(self.errors).get(Cause.GPU, self.errors[-1][1])
        if self.missing or (self.measured and self.needs_key):
            return State.LOADING, self.hindrance if self.missing else ""
        return (State.READY if self.measured else State.BENCHMARKING), ""


def play(here: Readiness, kind: str, what: Any) -> None:
    if kind == "signal":
        here.note_signal(what, "signal")
    elif kind == "key":
        here.note_key()
    elif kind == "hindrance":
        here.note_hindrance(what)
    elif kind == "perf":
        here.set_max_perf(1.0, "measured")
    elif kind == "set":
        here.set_error(*what)
    else:
        here.clear_error(what, "well again")


@given(
    st.sets(st.sampled_from(ReadySignal), min_size=1),
    st.booleans(),
    st.booleans(),
    st.lists(STEPS, max_size=40) | st.lists(STEPS, min_size=12, max_size=40),
)
def test_the_state_follows_from_all_that_has_come(
    signals: set[ReadySignal], needs_key: bool, is_ready: bool, steps: list[tuple[str, Any]]
) -> None:
    """`is_ready`: the events that make it ready come first."""
    if is_ready:
        steps = [("key", None), ("perf", None), *(("signal", signal) for signal in signals), *steps]
    here, model = readiness(*signals, needs_key=needs_key), ReadinessModel(signals, needs_key)
    changes, before = changes_of(here), (here.state, here.error_msg)
    for kind, what in steps:
        play(here, kind, what)
        model.play(kind, what)
        now = (here.state, here.error_msg)
        assert now == model.seen
        assert all(here.has_error(cause) == (cause in dict(model.errors)) for cause in Cause)
        assert changes == ([] if now == before else [(now[1], now[0] is not before[0])])
        changes.clear()
        before = now
    here.drain()
    assert here.state is State.DRAINING
