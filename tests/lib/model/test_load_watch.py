"""A model that loads for ever: what is told, and the error after a time limit."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest

from lib.model.connection import ModelServer
from lib.model.load_watch import TELL_AFTER_S, LoadWatch
from lib.model.readiness import Cause, Readiness, ReadySignal, State
from lib.model.watch import HealthWatch
from tests.event_loop import run_event_loop_turns
from tests.manual_clock import ManualClock

URL = "http://127.0.0.1:1/health"
HINDRANCE = f"the log says that the model is loaded, but {URL}: health check answered 503"


@dataclass
class LoadingModel:
    """A worker with a load rule and a health check that fails; `told` are the reported errors."""

    clock: ManualClock
    readiness: Readiness
    watch: HealthWatch
    told: list[str] = field(default_factory=list[str])

    async def pass_s(self, seconds: float) -> None:
        await run_event_loop_turns()
        self.clock.advance(seconds)
        await run_event_loop_turns()


@asynccontextmanager
async def loading(limit_s: float | None = None) -> AsyncGenerator[LoadingModel, None]:
    clock = ManualClock()
    readiness = Readiness((ReadySignal.LOG, ReadySignal.HEALTH), False, clock)
    readiness.set_max_perf(1.0, "given")
    watch = HealthWatch(ModelServer("http://127.0.0.1:1"), ("/health",), readiness, clock, clears_all=False)
    watch.last_problem = "health check answered 503"
    here = LoadingModel(clock, readiness, watch)
    readiness.on_change = lambda error_msg, _: here.told.append(error_msg)

    async def describe() -> str:
        return "what is waited for"

    async with anyio.create_task_group() as group:
        group.start_soon(LoadWatch(readiness, watch, limit_s, describe, clock).follow)
        yield here
        group.cancel_scope.cancel()


async def test_a_health_check_that_keeps_failing_is_told_after_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with loading() as here:
        await here.pass_s(10 * TELL_AFTER_S)  # the log says nothing yet
        assert here.told == []
        here.readiness.note_signal(ReadySignal.LOG, "log: loaded")
        await here.pass_s(TELL_AFTER_S - 1)
        assert here.readiness.error_msg == ""
        await here.pass_s(1)
        assert (here.readiness.state, here.readiness.error_msg) == (State.LOADING, HINDRANCE)
        assert here.told == [HINDRANCE]
        here.watch.last_problem = "health check timed out after 10 s"
        await here.pass_s(TELL_AFTER_S)
        assert here.told[1:] == [HINDRANCE.replace("answered 503", "timed out after 10 s")]
        here.readiness.note_signal(ReadySignal.HEALTH, "health check answered 2xx")
        await here.pass_s(10 * TELL_AFTER_S)
        assert (here.readiness.state, here.told[2:]) == (State.READY, [""])
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == here.told[:2]


async def test_a_health_check_that_answers_within_the_minute_is_not_told() -> None:
    async with loading() as here:
        here.readiness.note_signal(ReadySignal.LOG, "log: loaded")
        await here.pass_s(TELL_AFTER_S - 1)
        here.readiness.note_signal(ReadySignal.HEALTH, "health check answered 2xx")
        await here.pass_s(10 * TELL_AFTER_S)
        assert here.told == [""]  # the change to ready


async def test_after_the_limit_a_model_that_still_loads_is_an_error_until_it_is_loaded() -> None:
    async with loading(limit_s=600.0) as here:
        await here.pass_s(599.0)
        assert here.told == []
        await here.pass_s(1.0)
        assert here.readiness.state is State.ERRORED
        text = "the model is not loaded after 600 s (MODEL_LOAD_TIMEOUT_S): what is waited for"
        assert here.readiness.error_msg == text
        here.readiness.note_signal(ReadySignal.LOG, "log: loaded")
        await run_event_loop_turns()
        assert here.readiness.error_msg == text
        here.readiness.note_signal(ReadySignal.HEALTH, "health check answered 2xx")
        assert (here.readiness.state, here.readiness.error_msg) == (State.READY, "")


async def test_the_limit_leaves_another_error_as_it_is() -> None:
    async with loading(limit_s=600.0) as here:
        here.readiness.set_error(Cause.LOG, "CUDA error")
        await here.pass_s(601.0)
        assert here.readiness.error_msg == "CUDA error"
        here.readiness.clear_error(Cause.LOG, "over")
        await run_event_loop_turns()
        assert here.readiness.error_msg.startswith("the model is not loaded after 600 s")


@pytest.mark.parametrize("signals", [[], [ReadySignal.LOG], [ReadySignal.HEALTH]])
async def test_a_model_that_is_loaded_in_time_is_no_error(signals: list[ReadySignal]) -> None:
    clock = ManualClock()
    readiness = Readiness(signals, False, clock)

    async def describe() -> str:
        raise AssertionError("nothing is to be told")

    watch = LoadWatch(readiness, None, 600.0, describe, clock)
    async with anyio.create_task_group() as group:
        group.start_soon(watch.follow)
        await run_event_loop_turns()
        for signal in signals:
            readiness.note_signal(signal, "loaded")
        await run_event_loop_turns()
        clock.advance(601.0)
    assert readiness.error_msg == ""
