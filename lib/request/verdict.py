"""The verdict on a request: its outcome for the ledger, and the reply that its client can still get.

Owns the rules, as pure functions of facts. Who gathers the facts, and acts on the verdict, is exchange.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum

from lib.errors import CLIENT_CLOSED_REQUEST, AnswerCut, ClientGone, Refused, WorkerError
from lib.metrics import Outcome

# The status in the log of an answer that was aborted; its client sees a broken connection.
ABORTED_STATUS = 502


class Reply(Enum):
    """What the client is sent once the verdict is known."""

    NONE = "none"  # its answer is written, or the request's task is being ended
    ERROR = "error"  # an error with a status of its own
    ERROR_IN_BODY = "error in body"  # the error after the heartbeat's newlines
    ABORT = "abort"  # the connection is aborted: a part of an answer can't be mistaken for the whole


@dataclass(frozen=True, kw_only=True)
class Ending:
    """The facts about a request that has ended.

    `error` is what ended it, or None with the `status` of the answer that was passed on. `requested` is the
    outcome that an author's handler asked for. `finishes`: the handler lets the model's work finish when the
    client leaves. `started`: it had its slot. `cut` and `draining`: what the worker does.
    """

    error: BaseException | None = None
    status: int = 0
    requested: Outcome | None = None
    client_left: bool = False
    finishes: bool = False
    started: bool = False
    heartbeat_out: bool = False
    answer_out: bool = False
    cut: bool = False
    draining: bool = False


@dataclass(frozen=True)
class Verdict:
    """The `outcome` of a request, the `reply` to its client, and the `status` for the log.

    `is_unexpected`: no error of the worker's own ended it, and the log gets the traceback.
    """

    outcome: Outcome
    reply: Reply
    status: int
    is_unexpected: bool = False


def judge(ending: Ending) -> Verdict:
    """Decide what became of a request (docs/protocol.md, "Outcomes")."""
    error = ending.error
    if error is None:
        return Verdict(_outcome_of_answer(ending), Reply.NONE, ending.status)
    if _ends_the_task(error, ending):
        outcome = Outcome.ERRORED if ending.cut else outcome_of_error(error)
        return Verdict(outcome, Reply.NONE, CLIENT_CLOSED_REQUEST)
    if isinstance(error, ClientGone) or (ending.client_left and not ending.finishes):
        outcome = Outcome.ERRORED if ending.cut else Outcome.CANCELLED
        return Verdict(outcome, Reply.ABORT, CLIENT_CLOSED_REQUEST)
    outcome = outcome_of_error(error)
    if ending.cut or ending.heartbeat_out or ending.answer_out or outcome is Outcome.CANCELLED:
        outcome = Outcome.ERRORED
    is_unexpected = not isinstance(error, (WorkerError, AnswerCut))
    if ending.answer_out or isinstance(error, AnswerCut):
        return Verdict(outcome, Reply.ABORT, ABORTED_STATUS, is_unexpected)
    if ending.heartbeat_out:
        return Verdict(outcome, Reply.ERROR_IN_BODY, 200, is_unexpected)
    status = error.status if isinstance(error, WorkerError) else 500
    return Verdict(outcome, Reply.ERROR, status, is_unexpected)


def outcome_of_error(error: BaseException) -> Outcome:
    """The outcome of a request that `error` ended before any of its answer was out."""
    if isinstance(error, (asyncio.CancelledError, ClientGone)):
        return Outcome.CANCELLED
    return Outcome.REJECTED if isinstance(error, Refused) else Outcome.ERRORED


def outcome_of_session(broken_off: bool) -> Outcome:
    """The outcome of a session: served by its end or expiry, cancelled where the worker broke it off."""
    return Outcome.CANCELLED if broken_off else Outcome.SERVED


def _outcome_of_answer(ending: Ending) -> Outcome:
    if ending.requested is not None:
        return ending.requested
    # After a heartbeat the client has read status 200, whatever the model answered.
    limit = 400 if ending.heartbeat_out else 500
    return Outcome.SERVED if ending.status < limit else Outcome.ERRORED


def _ends_the_task(error: BaseException, ending: Ending) -> bool:
    """Whether the request's task is being ended from outside.

    A handler whose own code cancels itself ends nothing but its request: that is an error of the handler's.
    """
    if isinstance(error, Exception):
        return False
    by_client = ending.client_left and not (ending.finishes and ending.started)
    is_cancelled = isinstance(error, asyncio.CancelledError)
    return not is_cancelled or ending.cut or ending.draining or by_client
