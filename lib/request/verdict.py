"""The verdict on a request: its outcome in the ledger, and the reply that can still be sent.

Owns the rules, as pure functions. It does not gather the facts or act on the verdict: that is exchange.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from lib.errors import CLIENT_CLOSED_REQUEST, AnswerCut, ClientGone, DeclinedByAuthor, Refused, WorkerError
from lib.metrics import Entry, Outcome

# The logged status of a request whose connection was aborted before an answer; its client sees no status.
ABORTED_STATUS = 502
# The model server's statuses below 500 that say that it is broken: it refuses the worker (401, 403), it took
# too long itself (408), or a generation has failed (424, TGI). It must not look idle and perfect.
BROKEN_STATUSES = frozenset({401, 403, 408, 424})
_TOO_MANY_REQUESTS = 429


@dataclass(frozen=True)
class Phase:
    """The worker's shutdown: `draining` once it has begun, `cut` once remaining requests are cut off."""

    draining: bool = False
    cut: bool = False


class Reply(Enum):
    """The reply to send once the verdict is known."""

    NONE = "none"  # the answer is written, or the request's task is being cancelled
    ERROR = "error"  # an error with its own status
    ERROR_IN_BODY = "error in body"  # the error after the heartbeat's newlines
    ABORT = "abort"  # close the connection, so that no client takes a part of an answer for the whole


class Ending(NamedTuple):
    """The facts about a request that has ended.

    `error` is the exception that ended it. `status` is that of the answer, if one has begun. `requested` is
    the outcome that an author's handler set. `finishes`: the handler has `on_disconnect="finish"`. `started`:
    the request had its slot. `heartbeat_out`: newlines of the heartbeat were sent. `answer_out`: an answer
    has begun. `draining`: the worker is shutting down. `cut`: it is also cutting off the remaining requests.
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


class Verdict(NamedTuple):
    """The `outcome` of a request, the `reply` to its client, and the `status` for the log.

    `is_unexpected`: the error is not one of lib/errors.py, so its traceback is logged. `without_work`: it was
    served, and its workload was not done.
    """

    outcome: Outcome
    reply: Reply
    status: int
    is_unexpected: bool = False
    without_work: bool = False


def judge(ending: Ending) -> Verdict:
    """Decide the verdict on a request (docs/protocol.md, "Outcomes")."""
    error = ending.error
    if error is None:
        return judge_answer(ending.status, ending.requested, ending.heartbeat_out, ending.cut, ending.started)
    if _ends_the_task(error, ending):
        outcome = Outcome.ERRORED if ending.cut else _outcome_of_error(error)
        return Verdict(outcome, Reply.NONE, CLIENT_CLOSED_REQUEST)
    if isinstance(error, ClientGone) or (ending.client_left and not ending.finishes):
        outcome = Outcome.ERRORED if ending.cut else Outcome.CANCELLED
        return Verdict(outcome, Reply.ABORT, CLIENT_CLOSED_REQUEST)
    is_late = ending.cut or ending.heartbeat_out or ending.answer_out
    if isinstance(error, DeclinedByAuthor) and ending.started and not is_late:
        # It is what a model server does by a 4xx.
        return Verdict(Outcome.SERVED, Reply.ERROR, error.status, without_work=True)
    outcome = _outcome_of_error(error)
    # The client is still here: a cancellation that came from the handler's own code is the handler's error.
    is_cancelled = outcome is Outcome.CANCELLED
    if ending.cut or ending.heartbeat_out or ending.answer_out or is_cancelled:
        outcome = Outcome.ERRORED
    is_unexpected = not isinstance(error, (WorkerError, AnswerCut))
    if ending.answer_out or isinstance(error, AnswerCut):
        return Verdict(outcome, Reply.ABORT, _sent_status(ending), is_unexpected)
    if ending.heartbeat_out:
        return Verdict(outcome, Reply.ERROR_IN_BODY, 200, is_unexpected)
    status = error.status if isinstance(error, WorkerError) else 500
    return Verdict(outcome, Reply.ERROR, status, is_unexpected)


def judge_answer(
    status: int, requested: Outcome | None, heartbeat_out: bool, cut: bool, started: bool
) -> Verdict:
    """Decide the verdict on a request whose answer was written whole; the arguments are those of `Ending`."""
    without_work = False
    if cut:  # its connection was aborted meanwhile
        outcome = Outcome.ERRORED
    elif requested is not None:
        outcome = requested
    elif status < 400:
        outcome = Outcome.SERVED
    elif heartbeat_out:  # the client has read status 200, whatever the model answered
        outcome = Outcome.ERRORED
    else:
        outcome = _outcome_of_status(status, started)
        without_work = outcome is Outcome.SERVED
    return Verdict(outcome, Reply.NONE, 200 if heartbeat_out else status, without_work=without_work)


def conclude(entry: Entry | None, ending: Ending) -> Verdict:
    """Judge `ending` and give `entry` its outcome; None for a request that was never admitted."""
    verdict = judge(ending)
    if entry is not None:
        entry.set_outcome(verdict.outcome, verdict.without_work)
    return verdict


def _outcome_of_status(status: int, started: bool) -> Outcome:
    """The outcome of a request that was answered with `status`, 400 or higher.

    Below 500 it depends on whether the request has `started`: else a middleware refused it, not the model.
    """
    if status >= 500 or (started and status in BROKEN_STATUSES):
        return Outcome.ERRORED
    return Outcome.REJECTED if started and status == _TOO_MANY_REQUESTS else Outcome.SERVED


def _outcome_of_error(error: BaseException) -> Outcome:
    """The outcome of a request that `error` has ended before any part of an answer was sent."""
    if isinstance(error, (asyncio.CancelledError, ClientGone)):
        return Outcome.CANCELLED
    return Outcome.REJECTED if isinstance(error, Refused) else Outcome.ERRORED


def _sent_status(ending: Ending) -> int:
    """The status that the client of an aborted connection has read."""
    if ending.heartbeat_out:
        return 200
    return ending.status if ending.answer_out and ending.status else ABORTED_STATUS


def _ends_the_task(error: BaseException, ending: Ending) -> bool:
    """Whether the request's task is being cancelled from outside, or the process is ending.

    A `CancelledError` that the handler's own code raises is an error of the handler. `KeyboardInterrupt` and
    `SystemExit` end the process, so no reply is made.
    """
    if isinstance(error, Exception):
        return False
    by_client = ending.client_left and not (ending.finishes and ending.started)
    is_cancelled = isinstance(error, asyncio.CancelledError)
    return not is_cancelled or ending.cut or ending.draining or by_client
