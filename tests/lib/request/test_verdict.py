"""The verdict on a request: one table of facts, outcomes and replies."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from lib.errors import (
    AnswerCut,
    ClientGone,
    DeclinedByAuthor,
    Draining,
    Invalid,
    ModelTimedOut,
    ModelUnreachable,
    NotReady,
    SessionGone,
    TooBusy,
)
from lib.metrics import Ledger, Outcome
from lib.request.verdict import Ending, Phase, Reply, Verdict, conclude, judge
from tests.manual_clock import ManualClock

CANCELLED = asyncio.CancelledError()
BUG = RuntimeError("a bug")
BUSY = TooBusy("busy", 1.0)
CUT = AnswerCut("broke off")
GONE = ClientGone()
UNREACHABLE = ModelUnreachable("refused")

SERVED, ERRORED, REJECTED, LEFT = Outcome.SERVED, Outcome.ERRORED, Outcome.REJECTED, Outcome.CANCELLED
NONE, ERROR, IN_BODY, ABORT = Reply.NONE, Reply.ERROR, Reply.ERROR_IN_BODY, Reply.ABORT


def unexpected(outcome: Outcome, reply: Reply, status: int) -> Verdict:
    return Verdict(outcome, reply, status, is_unexpected=True)


def raised(outcome: Outcome) -> Verdict:
    return Verdict(outcome, NONE, 499)


def mid_answer(error: Exception) -> Ending:
    return Ending(error=error, status=206, answer_out=True)


TABLE: list[tuple[str, Ending, Verdict]] = [
    # An answer was passed on to its last byte.
    ("200", Ending(status=200), Verdict(SERVED, NONE, 200)),
    ("a middleware's 404", Ending(status=404), Verdict(SERVED, NONE, 404, without_work=True)),
    ("a middleware's 401", Ending(status=401), Verdict(SERVED, NONE, 401, without_work=True)),
    ("a middleware's 429", Ending(status=429), Verdict(SERVED, NONE, 429, without_work=True)),
    ("the model's 302", Ending(status=302, started=True), Verdict(SERVED, NONE, 302)),
    *(
        (
            f"the model's {status}",
            Ending(status=status, started=True),
            Verdict(SERVED, NONE, status, without_work=True),
        )
        for status in (400, 402, 404, 405, 407, 409, 413, 422, 423, 425, 428, 430, 431, 451, 499)
    ),
    *(
        (f"the model's {status}", Ending(status=status, started=True), Verdict(ERRORED, NONE, status))
        for status in (401, 403, 408, 424, 500, 503, 599)
    ),
    ("the model's 399", Ending(status=399, started=True), Verdict(SERVED, NONE, 399)),
    ("the model's 429", Ending(status=429, started=True), Verdict(REJECTED, NONE, 429)),
    (
        "an author says that a 404 is served",
        Ending(status=404, started=True, requested=SERVED),
        Verdict(SERVED, NONE, 404),
    ),
    ("the model's 404, cut", Ending(status=404, started=True, cut=True), Verdict(ERRORED, NONE, 404)),
    ("the model's 500", Ending(status=500), Verdict(ERRORED, NONE, 500)),
    ("200 after a heartbeat", Ending(status=200, heartbeat_out=True), Verdict(SERVED, NONE, 200)),
    ("429 after a heartbeat", Ending(status=429, heartbeat_out=True), Verdict(ERRORED, NONE, 200)),
    ("404 after a heartbeat", Ending(status=404, heartbeat_out=True), Verdict(ERRORED, NONE, 200)),
    ("an author says errored", Ending(status=200, requested=ERRORED), Verdict(ERRORED, NONE, 200)),
    ("an author says served", Ending(status=500, requested=SERVED), Verdict(SERVED, NONE, 500)),
    ("served, though the client left", Ending(status=200, client_left=True), Verdict(SERVED, NONE, 200)),
    ("served while draining", Ending(status=200, draining=True), Verdict(SERVED, NONE, 200)),
    ("an answer after the cut", Ending(status=200, cut=True, draining=True), Verdict(ERRORED, NONE, 200)),
    # An error of the worker's own, before anything was sent.
    ("invalid", Ending(error=Invalid({})), Verdict(ERRORED, ERROR, 422)),
    (
        "refused by the author's code",
        Ending(error=DeclinedByAuthor({}), started=True),
        Verdict(SERVED, ERROR, 422, without_work=True),
    ),
    ("session gone", Ending(error=SessionGone()), Verdict(ERRORED, ERROR, 410)),
    ("unreachable", Ending(error=UNREACHABLE), Verdict(ERRORED, ERROR, 502)),
    ("timed out", Ending(error=ModelTimedOut("slow")), Verdict(ERRORED, ERROR, 504)),
    ("too busy", Ending(error=BUSY), Verdict(REJECTED, ERROR, 429)),
    ("loading", Ending(error=NotReady("loading")), Verdict(REJECTED, ERROR, 503)),
    ("draining", Ending(error=Draining(), draining=True), Verdict(REJECTED, ERROR, 503)),
    ("a bug", Ending(error=BUG), unexpected(ERRORED, ERROR, 500)),
    ("broken off", Ending(error=CUT), Verdict(ERRORED, ABORT, 502)),
    # A heartbeat has sent status 200: an error goes into the body.
    ("invalid, late", Ending(error=Invalid({}), heartbeat_out=True), Verdict(ERRORED, IN_BODY, 200)),
    ("too busy, late", Ending(error=BUSY, heartbeat_out=True), Verdict(ERRORED, IN_BODY, 200)),
    ("a bug, late", Ending(error=BUG, heartbeat_out=True), unexpected(ERRORED, IN_BODY, 200)),
    ("broken off, late", Ending(error=CUT, heartbeat_out=True), Verdict(ERRORED, ABORT, 200)),
    # A part of an answer is out: no second status line.
    ("a bug in mid-answer", mid_answer(BUG), unexpected(ERRORED, ABORT, 206)),
    (
        "unreachable in mid-answer",
        mid_answer(UNREACHABLE),
        Verdict(ERRORED, ABORT, 206),
    ),
    ("too busy in mid-answer", mid_answer(BUSY), Verdict(ERRORED, ABORT, 206)),
    (
        "a bug after a heartbeat and a part of an answer",
        Ending(error=BUG, heartbeat_out=True, answer_out=True),
        unexpected(ERRORED, ABORT, 200),
    ),
    # The client left.
    ("gone", Ending(error=GONE, client_left=True), Verdict(LEFT, ABORT, 499)),
    ("gone, found in writing", Ending(error=GONE), Verdict(LEFT, ABORT, 499)),
    ("a bug after it left", Ending(error=BUG, client_left=True), Verdict(LEFT, ABORT, 499)),
    ("broken off after it left", Ending(error=CUT, client_left=True), Verdict(LEFT, ABORT, 499)),
    ("cancelled as it left", Ending(error=CANCELLED, client_left=True), raised(LEFT)),
    ("cancelled as it left its work", Ending(error=CANCELLED, client_left=True, started=True), raised(LEFT)),
    (
        "cancelled as it left the queue, though its work would finish",
        Ending(error=CANCELLED, client_left=True, finishes=True),
        raised(LEFT),
    ),
    # It left, and the work finishes all the same.
    ("finished without it", Ending(status=200, client_left=True, finishes=True), Verdict(SERVED, NONE, 200)),
    (
        "a bug, and nobody reads of it",
        Ending(error=BUG, client_left=True, finishes=True, started=True),
        unexpected(ERRORED, ERROR, 500),
    ),
    (
        "cancelled by its own code after it left",
        Ending(error=CANCELLED, client_left=True, finishes=True, started=True),
        unexpected(ERRORED, ERROR, 500),
    ),
    # The handler's own code raised CancelledError; nothing cancelled the task.
    ("cancelled by its own code", Ending(error=CANCELLED), unexpected(ERRORED, ERROR, 500)),
    (
        "cancelled by its own code, late",
        Ending(error=CANCELLED, heartbeat_out=True),
        unexpected(ERRORED, IN_BODY, 200),
    ),
    # The worker stops.
    ("cancelled by the worker", Ending(error=CANCELLED, draining=True), raised(LEFT)),
    ("cut by the worker", Ending(error=CANCELLED, cut=True, draining=True), raised(ERRORED)),
    ("cut without a drain", Ending(error=CANCELLED, cut=True), raised(ERRORED)),
    ("cut, and the client left", Ending(error=CANCELLED, cut=True, client_left=True), raised(ERRORED)),
    ("cut, found in writing", Ending(error=GONE, cut=True, client_left=True), Verdict(ERRORED, ABORT, 499)),
    ("a bug when all is cut", Ending(error=BUG, cut=True), unexpected(ERRORED, ERROR, 500)),
    ("too busy when all is cut", Ending(error=BUSY, cut=True), Verdict(ERRORED, ERROR, 429)),
    # The process is being ended.
    ("interrupted", Ending(error=KeyboardInterrupt()), raised(ERRORED)),
    ("exits", Ending(error=SystemExit(1), client_left=True), raised(ERRORED)),
]


@pytest.mark.parametrize(("ending", "verdict"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_the_table(ending: Ending, verdict: Verdict) -> None:
    assert judge(ending) == verdict


def test_a_worker_is_neither_draining_nor_cutting_off_until_it_says_so() -> None:
    assert Phase() == Phase(draining=False, cut=False)


ERRORS = (
    None,
    Invalid({}),
    DeclinedByAuthor({}),
    BUSY,
    UNREACHABLE,
    CUT,
    GONE,
    BUG,
    CANCELLED,
    KeyboardInterrupt(),
)
FLAGS = ("client_left", "finishes", "started", "heartbeat_out", "answer_out", "cut", "draining")
ENDINGS = [
    Ending(error=error, status=200)._replace(**dict(zip(FLAGS, flags, strict=True)))
    for error in ERRORS
    for flags in itertools.product((False, True), repeat=len(FLAGS))
]


def test_a_second_status_line_is_never_written() -> None:
    for ending in ENDINGS:
        reply = judge(ending).reply
        if ending.answer_out:
            assert reply in (NONE, ABORT), ending
        elif ending.heartbeat_out:
            assert reply is not ERROR, ending
        else:
            assert reply is not IN_BODY, ending


def test_a_request_that_the_worker_cuts_is_errored_even_if_the_client_left() -> None:
    for ending in ENDINGS:
        if ending.cut:
            assert judge(ending).outcome is ERRORED, ending


def test_only_an_answer_without_an_error_is_served() -> None:
    for ending in ENDINGS:
        verdict = judge(ending)
        is_refusal = isinstance(ending.error, DeclinedByAuthor) and verdict.without_work
        assert (verdict.outcome is SERVED) == ((ending.error is None and not ending.cut) or is_refusal), (
            ending
        )


def test_every_error_has_a_reply_unless_it_ends_the_task() -> None:
    for ending in ENDINGS:
        has_reply = judge(ending).reply is not NONE
        if isinstance(ending.error, Exception):
            assert has_reply, ending
        if isinstance(ending.error, (KeyboardInterrupt, type(None))):
            assert not has_reply, ending


def test_the_entry_of_a_request_gets_its_outcome() -> None:
    ledger = Ledger(ManualClock())
    entry = ledger.open(1)
    assert conclude(entry, Ending(error=BUSY)) == Verdict(REJECTED, ERROR, 429)
    assert entry.outcome is REJECTED
    assert conclude(None, Ending(error=BUSY)) == Verdict(REJECTED, ERROR, 429)
