"""Requests that have failed at the model server one after the other (docs/operating.md, "States").

Owns which ends of requests count. What follows from a row of them is decided in failure_probe.py.
"""

from __future__ import annotations

import asyncio

import anyio

from lib.errors import AnswerStalled, ClientGone, ModelTimedOut, Refused

# Requests in a row that lead to a request of the worker's own.
LENGTH = 5
STALL = "a stall"
_TIMED_OUT = 504


class FailureRow:
    """Counts requests that ended in 504, in a stall or in a 5xx of the model server, up to any other end.

    A client that leaves, and a request that was not tried, say nothing about the model server. `last` says
    how the last one that counts has ended: its status, or `STALL`.
    """

    __slots__ = ("_is_full", "count", "last")

    def __init__(self) -> None:
        self.count = 0
        self.last = ""
        self._is_full = anyio.Event()

    def note_status(self, status: int) -> None:
        """Note that a request ended with an answer of `status`: the model server's, or a 504."""
        if status < 500:
            self.count = 0
            return
        self._note(str(status))

    def note_error(self, error: BaseException) -> None:
        """Note that a request ended with `error`."""
        if isinstance(error, ModelTimedOut):
            self.note_status(_TIMED_OUT)
        elif isinstance(error, AnswerStalled):
            self._note(STALL)
        elif not isinstance(error, (ClientGone, Refused, asyncio.CancelledError)):
            self.count = 0

    def _note(self, end: str) -> None:
        self.count += 1
        self.last = end
        if self.count >= LENGTH:
            self._is_full.set()

    async def full(self) -> None:
        """Wait for `LENGTH` requests in a row that failed; then begin anew."""
        await self._is_full.wait()
        self.count, self._is_full = 0, anyio.Event()
