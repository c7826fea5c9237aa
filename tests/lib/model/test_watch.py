"""The states that the model server's log and its health check lead to."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from lib.data_types import LogAction
from lib.model.connection import ModelServer
from lib.model.log_tail import MISSING_WARN_AFTER_S, POLL_INTERVAL_S
from lib.model.readiness import Cause, Readiness, ReadySignal, State
from lib.model.watch import (
    CONNECT_INTERVAL_S,
    FAILURES_UNTIL_ERROR,
    HEALTH_INTERVAL_LOADING_S,
    HEALTH_INTERVAL_S,
    HEALTH_TIMEOUT_S,
    MAX_KEPT_LINE,
    HealthWatch,
    LogRule,
    LogWatch,
)
from tests.fakes.model_server import MaliciousModel, malicious_model
from tests.guard import GUARD_S
from tests.manual_clock import ManualClock

LOADED, BROKEN = "model is ready", "CUDA error"
RULES = [(LogAction.ModelLoaded, LOADED), (LogAction.ModelError, BROKEN)]


@dataclass
class Monitored:
    """A model server, and the readiness that is computed from its log and its health check."""

    model: MaliciousModel
    server: ModelServer
    readiness: Readiness
    clock: ManualClock

    async def clock_passes(self, seconds: float) -> None:
        """Let the time pass once a timer is set."""
        await self.clock.wait_for_timer(seconds)
        self.clock.advance(seconds)

    async def until(self, state: State) -> None:
        with anyio.fail_after(GUARD_S):
            await self.readiness.until(lambda: self.readiness.state is state)


class SlowToAccept(ModelServer):
    """Accepts a connection once `accepted` is set."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.asked, self.accepted = anyio.Event(), anyio.Event()

    async def accepts_connections(self, limit_s: float = 2.0) -> bool:
        self.asked.set()
        await self.accepted.wait()
        return True


@asynccontextmanager
async def monitored(*signals: ReadySignal, perf: float | None = 1.0) -> AsyncGenerator[Monitored, None]:
    """Yield a model server and its readiness, with the throughput `perf`; None: not measured yet."""
    clock = ManualClock()
    async with malicious_model() as model, ModelServer(model.url) as server:
        readiness = Readiness(signals, False, clock)
        if perf is not None:
            readiness.set_max_perf(perf, "given")
        yield Monitored(model, server, readiness, clock)


# The log


@asynccontextmanager
async def watched(
    here: Monitored, path: Path, rules: Sequence[tuple[LogAction, str]] = RULES
) -> AsyncGenerator[LogWatch, None]:
    """Yield a watch that confirms "loaded" lines; the test passes it the lines."""
    watch = LogWatch(path, [LogRule(a, t) for a, t in rules], here.server, here.readiness, here.clock)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.confirm_loaded)
        yield watch
        tasks.cancel_scope.cancel()


async def test_a_loaded_line_counts_immediately_if_the_server_listens(tmp_path: Path) -> None:
    async with monitored(ReadySignal.LOG) as here, watched(here, tmp_path) as watch:
        watch.on_line("12:00 INFO Model Is Ready")  # the case of letters matters
        assert here.readiness.state is State.LOADING
        watch.on_line(f"12:00 INFO {LOADED}, listening")
        await here.until(State.READY)
        assert here.readiness.timeline[-1].reason == f"log: 12:00 INFO {LOADED}, listening"


async def test_the_model_servers_key_is_in_no_line(tmp_path: Path) -> None:
    async with monitored(ReadySignal.LOG) as here, watched(here, tmp_path) as watch:
        here.server.api_key = "k-123"
        watch.on_line("arguments: {'api_key': ['k-123'], 'other': 'k-12'}")
        assert watch.last_line == "arguments: {'api_key': ['***'], 'other': 'k-12'}"
        watch.on_line(f"{BROKEN}: k-123")
        assert here.readiness.error_msg == f"{BROKEN}: ***"
        assert "k-123" not in f"{watch.last_lines} {watch.rules}"


async def test_a_stale_loaded_line_does_not_make_a_dead_server_ready(tmp_path: Path) -> None:
    async with monitored(ReadySignal.LOG) as here, watched(here, tmp_path) as watch:
        await here.model.stop()
        watch.on_line(LOADED)
        for _ in range(3):
            await here.clock.wait_for_timer(CONNECT_INTERVAL_S)
            assert here.readiness.state is State.LOADING
            here.clock.advance(CONNECT_INTERVAL_S)
        await here.clock.wait_for_timer(CONNECT_INTERVAL_S)
        await here.model.start()
        here.clock.advance(CONNECT_INTERVAL_S)
        await here.until(State.READY)


async def test_an_error_after_a_loaded_line_cancels_it(tmp_path: Path) -> None:
    async with monitored(ReadySignal.LOG) as here, watched(here, tmp_path) as watch:
        await here.model.stop()
        watch.on_line(LOADED)
        await here.clock.wait_for_timer(CONNECT_INTERVAL_S)
        watch.on_line(f"{BROKEN}: out of memory")
        await here.model.start()
        here.clock.advance(CONNECT_INTERVAL_S)
        assert here.readiness.error_msg == f"{BROKEN}: out of memory"
        watch.on_line(LOADED)
        await here.until(State.READY)


async def test_an_error_while_a_loaded_line_is_being_confirmed_cancels_it(tmp_path: Path) -> None:
    async with monitored(ReadySignal.LOG) as here:
        here.server = server = SlowToAccept(here.model.url)
        async with watched(here, tmp_path) as watch:
            watch.on_line(LOADED)
            await server.asked.wait()
            watch.on_line(BROKEN)
            server.accepted.set()
            await anyio.wait_all_tasks_blocked()
            assert here.readiness.state is State.ERRORED
            assert not here.readiness.loaded


async def test_a_line_that_matches_both_rules_is_an_error(tmp_path: Path) -> None:
    async with monitored(ReadySignal.LOG) as here, watched(here, tmp_path) as watch:
        watch.on_line(f"{LOADED}, but {BROKEN}")
        assert here.readiness.state is State.ERRORED


async def test_a_loaded_line_is_confirmed_while_more_of_them_arrive(tmp_path: Path) -> None:
    async with monitored(ReadySignal.LOG) as here, watched(here, tmp_path) as watch:
        with anyio.fail_after(GUARD_S):
            while here.readiness.state is not State.READY:
                watch.on_line(f"{LOADED} {watch.lines}")
                await anyio.lowlevel.checkpoint()


async def test_several_rules_count_their_matches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rules = [
        *RULES,
        (LogAction.ModelLoaded, "weights loaded"),
        (LogAction.ModelError, "Traceback"),
        (LogAction.Info, "Downloading"),
    ]
    async with monitored(ReadySignal.LOG) as here, watched(here, tmp_path, rules) as watch:
        with caplog.at_level(logging.INFO):
            for line in ("Downloading 1", "Downloading 2", "nothing special", "Traceback (most recent"):
                watch.on_line(line)
        assert here.readiness.error_msg == "Traceback (most recent"
        watch.on_line("weights loaded")
        await here.until(State.READY)
        assert [(r.text, r.matches, r.last_line) for r in watch.rules] == [
            (LOADED, 0, ""),
            (BROKEN, 0, ""),
            ("weights loaded", 1, "weights loaded"),
            ("Traceback", 1, "Traceback (most recent"),
            ("Downloading", 2, "Downloading 2"),
        ]
        assert (watch.lines, watch.last_line) == (5, "weights loaded")
    assert "model: Downloading 2" in caplog.text


async def test_the_last_lines_are_kept_and_shortened(tmp_path: Path) -> None:
    async with monitored(ReadySignal.LOG) as here, watched(here, tmp_path) as watch:
        for line in ("one", "two", "three", "x" * (MAX_KEPT_LINE + 1)):
            watch.on_line(line)
        assert list(watch.last_lines) == ["two", "three", "x" * MAX_KEPT_LINE]
        assert watch.last_line == "x" * (MAX_KEPT_LINE + 1)


async def test_without_a_model_server_a_loaded_line_counts_immediately(tmp_path: Path) -> None:
    async with monitored(ReadySignal.LOG) as here:
        here.server = ModelServer("")
        async with watched(here, tmp_path) as watch:
            watch.on_line(LOADED)
            await here.until(State.READY)


async def test_the_file_is_followed_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "model.log"
    async with monitored(ReadySignal.LOG) as here, watched(here, path) as watch:
        path.write_bytes(f"\xff old lines\n{LOADED[:5]}".encode("latin-1"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.follow)
            await here.clock.wait_for_timer(POLL_INTERVAL_S)
            assert watch.last_line == "ÿ old lines"
            with path.open("a") as f:
                f.write(f"{LOADED[5:]}\n")
            here.clock.advance(POLL_INTERVAL_S)
            await here.until(State.READY)
            tasks.cancel_scope.cancel()


async def test_a_log_that_begins_anew_is_noticed_with_its_next_line(tmp_path: Path) -> None:
    path = tmp_path / "model.log"
    path.write_text("one\n")
    async with monitored(ReadySignal.LOG) as here, watched(here, path) as watch:
        assert (watch.trouble, watch.awaiting_connection) == (None, False)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.follow)
            await next_poll(here)
            assert (watch.last_line, watch.began_s, watch.trouble) == ("one", -math.inf, None)
            path.write_text("again\n")
            await next_poll(here)
            began_s = here.clock.monotonic()
            await next_poll(here)
            with path.open("a") as f:
                f.write("more\n")
            await next_poll(here)
            assert (watch.last_line, watch.began_s) == ("more", began_s)
            path.unlink()
            await next_poll(here)
            assert watch.trouble == "does not exist"
            tasks.cancel_scope.cancel()


async def next_poll(here: Monitored) -> None:
    """Let the time of one poll pass; return after the poll."""
    await here.clock.wait_for_timer(POLL_INTERVAL_S)
    here.clock.advance(POLL_INTERVAL_S)
    await here.clock.wait_for_timer(POLL_INTERVAL_S)


async def test_a_loaded_line_awaits_a_connection(tmp_path: Path) -> None:
    async with monitored(ReadySignal.LOG) as here, watched(here, tmp_path) as watch:
        await here.model.stop()
        watch.on_line(LOADED)
        await here.clock.wait_for_timer(CONNECT_INTERVAL_S)
        assert watch.awaiting_connection
        await here.model.start()
        here.clock.advance(CONNECT_INTERVAL_S)
        await here.until(State.READY)
        assert not watch.awaiting_connection


async def test_a_wrong_path_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "no" / "such.log"
    async with (
        monitored(ReadySignal.LOG) as here,
        watched(here, path) as watch,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(watch.follow)
        for _ in range(2):
            await here.clock.wait_for_timer(POLL_INTERVAL_S)
            here.clock.advance(MISSING_WARN_AFTER_S)
        await here.clock.wait_for_timer(POLL_INTERVAL_S)
        tasks.cancel_scope.cancel()
    assert f"model log {path} does not exist" in caplog.text


# The health check


@asynccontextmanager
async def checked(
    here: Monitored, clears_all: bool = False, targets: Sequence[str] = ("/health",)
) -> AsyncGenerator[HealthWatch, None]:
    watch = HealthWatch(here.server, targets, here.readiness, here.clock, clears_all)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.follow)
        yield watch
        tasks.cancel_scope.cancel()


async def next_check(here: Monitored) -> None:
    """Wait for the end of the last check, let ten seconds pass, and wait for the end of the next one."""
    await here.clock.wait_for_timer(HEALTH_INTERVAL_S)
    checks = here.model.health_checks
    here.clock.advance(HEALTH_INTERVAL_S)
    await here.model.until(lambda: here.model.health_checks > checks)
    await check_ended(here)


async def check_ended(here: Monitored) -> None:
    """Return once no check is in flight, when its connection is closed."""
    await here.model.until(lambda: here.model.open_connections == 0)
    await here.clock.wait_for_timer(HEALTH_INTERVAL_S)


async def test_a_2xx_is_the_ready_signal_after_which_checks_are_less_frequent() -> None:
    async with monitored(ReadySignal.HEALTH) as here:
        here.model.health_status = 503
        async with checked(here):
            await here.model.until(lambda: here.model.health_checks == 1)
            await here.clock.wait_for_timer(HEALTH_INTERVAL_LOADING_S)
            assert here.readiness.state is State.LOADING
            here.model.health_status = 202
            here.clock.advance(HEALTH_INTERVAL_LOADING_S)
            await here.until(State.READY)
            await check_ended(here)
            here.clock.advance(HEALTH_INTERVAL_S - 0.01)
            assert here.model.health_checks == 2
            here.clock.advance(0.01)
            await here.model.until(lambda: here.model.health_checks == 3)


async def test_three_failures_in_a_row_are_an_error_and_the_next_success_clears_it() -> None:
    async with monitored(ReadySignal.HEALTH) as here, checked(here):
        await here.until(State.READY)
        await check_ended(here)
        here.model.health_status = 500
        for _ in range(FAILURES_UNTIL_ERROR - 1):
            await next_check(here)
        here.model.health_status = 200
        await next_check(here)  # not in a row
        here.model.health_status = 500
        for _ in range(FAILURES_UNTIL_ERROR - 1):
            await next_check(here)
        assert here.readiness.state is State.READY
        await next_check(here)
        assert here.readiness.error_msg == "health check answered 500"
        here.readiness.set_error(Cause.LOG, BROKEN)
        here.model.health_status = 200
        await next_check(here)
        assert here.readiness.error_msg == BROKEN  # the health check clears only its own error
        assert not here.readiness.has_error(Cause.HEALTH)


async def test_a_hung_model_server_is_an_error_with_a_message() -> None:
    async with monitored(ReadySignal.HEALTH) as here, checked(here):
        await here.until(State.READY)
        await check_ended(here)
        here.model.health_stalls = True
        for number in range(FAILURES_UNTIL_ERROR):
            assert here.readiness.state is State.READY
            here.clock.advance(HEALTH_INTERVAL_S)
            await here.model.until(lambda failures=number: here.model.health_checks == failures + 2)
            here.clock.advance(HEALTH_TIMEOUT_S)
            await here.model.until(lambda: here.model.open_connections == 0)
            await here.clock.wait_for_timer(HEALTH_INTERVAL_S)
        assert here.readiness.error_msg == "health check timed out after 10 s"
        here.model.health_stalls = False
        await next_check(here)
        assert here.readiness.state is State.READY


async def test_a_server_that_is_gone_is_an_error_with_a_message(caplog: pytest.LogCaptureFixture) -> None:
    async with monitored(ReadySignal.HEALTH) as here, checked(here):
        await here.until(State.READY)
        await check_ended(here)
        await here.model.stop()
        for number in range(1, FAILURES_UNTIL_ERROR + 1):
            assert here.readiness.state is State.READY
            here.clock.advance(HEALTH_INTERVAL_S)
            with anyio.fail_after(GUARD_S):
                while f"({number} in a row)" not in caplog.text:
                    await anyio.lowlevel.checkpoint()
        await here.until(State.ERRORED)
        assert here.readiness.error_msg.startswith("health check failed: ")


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_server_without_a_health_check_is_not_checked_again(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with monitored(ReadySignal.HEALTH) as here:
        here.model.health_status = status
        here.readiness.set_error(Cause.HEALTH, "health check timed out")
        watch = HealthWatch(here.server, ("/health",), here.readiness, here.clock, clears_all=False)
        await watch.follow()
        assert here.readiness.state is State.READY
        assert (here.model.health_checks, here.clock.pending) == (1, 0)
    assert [r.getMessage() for r in caplog.records if "no health check" in r.getMessage()] == [
        f"the model server has no health check at {here.model.url}/health ({status}): not checked again"
    ]


BOTH = ("/health", "/echo")


async def test_of_two_checks_both_must_answer_2xx() -> None:
    async with monitored(ReadySignal.HEALTH) as here:
        here.model.fail_status = 503  # of all paths but /health
        async with checked(here, targets=BOTH) as watch:
            url = f"{here.model.url}/echo"
            for _ in range(3):
                await here.clock.wait_for_timer(HEALTH_INTERVAL_LOADING_S)
                await here.model.until(lambda: here.model.open_connections == 0)
                assert here.readiness.state is State.LOADING
                assert (watch.url, watch.last_problem) == (url, "health check answered 503")
                here.clock.advance(HEALTH_INTERVAL_LOADING_S)
            await here.clock.wait_for_timer(HEALTH_INTERVAL_LOADING_S)
            here.model.fail_status = None
            here.clock.advance(HEALTH_INTERVAL_LOADING_S)
            await here.until(State.READY)


async def test_either_of_two_checks_ends_ready_and_the_other_does_not_clear_its_error() -> None:
    async with monitored(ReadySignal.HEALTH) as here, checked(here, targets=BOTH):
        await here.until(State.READY)
        await check_ended(here)
        here.model.fail_status = 500
        for _ in range(FAILURES_UNTIL_ERROR):
            await next_check(here)
        await here.until(State.ERRORED)
        assert here.readiness.error_msg == f"{here.model.url}/echo: health check answered 500"
        changes = len(here.readiness.timeline)
        for _ in range(2):
            await next_check(here)
        assert len(here.readiness.timeline) == changes
        here.model.fail_status = None
        await next_check(here)
        await here.until(State.READY)


async def test_of_two_checks_one_that_the_server_lacks_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    async with monitored(ReadySignal.HEALTH) as here:
        here.model.health_status = 503
        async with checked(here, targets=("/missing", "/health")) as watch:
            await here.clock.wait_for_timer(HEALTH_INTERVAL_LOADING_S)
            assert (watch.url, watch.last_problem) == (
                f"{here.model.url}/health",
                "health check answered 503",
            )
            here.model.health_status = 200
            here.clock.advance(HEALTH_INTERVAL_LOADING_S)
            await here.until(State.READY)
    assert [r.getMessage() for r in caplog.records if "no health check" in r.getMessage()] == [
        f"the model server has no health check at {here.model.url}/missing (404): not checked again"
    ]


async def test_the_findings_of_the_checks_are_kept() -> None:
    async with monitored(ReadySignal.HEALTH) as here:
        watch = HealthWatch(here.server, ("/health",), here.readiness, here.clock, clears_all=False)
        assert watch.url == f"{here.model.url}/health"
        assert (watch.checks, watch.last_problem, watch.well_since_s) == (0, "", None)
    async with monitored(ReadySignal.HEALTH) as here, checked(here) as watch:
        await here.until(State.READY)
        await check_ended(here)
        well_since_s = here.clock.monotonic()
        assert (watch.checks, watch.last_problem, watch.well_since_s) == (1, "", well_since_s)
        await next_check(here)
        assert (watch.checks, watch.last_problem, watch.well_since_s) == (2, "", well_since_s)
        watch.note_lost()
        assert watch.well_since_s is None
        here.model.health_status = 500
        await next_check(here)
        assert (watch.checks, watch.last_problem) == (3, "health check answered 500")
        assert watch.well_since_s is None


@pytest.mark.parametrize(
    ("signals", "status"),
    [((ReadySignal.HEALTH, ReadySignal.LOG), 200), ((), 503)],
    ids=["loading", "failed"],
)
async def test_checks_are_frequent_until_all_is_loaded_and_one_has_succeeded(
    signals: Sequence[ReadySignal], status: int
) -> None:
    async with monitored(*signals) as here:
        here.model.health_status = status
        async with checked(here):
            await here.model.until(lambda: here.model.health_checks == 1)
            await check_ended(here)
            here.clock.advance(HEALTH_INTERVAL_LOADING_S)
            await here.model.until(lambda: here.model.health_checks == 2)


async def test_a_check_without_an_answer_has_no_status() -> None:
    async with monitored() as here:
        watch = HealthWatch(here.server, ("/health",), here.readiness, here.clock, clears_all=False)
        assert await watch.check() == (200, "")
        here.model.health_stalls = True
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(here.clock_passes, HEALTH_TIMEOUT_S)
            assert await watch.check() == (0, "health check timed out after 10 s")
        await here.model.stop()
        status, problem = await watch.check()
        assert (status, problem.startswith("health check failed: ")) == (0, True)


async def test_after_failures_checks_are_frequent_until_one_succeeds() -> None:
    async with monitored(ReadySignal.HEALTH) as here, checked(here) as watch:
        await here.until(State.READY)
        await check_ended(here)
        here.model.health_status = 500
        for _ in range(FAILURES_UNTIL_ERROR):
            await next_check(here)
        assert here.readiness.has_error(Cause.HEALTH)
        here.model.health_status = 300
        for checks in (watch.checks + 1, watch.checks + 2):
            here.clock.advance(HEALTH_INTERVAL_LOADING_S)
            await here.model.until(lambda checks=checks: here.model.health_checks == checks)
            await check_ended(here)
        assert here.readiness.has_error(Cause.HEALTH)
        here.model.health_status = 299
        here.clock.advance(HEALTH_INTERVAL_LOADING_S)
        await here.until(State.READY)


@pytest.mark.parametrize("is_lost", [False, True])
async def test_a_success_clears_errors_of_the_log_only_after_a_loss(is_lost: bool) -> None:
    async with monitored() as here:
        watch = HealthWatch(here.server, ("/health",), here.readiness, here.clock, clears_all=True)
        for cause in (Cause.LOG, Cause.AUTHOR):
            here.readiness.set_error(cause, "broken")
        if is_lost:
            watch.note_lost()
        watch.note_success()
        assert here.readiness.error_msg == ("" if is_lost else "broken")
        here.readiness.set_error(Cause.AUTHOR, "broken again")
        watch.note_success()
        assert here.readiness.error_msg == "broken again"


async def test_failed_checks_before_the_first_success_are_no_error() -> None:
    async with monitored(ReadySignal.HEALTH) as here:
        here.model.health_status = 503
        async with checked(here) as watch:
            await here.model.until(lambda: here.model.health_checks == 1)
            await check_ended(here)
            for _ in range(FAILURES_UNTIL_ERROR + 1):
                await next_check(here)
            assert watch.last_problem == "health check answered 503"
            assert here.readiness.state is State.LOADING


async def test_failed_checks_before_the_benchmark_ends_are_no_error() -> None:
    async with monitored(ReadySignal.HEALTH, perf=None) as here, checked(here):
        await here.until(State.BENCHMARKING)
        await check_ended(here)
        here.model.health_status = 500
        for _ in range(FAILURES_UNTIL_ERROR + 1):
            await next_check(here)
        assert here.readiness.state is State.BENCHMARKING


@pytest.mark.parametrize("clears_all", [False, True])
async def test_without_load_rules_a_server_that_recovers_clears_errors_of_its_log(clears_all: bool) -> None:
    async with monitored(ReadySignal.HEALTH) as here, checked(here, clears_all):
        await here.until(State.READY)
        await check_ended(here)
        here.readiness.set_error(Cause.LOG, BROKEN)
        await next_check(here)
        assert here.readiness.error_msg == BROKEN  # it still answers: it has not been restarted
        here.model.health_status = 503
        await next_check(here)
        here.model.health_status = 200
        await next_check(here)
        assert here.readiness.error_msg == ("" if clears_all else BROKEN)


async def test_each_check_makes_a_new_connection() -> None:
    async with monitored(ReadySignal.HEALTH) as here, checked(here):
        await here.until(State.READY)
        await check_ended(here)
        await next_check(here)
        await next_check(here)
        assert here.model.connections == here.model.health_checks == 3
