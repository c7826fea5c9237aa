"""The rule by which failed connections become an error, as a table; and which calls are tried meanwhile."""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Sequence
from typing import cast

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey

from lib.errors import ModelDown
from lib.model.connection import ModelServer
from lib.model.reach import Reach, reason_of
from lib.model.reach_watch import ReachWatch
from lib.model.readiness import Cause, Readiness, ReadySignal, State
from tests.manual_clock import ManualClock

HOST, PORT = "127.0.0.1", 18000
REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed")
RESET = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
BUSY = aiohttp.ConnectionTimeoutError()


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
