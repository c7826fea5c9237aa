"""The life of a session in the ledger: one request to the engine, from its creation to its end. No HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from lib.errors import Invalid, ModelUnreachable, NotReady, TooBusy
from lib.metrics import Ledger, Outcome
from lib.request.session_life import ON_CLOSE_LIMIT_S, SessionLife
from lib.request.sessions import SessionEnd, Sessions
from tests.manual_clock import ManualClock

AUTH = {"cost": 5}


class Life:
    """Sessions with their ledger. What is posted at their ends is in `posted`; `post` may fail or wait."""

    def __init__(self, max_sessions: int | None = None) -> None:
        self.clock = ManualClock()
        self.ledger = Ledger(self.clock)
        self.posted: list[tuple[str, dict[str, Any]]] = []
        self.error: Exception | None = None
        self.answered = asyncio.Event()
        self.answered.set()
        self.tasks: list[asyncio.Task[None]] = []
        sessions = Sessions(max_sessions, self.clock)
        self.life = SessionLife(sessions, self.ledger, self.clock, self.post, self.spawn)

    async def post(self, route: str, message: dict[str, Any]) -> None:
        self.posted.append((route, message))
        await self.answered.wait()
        if self.error is not None:
            raise self.error

    def spawn(self, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.tasks.append(asyncio.create_task(call()))

    async def open(
        self, terms: dict[str, Any] | None = None, check_ready: Callable[[], None] = lambda: None
    ) -> Any:
        async def read_payload() -> dict[str, Any]:
            return terms or {}

        return await self.life.open(AUTH, 7, 5.0, read_payload, check_ready)

    @property
    def outcomes(self) -> dict[Outcome, int]:
        return dict(self.ledger.outcomes)


async def test_it_is_load_from_its_creation_to_its_end() -> None:
    here = Life()
    session = await here.open()
    assert (here.ledger.cur_load, here.ledger.in_flight) == (5.0, 1)
    assert here.life.workload_of(session) == 5.0
    here.life.sessions.end(session)
    assert (here.ledger.cur_load, here.ledger.served_load, here.outcomes) == (0.0, 5.0, {Outcome.SERVED: 1})
    assert here.life.workload_of(session) == 0.0
    (finished,), _ = here.ledger.finished()
    assert (finished.request_idx, finished.status) == (7, "Success")


async def test_its_expiry_is_an_end_too() -> None:
    here = Life()
    await here.open({"lifetime": 10})
    here.clock.advance(10.0)
    assert here.outcomes == {Outcome.SERVED: 1}


async def test_a_worker_that_drains_cancels_it() -> None:
    here = Life()
    await here.open()
    here.life.sessions.end_all(SessionEnd.DRAINED)
    assert here.outcomes == {Outcome.CANCELLED: 1}


def loading() -> None:
    raise NotReady("loading")


@pytest.mark.parametrize(
    ("terms", "check_ready", "error", "outcome"),
    [
        ({"lifetime": -1}, lambda: None, Invalid, Outcome.ERRORED),
        ({}, loading, NotReady, Outcome.REJECTED),
    ],
)
async def test_one_that_is_refused_has_an_outcome(
    terms: dict[str, Any], check_ready: Callable[[], None], error: type[Exception], outcome: Outcome
) -> None:
    here = Life()
    with pytest.raises(error):
        await here.open(terms, check_ready)
    assert (here.outcomes, here.ledger.unfinished, len(here.life.sessions)) == ({outcome: 1}, 0, 0)


async def test_one_too_many_is_rejected_with_its_workload() -> None:
    here = Life(max_sessions=1)
    await here.open()
    with pytest.raises(TooBusy):
        await here.open()
    assert (here.ledger.rejected_load, here.outcomes) == (5.0, {Outcome.REJECTED: 1})


async def test_a_client_that_leaves_while_its_body_comes_is_cancelled() -> None:
    here = Life()

    async def never() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    opening = asyncio.create_task(here.life.open(AUTH, 7, 5.0, never, lambda: None))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert here.outcomes == {Outcome.CANCELLED: 1}


async def test_the_model_server_hears_of_its_end_and_a_drain_waits_for_that() -> None:
    here = Life()
    here.answered.clear()
    session = await here.open({"on_close_route": "/bye", "on_close_payload": {"a": 1}})
    here.life.sessions.end(session)
    await asyncio.sleep(0)
    assert here.posted == [("/bye", {"a": 1, "session_id": session.id})]
    assert here.ledger.unfinished == 1
    here.answered.set()
    await asyncio.gather(*here.tasks)
    assert (here.ledger.unfinished, here.outcomes) == (0, {Outcome.SERVED: 1})


async def test_a_model_server_that_does_not_listen_is_waited_for_within_a_limit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    here = Life()
    here.answered.clear()
    here.life.sessions.end(await here.open({"on_close_route": "/bye"}))
    await here.clock.wait_for_timer(ON_CLOSE_LIMIT_S)
    here.clock.advance(ON_CLOSE_LIMIT_S)
    await asyncio.gather(*here.tasks)
    assert here.ledger.unfinished == 0
    assert "POST /bye at its end failed" in caplog.text


async def test_a_failure_at_its_end_is_logged_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    here = Life()
    here.error = ModelUnreachable("refused")
    here.life.sessions.end(await here.open({"on_close_route": "/bye"}))
    await asyncio.gather(*here.tasks)
    assert (here.ledger.unfinished, here.outcomes) == (0, {Outcome.SERVED: 1})
    assert "POST /bye at its end failed" in caplog.text
