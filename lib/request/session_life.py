"""The life of sessions: each counts as one request, from its creation to its end.

Owns the ledger entries of sessions and the call to the model server at a session's end. It does not own ids,
terms and expiry (sessions.py) or the routes that clients call (lib/routes/sessions.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

from lib.errors import async_result_or_error
from lib.metrics import Entry, Ledger
from lib.request.detached import Spawn
from lib.request.sessions import DueEnd, Session, SessionEnd, Sessions, SessionTerms
from lib.request.verdict import Ending, Phase, conclude
from lib.runtime.clock import Clock, time_limit

log = logging.getLogger(__name__)

# Limit of the call to the model server at a session's end, in seconds.
ON_CLOSE_LIMIT_S = 10.0

# Sends a JSON object by POST to a path on the model server, and reads the whole answer.
Post = Callable[[str, dict[str, Any]], Awaitable[None]]


class SessionJournal(Protocol):
    """Records what is due at the ends of sessions (lib/engine/journal.py)."""

    def session_opened(self, end: DueEnd) -> None: ...

    def session_ended(self, session_id: str) -> None: ...


class SessionLife:
    """Opens the sessions of a worker and ends them, with their entries in `ledger`.

    A session's workload is in flight from its creation to its end. If its terms have an `on_close_route`,
    `post` is called with it once at the end, within `ON_CLOSE_LIMIT_S`; a failure is only logged.
    """

    def __init__(
        self,
        sessions: Sessions,
        ledger: Ledger,
        clock: Clock,
        post: Post,
        spawn: Spawn,
        phase: Callable[[], Phase] = Phase,
    ) -> None:
        self.sessions = sessions
        self._ledger = ledger
        self._clock = clock
        self._post = post
        self._spawn = spawn
        self._phase = phase
        self._entries: dict[str, Entry] = {}
        self._due: dict[str, DueEnd] = {}
        self._recalled: dict[str, None] = {}  # in their order
        self.journal: SessionJournal | None = None
        sessions.on_end = self._ended

    async def open(
        self,
        raw_auth: dict[str, Any],
        request_idx: int | None,
        count_workload: Callable[[], float],
        read_payload: Callable[[], Awaitable[dict[str, Any]]],
        check_ready: Callable[[], object],
    ) -> Session:
        """Open a session for an authenticated client, with the terms in the result of `read_payload`.

        Raises `Invalid` (422), `TooBusy` (429) if too many sessions are open, and what `count_workload`,
        `read_payload` and `check_ready` raise. The error also sets the request's outcome in the ledger.
        """
        entry = self._ledger.open(request_idx)
        try:
            terms = SessionTerms.from_json(await read_payload())
            entry.set_workload(count_workload())
            check_ready()
            session = self.sessions.create(raw_auth, terms)
        except BaseException as e:
            # Whoever cancels this is the client, by leaving, or the worker.
            phase, is_cancelled = self._phase(), isinstance(e, asyncio.CancelledError)
            ending = Ending(error=e, client_left=is_cancelled, cut=phase.cut, draining=phase.draining)
            conclude(entry, ending)
            raise
        entry.accept()
        entry.start()
        self._entries[session.id] = entry
        self._due[session.id] = end = DueEnd.of(session)
        if self.journal is not None:
            self.journal.session_opened(end)
        return session

    def workload_of(self, session: Session) -> float:
        """The workload in flight for `session`, without the requests inside it; 0.0 once it has ended."""
        entry = self._entries.get(session.id)
        return 0.0 if entry is None else entry.workload

    def due_ends(self) -> Iterable[DueEnd]:
        """Return what is still due at the ends of sessions that are open, or have just ended."""
        return self._due.values()

    def recall(self, ends: Iterable[DueEnd]) -> None:
        """Take over what is due for sessions that were open when the worker was killed."""
        for end in ends:
            self.sessions.remember_ended(end.digest)
            self._due[end.session_id] = end
            self._recalled[end.session_id] = None

    @property
    def recalled(self) -> Sequence[DueEnd]:
        """The part of what `recall` has taken over that is still due."""
        return [self._due[session_id] for session_id in self._recalled if session_id in self._due]

    def end_recalled(self) -> None:
        """Make the calls that `recall` has taken over."""
        for end in self.recalled:
            log.info("session %s… was open when the worker was killed", end.session_id[:6])
            self._make_due_call(end)

    def _ended(self, session: Session, reason: SessionEnd) -> None:
        is_drained = reason is SessionEnd.DRAINED
        ending = Ending(error=asyncio.CancelledError(), draining=True) if is_drained else Ending(status=200)
        conclude(self._entries.pop(session.id), ending)
        log.info("session %s… %s", session.id[:6], reason.value)
        self._make_due_call(self._due[session.id])

    def _make_due_call(self, end: DueEnd) -> None:
        if end.route is None:
            self._forget(end)
            return
        call = self._ledger.open(counted=False)  # before the task runs, so that a drain waits for it
        self._spawn(partial(self._post_on_close, end, end.route, call))

    async def _post_on_close(self, end: DueEnd, route: str, call: Entry) -> None:
        """Call the model server as is due at a session's end."""
        message = {**(end.payload or {}), "session_id": end.session_id}
        error: Exception | None = TimeoutError()  # replaced unless the time limit cuts the call
        try:
            with time_limit(self._clock, ON_CLOSE_LIMIT_S):
                error = await async_result_or_error(self._post(route, message))
            self._forget(end)
        finally:
            conclude(call, Ending(error=error, status=200))
        if error is not None:
            log.warning("session %s…: POST %s at its end failed: %r", end.session_id[:6], route, error)

    def _forget(self, end: DueEnd) -> None:
        """Note that nothing is due any more."""
        self._due.pop(end.session_id, None)
        if self.journal is not None:
            self.journal.session_ended(end.session_id)
