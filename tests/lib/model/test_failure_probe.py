"""Requests that fail one after the other: which ends count, and the request that decides. Virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from lib.errors import AnswerCut, AnswerStalled, ClientGone, ModelDown, ModelTimedOut, ModelUnreachable
from lib.life.running_worker import RunningWorker
from lib.model.failure_probe import RETRY_S
from lib.model.failure_row import LENGTH, FailureRow
from lib.model.readiness import ReadySignal, State
from lib.runtime.clock import Clock, sleep
from lib.runtime.settings import Settings
from tests.event_loop import run_event_loop_turns
from tests.fakes.model_server import MaliciousModel, malicious_model
from tests.fakes.worker import Setup, build
from tests.guard import GUARD_S
from tests.virtual_time import in_virtual_time

NONE = Settings(container_id=1, public_url="http://127.0.0.1:3000", engine="none")
LATE = ModelTimedOut("the model server took too long")


@pytest.mark.parametrize(
    ("ends", "count"),
    [
        pytest.param([503] * 5, 5, id="five answers"),
        pytest.param([LATE] * 5, 5, id="five that took too long"),
        pytest.param([500, LATE, 502, LATE, 504], 5, id="both"),
        pytest.param([AnswerStalled("stalled"), 500, LATE, AnswerStalled("stalled")], 4, id="stalls too"),
        pytest.param([500, 500, 500, 500, 200], 0, id="a success"),
        pytest.param([500, 500, 404, 500], 1, id="a refusal of the model server's"),
        pytest.param([500, 500, 499], 0, id="the highest status below 500"),
        pytest.param([500, ClientGone(), asyncio.CancelledError(), 500], 2, id="clients that leave"),
        pytest.param([500, ModelDown("m:1"), 500], 2, id="one that was not tried"),
        pytest.param([500, RuntimeError("author"), 500], 1, id="an author's exception"),
        pytest.param([500, ModelUnreachable("gone"), 500], 1, id="no connection"),
        pytest.param([500, AnswerCut("cut")], 0, id="an answer that broke off"),
    ],
)
def test_ends_of_requests(ends: Sequence[int | BaseException], count: int) -> None:
    row = FailureRow()
    for end in ends:
        if isinstance(end, int):
            row.note_status(end)
        else:
            row.note_error(end)
    assert row.count == count


async def test_a_row_that_was_full_begins_anew() -> None:
    row = FailureRow()
    assert (row.count, row.last) == (0, "")
    for status in range(500, 500 + LENGTH):
        row.note_status(status)
    with anyio.fail_after(GUARD_S):
        await row.full()
    assert (row.count, row.last) == (0, str(500 + LENGTH - 1))
    for _ in range(LENGTH - 1):
        row.note_status(503)
    waiting = asyncio.ensure_future(row.full())
    await run_event_loop_turns()
    assert not waiting.done()
    row.note_status(503)
    await run_event_loop_turns()
    assert waiting.done()


@dataclass
class Ready:
    """A worker that is ready, without the task that measures its model; each wait is in virtual time."""

    model: MaliciousModel
    running: RunningWorker
    clock: Clock

    async def fail(self, times: int, status: int = 503) -> None:
        """Let the ends of requests be failures, and everything happen that follows."""
        for _ in range(times):
            self.running.server.failures.note_status(status)
        await self.wait(0.1)

    async def wait(self, seconds: float) -> None:
        await sleep(self.clock, seconds)

    @property
    def error(self) -> str:
        return self.running.readiness.error_msg


@asynccontextmanager
async def ready(tmp_path: Path, clock: Clock) -> AsyncGenerator[Ready, None]:
    log = tmp_path / "model.log"
    log.touch()
    async with malicious_model() as model:
        setup = Setup(log=str(log), benchmark="/echo", backend={"clock": clock})
        backend, _ = build(model.url, setup)
        async with (
            backend.run_with(NONE, tmp_path, spawn=lambda call: None) as running,
            anyio.create_task_group() as group,
        ):
            running.readiness.note_signal(ReadySignal.LOG, "loaded")
            running.readiness.set_max_perf(10.0, "measured")
            assert running.failure_probe is not None
            group.start_soon(running.failure_probe.follow)
            yield Ready(model, running, clock)
            group.cancel_scope.cancel()


def scenario(tmp_path: Path, steps: Callable[[Ready], Awaitable[None]]) -> None:
    async def run(clock: Clock) -> None:
        async with ready(tmp_path, clock) as here:
            await steps(here)

    in_virtual_time(run)


def test_a_request_that_fails_too_is_an_error_until_one_succeeds(tmp_path: Path) -> None:
    async def steps(here: Ready) -> None:
        here.model.fail_status = 503
        await here.fail(LENGTH - 1)
        assert (here.error, here.model.requests) == ("", [])
        await here.fail(1)
        beginning = "5 requests in a row failed at the model server, the last with 503, and a benchmark"
        assert here.error.startswith(f"{beginning} request failed: POST {here.model.url}/echo answered 503")
        assert here.running.readiness.state is State.ERRORED
        await here.wait(RETRY_S)
        assert len(here.model.requests) == 2
        here.model.fail_status = None
        await here.wait(RETRY_S)
        assert (here.error, len(here.model.requests)) == ("", 3)
        await here.wait(10 * RETRY_S)
        assert len(here.model.requests) == 3

    scenario(tmp_path, steps)


def test_a_request_that_succeeds_shows_that_the_model_server_is_well(tmp_path: Path) -> None:
    async def steps(here: Ready) -> None:
        for _ in range(9):  # all within the pause after the request
            await here.fail(LENGTH)
        assert (here.error, len(here.model.requests)) == ("", 1)
        await here.wait(RETRY_S)
        assert (here.error, len(here.model.requests)) == ("", 2)

    scenario(tmp_path, steps)


def test_a_loaded_line_ends_the_error(tmp_path: Path) -> None:
    async def steps(here: Ready) -> None:
        here.model.fail_status = 500
        await here.fail(LENGTH)
        assert here.error
        here.running.readiness.note_signal(ReadySignal.LOG, "loaded")
        await here.wait(3 * RETRY_S)
        assert (here.error, len(here.model.requests)) == ("", 1)

    scenario(tmp_path, steps)


def test_a_request_that_cannot_be_made_changes_nothing(tmp_path: Path) -> None:
    async def steps(here: Ready) -> None:
        probe = here.running.failure_probe
        assert probe is not None
        handler = probe.request.handler
        made = handler.make_benchmark_payload
        handler.make_benchmark_payload = _raise  # type: ignore[method-assign]
        await here.fail(LENGTH)
        assert (here.error, here.model.requests) == ("", [])
        await here.wait(RETRY_S)
        handler.make_benchmark_payload = made  # type: ignore[method-assign]
        here.model.fail_status = 503
        await here.fail(LENGTH)
        error = here.error
        assert error
        handler.make_benchmark_payload = _raise  # type: ignore[method-assign]
        await here.wait(3 * RETRY_S)
        assert (here.error, len(here.model.requests)) == (error, 1)
        handler.make_benchmark_payload = made  # type: ignore[method-assign]
        here.model.fail_status = None
        await here.wait(RETRY_S)
        assert (here.error, len(here.model.requests)) == ("", 2)

    scenario(tmp_path, steps)


def _raise() -> Any:
    raise ValueError("no prompts")


def test_a_worker_that_drains_tries_no_request(tmp_path: Path) -> None:
    async def steps(here: Ready) -> None:
        here.running.drain()
        for _ in range(2):  # also a second row is waited for
            await here.fail(LENGTH)
            assert (here.model.requests, here.running.server.failures.count) == ([], 0)

    scenario(tmp_path, steps)
