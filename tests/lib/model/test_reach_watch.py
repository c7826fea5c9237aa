"""The rule by which failed connections become an error, as a table; and which calls are tried meanwhile."""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import cast

import aiohttp
import anyio
import pytest
from aiohttp.client_reqrep import ConnectionKey

from lib.errors import ModelDown
from lib.model.connection import ModelServer
from lib.model.reach import Reach, reason_of
from lib.model.reach_watch import CHECK_LIMIT_S, ReachWatch
from lib.model.readiness import Cause, Readiness, ReadySignal, State
from lib.model.watch import HEALTH_INTERVAL_S, HealthWatch
from lib.runtime.clock import Clock, sleep
from tests.fakes.model_server import MaliciousModel, malicious_model
from tests.manual_clock import ManualClock
from tests.virtual_time import in_virtual_time

HOST, PORT = "127.0.0.1", 18000
REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed")
RESET = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
BUSY = aiohttp.ConnectionTimeoutError()
LOOKED_WITHIN_S = 0.6


def watched(clock: ManualClock, *missing: ReadySignal) -> tuple[Reach, Readiness]:
    """A worker without the task that checks: only what calls find counts."""
    server, readiness = ModelServer(f"http://{HOST}:{PORT}/v1"), Readiness(missing, False, clock)
    readiness.set_max_perf(1.0, "given")
    ReachWatch(server, readiness, None, clock)
    return server.reach, readiness


Ending = BaseException | str | None


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        pytest.param([(0, REFUSED)], "", id="one failure"),
        pytest.param([(0, REFUSED), (0.4, REFUSED)], "", id="two close to each other"),
        pytest.param([(0, REFUSED), (0.5, REFUSED)], "it refuses connections", id="two half a second apart"),
        pytest.param([(0, REFUSED), (90, REFUSED)], "it refuses connections", id="two far apart"),
        pytest.param(
            [(0, REFUSED), (0.3, REFUSED), (0.6, REFUSED)], "it refuses connections", id="three in a row"
        ),
        pytest.param([(0, REFUSED), (0.3, "success"), (0.6, REFUSED)], "", id="a success between"),
        pytest.param(
            [(0, REFUSED), (0.3, "success"), (0.6, REFUSED), (1.1, RESET)],
            "it resets connections",
            id="a success before two",
        ),
        pytest.param(
            [(0, REFUSED), (0.5, REFUSED), (1.0, RESET)],
            "it refuses connections",
            id="the first reason stays",
        ),
        pytest.param([(0, RESET), (0.5, None)], "it closes connections without an answer", id="closed"),
        pytest.param([(0, BUSY), (0.5, BUSY), (1.0, BUSY)], "", id="connecting took too long"),
        pytest.param([(0, REFUSED), (0.5, BUSY)], "", id="the second is another kind"),
        pytest.param([(0, REFUSED), (0.5, REFUSED), (0.6, "success")], "", id="over with a success"),
        pytest.param(
            [(0, REFUSED), (0.5, REFUSED), (0.6, "success"), (0.7, REFUSED)], "", id="counted anew after it"
        ),
        pytest.param([(0, REFUSED), (0.2, "other"), (0.5, "other")], "", id="another server's"),
    ],
)
def test_failures_that_become_an_error(calls: Sequence[tuple[float, Ending]], reason: str) -> None:
    clock, now_s = ManualClock(), 0.0
    reach, readiness = watched(clock)
    for at_s, ending in calls:
        clock.jump(at_s - now_s)
        now_s = at_s
        if ending == "success":
            reach.note_success(HOST, PORT)
        elif ending == "other":
            reach.note_failure("127.0.0.1", 9, REFUSED)
            reach.note_success("other", PORT)
        else:
            reach.note_failure(HOST, PORT, cast("BaseException | None", ending))
    message = f"the model server at {HOST}:{PORT} can't be reached: {reason}" if reason else ""
    assert readiness.error_msg == message
    assert readiness.state is (State.ERRORED if reason else State.READY)
    assert reach.is_down == bool(reason)


def test_failures_before_the_worker_was_ready_do_not_count() -> None:
    clock = ManualClock()
    reach, readiness = watched(clock, ReadySignal.LOG)
    for _ in range(3):
        reach.note_failure(HOST, PORT, REFUSED)
        clock.jump(1.0)
    assert (readiness.state, reach.is_suspect) == (State.LOADING, False)


def test_a_success_clears_no_other_error() -> None:
    clock = ManualClock()
    reach, readiness = watched(clock)
    reach.note_failure(HOST, PORT, REFUSED)
    clock.jump(0.5)
    reach.note_failure(HOST, PORT, REFUSED)
    readiness.set_error(Cause.LOG, "CUDA error")
    reach.note_success(HOST, PORT)
    assert readiness.error_msg == "CUDA error"


def test_a_later_failure_does_not_put_the_error_in_front_of_a_newer_one() -> None:
    clock = ManualClock()
    reach, readiness = watched(clock)
    for _ in range(2):
        reach.note_failure(HOST, PORT, REFUSED)
        clock.jump(0.5)
    readiness.set_error(Cause.LOG, "CUDA error")
    reach.note_failure(HOST, PORT, REFUSED)
    assert readiness.error_msg == "CUDA error"


def os_error(number: int, text: str = "") -> aiohttp.ClientConnectorError:
    key = ConnectionKey(HOST, PORT, False, True, None, None, None)
    return aiohttp.ClientConnectorError(key, OSError(number, text))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, "it closes connections without an answer"),
        (aiohttp.ServerDisconnectedError(), "it closes connections without an answer"),
        (aiohttp.ClientPayloadError("cut"), "it breaks answers off"),
        (os_error(errno.ECONNREFUSED), "it refuses connections"),
        (
            OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 111] …"),
            "it refuses connections",
        ),
        (os_error(errno.ECONNRESET), "it resets connections"),
        (aiohttp.ClientOSError(errno.ECONNRESET, "reset"), "it resets connections"),
        (os_error(errno.EMFILE, "too many open files"), ""),
        (os_error(errno.EADDRNOTAVAIL), ""),
        (ssl.SSLError("bad certificate"), ""),
        (aiohttp.InvalidURL("x"), ""),
        (asyncio.TimeoutError(), ""),
    ],
)
def test_errors_of_a_server_that_is_gone(error: BaseException | None, reason: str) -> None:
    assert reason_of(error) == reason


def test_one_call_at_a_time_is_tried_while_it_is_down() -> None:
    reach, _ = watched(ManualClock())
    reach.allow_attempt()
    with reach.attempt(HOST, PORT):
        with pytest.raises(ModelDown) as refused, reach.attempt(HOST, PORT):
            pass
        with reach.attempt("other", PORT), reach.attempt("other", PORT):
            pass  # calls to other servers are all tried
    assert (refused.value.status, dict(refused.value.headers())) == (503, {"Retry-After": "10"})
    with pytest.raises(ModelDown), reach.attempt(HOST, PORT):
        pass  # the next waits for the next check
    reach.allow_attempt()
    with pytest.raises(ValueError, match="failed"), reach.attempt(HOST, PORT):
        raise ValueError("failed")
    reach.allow_attempt()
    with reach.attempt(HOST, PORT):
        reach.allow_attempt()
        with pytest.raises(ModelDown), reach.attempt(HOST, PORT):
            pass
    with reach.attempt(HOST, PORT):
        pass  # allowed while the last was being tried


@dataclass
class Checked:
    """A worker with the task that checks, and its model server; `fail` stands for its requests."""

    model: MaliciousModel
    server: ModelServer
    readiness: Readiness
    clock: Clock
    watch: HealthWatch | None

    async def fail(self, seconds: float = 0.0) -> None:
        """Let a request fail, and then wait for some time."""
        self.server.reach.note_failure(self.server.reach.host, self.server.reach.port, REFUSED)
        await sleep(self.clock, seconds)

    @property
    def is_errored(self) -> bool:
        return self.readiness.has_error(Cause.CONNECTION)


def scenario(steps: Callable[[Checked], Awaitable[None]], health: str | None) -> None:
    """Run `steps` in virtual time, with a health check at `health`, or with connections as checks."""

    async def run(clock: Clock) -> None:
        async with (
            malicious_model() as model,
            ModelServer(model.url) as server,
            anyio.create_task_group() as tasks,
        ):
            readiness = Readiness((), False, clock)
            readiness.set_max_perf(1.0, "given")
            watch = HealthWatch(server, (health,), readiness, clock, clears_all=True) if health else None
            tasks.start_soon(ReachWatch(server, readiness, watch, clock).follow)
            await steps(Checked(model, server, readiness, clock, watch))
            tasks.cancel_scope.cancel()

    in_virtual_time(run)


both_checks = pytest.mark.parametrize("health", ["/health", None, "http://127.0.0.1:9/health"])


@both_checks
def test_one_failure_of_a_server_that_is_gone_is_enough_and_its_return_needs_no_request(
    health: str | None,
) -> None:
    async def steps(here: Checked) -> None:
        await here.model.stop()
        await here.fail(0.4)
        assert not here.is_errored
        await sleep(here.clock, 0.4)
        assert here.is_errored
        await sleep(here.clock, 60.0)
        assert here.is_errored
        await here.model.start()
        await sleep(here.clock, LOOKED_WITHIN_S)
        assert here.readiness.state is State.READY

    scenario(steps, health)


def test_without_a_request_the_health_check_is_what_fails_first() -> None:
    async def steps(here: Checked) -> None:
        assert here.watch is not None
        async with anyio.create_task_group() as group:
            group.start_soon(here.watch.follow)
            await sleep(here.clock, 1.0)
            await here.model.stop()
            await sleep(
                here.clock, HEALTH_INTERVAL_S + 1.0
            )  # three failed checks take more than twice as long
            assert here.is_errored
            await here.model.start()
            await sleep(here.clock, LOOKED_WITHIN_S)
            assert here.readiness.state is State.READY
            group.cancel_scope.cancel()

    scenario(steps, "/health")


@both_checks
def test_a_server_that_breaks_single_connections_and_is_well_is_no_error(health: str | None) -> None:
    async def steps(here: Checked) -> None:
        for _ in range(50):
            await here.fail(0.11)
            assert not here.is_errored

    scenario(steps, health)


def test_a_server_that_is_back_but_not_well_yet_stays_an_error() -> None:
    async def steps(here: Checked) -> None:
        here.readiness.set_error(Cause.LOG, "CUDA error")
        await here.model.stop()
        await here.fail(1.0)
        here.model.health_status = 503  # it loads its weights
        await here.model.start()
        await sleep(here.clock, 5.0)
        assert here.is_errored
        assert 9 <= here.model.health_checks <= 10
        for _ in range(3):  # a call is let through after each check
            with here.server.reach.attempt(here.server.reach.host, here.server.reach.port):
                pass
            await sleep(here.clock, LOOKED_WITHIN_S)
        here.model.health_status = 200
        await sleep(here.clock, LOOKED_WITHIN_S)
        assert here.readiness.error_msg == ""  # as without a load rule: a restart ends the log's errors too

    scenario(steps, "/health")


def test_an_answer_of_any_status_shows_that_a_suspected_server_takes_connections() -> None:
    async def steps(here: Checked) -> None:
        here.model.health_status = 503
        for _ in range(10):
            await here.fail(0.6)
            assert not here.is_errored

    scenario(steps, "/health")


def test_a_suspected_server_is_checked_five_times_a_second() -> None:
    async def steps(here: Checked) -> None:
        for _ in range(20):
            await here.fail(0.1)
        assert 10 <= here.model.health_checks <= 11

    scenario(steps, "/health")


@pytest.mark.parametrize(
    ("status", "ends"),
    [(200, True), (299, True), (300, False), (404, True), (405, True), (501, True), (500, False)],
)
def test_an_error_ends_with_a_good_answer_or_one_of_a_server_without_a_check(status: int, ends: bool) -> None:
    async def steps(here: Checked) -> None:
        await here.model.stop()
        await here.fail(1.0)
        assert here.is_errored
        here.model.health_status = status
        await here.model.start()
        await sleep(here.clock, LOOKED_WITHIN_S)
        assert here.is_errored is not ends

    scenario(steps, "/health")


def test_a_server_that_is_not_well_clears_no_error_of_the_health_check() -> None:
    async def steps(here: Checked) -> None:
        here.readiness.set_error(Cause.HEALTH, "health check answered 503")
        here.model.health_status = 503
        await here.fail(1.0)
        assert here.readiness.error_msg == "health check answered 503"

    scenario(steps, "/health")


def test_a_check_that_gets_no_answer_is_made_anew() -> None:
    async def steps(here: Checked) -> None:
        here.model.health_stalls = True
        await here.fail(CHECK_LIMIT_S + 1.0)
        assert here.model.health_checks == 2
        assert (here.is_errored, here.server.reach.is_suspect) == (False, True)
        here.model.health_stalls = False
        await sleep(here.clock, CHECK_LIMIT_S)
        assert not here.server.reach.is_suspect

    scenario(steps, "/health")
