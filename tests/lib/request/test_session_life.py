"""A session's entry in the ledger: one request from its creation to its end. No HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from lib.errors import Invalid, ModelUnreachable, NotReady, TooBusy
from lib.metrics import Ledger, Outcome
from lib.request.session_life import ON_CLOSE_LIMIT_S, SessionLife
from lib.request.sessions import DueEnd, SessionEnd, Sessions, SessionTerms
from tests.manual_clock import ManualClock

AUTH = {"cost": 5}


class WorkerSessions:
    """Sessions and their ledger. `posted` has the calls at their ends, which may fail or wait."""

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

        return await self.life.open(AUTH, 7, lambda: 5.0, read_payload, check_ready)

    @property
    def outcomes(self) -> dict[Outcome, int]:
        return dict(self.ledger.outcomes)


async def test_a_session_is_load_from_its_creation_to_its_end() -> None:
    worker = WorkerSessions()
    session = await worker.open()
    assert (worker.ledger.cur_load, worker.ledger.in_flight) == (5.0, 1)
    assert worker.life.workload_of(session) == 5.0
    worker.life.sessions.end(session)
    assert (worker.ledger.cur_load, worker.ledger.served_load, worker.outcomes) == (
        0.0,
        5.0,
        {Outcome.SERVED: 1},
    )
    assert worker.life.workload_of(session) == 0.0
    (finished,), _ = worker.ledger.finished()
    assert (finished.request_idx, finished.status) == (7, "Success")
    assert finished.work_started_at == finished.entered_queue_at == worker.clock.wall()


async def test_an_expired_session_is_served() -> None:
    worker = WorkerSessions()
    await worker.open({"lifetime": 10})
    worker.clock.advance(10.0)
    assert worker.outcomes == {Outcome.SERVED: 1}


async def test_a_draining_worker_cancels_sessions() -> None:
    worker = WorkerSessions()
    await worker.open()
    worker.life.sessions.end_all(SessionEnd.DRAINED)
    assert worker.outcomes == {Outcome.CANCELLED: 1}


def loading() -> None:
    raise NotReady("loading")


@pytest.mark.parametrize(
    ("terms", "check_ready", "error", "outcome"),
    [
        ({"lifetime": -1}, lambda: None, Invalid, Outcome.ERRORED),
        ({}, loading, NotReady, Outcome.REJECTED),
    ],
)
async def test_a_refused_session_has_an_outcome(
    terms: dict[str, Any], check_ready: Callable[[], None], error: type[Exception], outcome: Outcome
) -> None:
    worker = WorkerSessions()
    with pytest.raises(error):
        await worker.open(terms, check_ready)
    assert (worker.outcomes, worker.ledger.unfinished, len(worker.life.sessions)) == ({outcome: 1}, 0, 0)


async def test_a_session_above_the_limit_is_rejected_with_its_workload() -> None:
    worker = WorkerSessions(max_sessions=1)
    await worker.open()
    with pytest.raises(TooBusy):
        await worker.open()
    assert (worker.ledger.rejected_load, worker.outcomes) == (5.0, {Outcome.REJECTED: 1})


async def test_a_client_that_leaves_while_its_body_is_received_is_cancelled() -> None:
    worker = WorkerSessions()

    async def never() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    opening = asyncio.create_task(worker.life.open(AUTH, 7, lambda: 5.0, never, lambda: None))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert worker.outcomes == {Outcome.CANCELLED: 1}


async def test_a_drain_waits_for_the_call_at_the_end() -> None:
    worker = WorkerSessions()
    worker.answered.clear()
    session = await worker.open({"on_close_route": "/bye", "on_close_payload": {"a": 1}})
    worker.life.sessions.end(session)
    await asyncio.sleep(0)
    assert worker.posted == [("/bye", {"a": 1, "session_id": session.id})]
    assert worker.ledger.unfinished == 1
    worker.answered.set()
    await asyncio.gather(*worker.tasks)
    assert (worker.ledger.unfinished, worker.outcomes) == (0, {Outcome.SERVED: 1})


async def test_the_call_at_the_end_has_a_time_limit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = WorkerSessions()
    worker.answered.clear()
    worker.life.sessions.end(await worker.open({"on_close_route": "/bye"}))
    await worker.clock.wait_for_timer(ON_CLOSE_LIMIT_S)
    worker.clock.advance(ON_CLOSE_LIMIT_S)
    await asyncio.gather(*worker.tasks)
    assert worker.ledger.unfinished == 0
    assert "POST /bye at its end failed" in caplog.text


async def test_a_failed_call_at_the_end_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    worker = WorkerSessions()
    worker.error = ModelUnreachable("refused")
    worker.life.sessions.end(await worker.open({"on_close_route": "/bye"}))
    await asyncio.gather(*worker.tasks)
    assert (worker.ledger.unfinished, worker.outcomes) == (0, {Outcome.SERVED: 1})
    assert "POST /bye at its end failed" in caplog.text


# The journal


class NotedSessions:
    """A journal that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str | DueEnd] = []

    def session_opened(self, end: DueEnd) -> None:
        self.notes.append(end)

    def session_ended(self, session_id: str) -> None:
        self.notes.append(session_id)


async def test_the_journal_has_each_session_until_nothing_is_due() -> None:
    worker = WorkerSessions()
    worker.life.journal = journal = NotedSessions()
    worker.answered.clear()
    plain = await worker.open()
    closing = await worker.open({"on_close_route": "/bye", "on_close_payload": {"a": 1}})
    due = [
        DueEnd(plain.id, plain.digest, None, None),
        DueEnd(closing.id, plain.digest, "/bye", {"a": 1}),
    ]
    assert (journal.notes, list(worker.life.due_ends()), worker.life.recalled) == (due, due, [])
    worker.life.sessions.end_all(SessionEnd.ENDED)
    await asyncio.sleep(0)
    assert journal.notes == [*due, plain.id]
    worker.answered.set()
    await asyncio.gather(*worker.tasks)
    assert journal.notes == [*due, plain.id, closing.id]
    assert list(worker.life.due_ends()) == []


async def test_a_session_whose_call_is_cancelled_is_still_due() -> None:
    worker = WorkerSessions()
    worker.answered.clear()
    session = await worker.open({"on_close_route": "/bye"})
    worker.life.sessions.end(session)
    await asyncio.sleep(0)
    (call,) = worker.tasks
    call.cancel()
    await asyncio.wait({call})
    assert [end.session_id for end in worker.life.due_ends()] == [session.id]
    assert worker.ledger.unfinished == 0


async def test_what_is_due_for_sessions_of_a_killed_worker_is_done_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    killed = WorkerSessions()
    await killed.open()
    closing = await killed.open({"on_close_route": "/bye", "on_close_payload": {"a": 1}})
    ends = list(killed.life.due_ends())
    worker = WorkerSessions()
    worker.life.journal = journal = NotedSessions()
    worker.answered.clear()
    worker.life.recall(ends)
    own = await worker.open({"on_close_route": "/own"})
    assert (worker.life.recalled, worker.posted) == (ends, [])
    assert worker.life.sessions.remembers(AUTH)
    assert worker.life.sessions.find_by_id(closing.id) is None
    with caplog.at_level(logging.INFO):
        worker.life.end_recalled()
    assert caplog.text.count("was open when the worker was killed") == 2
    await asyncio.sleep(0)
    assert worker.posted == [("/bye", {"a": 1, "session_id": closing.id})]
    assert (worker.ledger.in_flight, worker.ledger.unfinished) == (1, 2)  # a drain waits for the call
    assert worker.life.recalled == ends[1:]
    worker.answered.set()
    await asyncio.gather(*worker.tasks)
    assert journal.notes[1:] == [end.session_id for end in ends]
    assert (worker.life.recalled, worker.ledger.unfinished) == ([], 1)
    assert [end.session_id for end in worker.life.due_ends()] == [own.id]


async def test_an_ended_session_of_a_killed_worker_is_remembered() -> None:
    worker = WorkerSessions()
    assert not worker.life.sessions.remembers(AUTH)
    worker.life.recall([DueEnd("killed", _digest_of(AUTH), None, None)])
    assert worker.life.sessions.remembers(AUTH)
    assert not worker.life.sessions.remembers({"cost": 6})


def _digest_of(auth: dict[str, Any]) -> bytes:
    return Sessions(None, ManualClock()).create(auth, SessionTerms()).digest
