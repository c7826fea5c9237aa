"""The limit of silence in an answer that has begun (`MODEL_STALL_TIMEOUT_S`), for all connections together.

Owns when an answer counts as stalled. What its connection then does, and whether it waits for the model
server or for its own reader, is the connection's: direct.py and checked_connector.py.
"""

from __future__ import annotations

from typing import Protocol

from lib.runtime.clock import Clock, Timer

# An answer is looked at this many times within the limit, and may be that part of it late. Arriving bytes
# cost nothing here: no timer is set for them, and no time is read. A worker that was itself held up for
# longer than the limit has looked only once meanwhile, and takes no answer for stalled.
LOOKS = 20


class Stall(ConnectionError):
    """Nothing came on an answer for the limit."""


class Watched(Protocol):
    """One connection to the model server."""

    @property
    def progress(self) -> object:
        """A value that is another one after every part of an answer's body; None while none is waited for.

        None also before the body's first byte, and while its reader takes nothing.
        """
        ...

    def stall(self, error: Stall) -> None:
        """End the answer, which has stalled, as one that broke off with `error`."""
        ...


class StallWatch:
    """Breaks off the answers on which nothing comes for `limit_s` seconds; None: no limit."""

    def __init__(self, clock: Clock, limit_s: float | None = None) -> None:
        self._clock = clock
        self._limit_s = limit_s
        self._seen: dict[Watched, tuple[object, int]] = {}  # the progress, and how often it was the same
        self._timer: Timer | None = None

    def add(self, connection: Watched) -> None:
        """Watch the answers on `connection` from now on."""
        if self._limit_s is not None:
            self._seen[connection] = None, 0
            self._set_timer(self._limit_s)

    def remove(self, connection: Watched) -> None:
        """Watch `connection` no longer."""
        self._seen.pop(connection, None)
        if not self._seen and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self, limit_s: float) -> None:
        if self._timer is None:
            self._timer = self._clock.call_later(limit_s / LOOKS, lambda: self._look(limit_s))

    def _look(self, limit_s: float) -> None:
        self._timer = None
        self._set_timer(limit_s)
        for connection, (before, count) in list(self._seen.items()):
            progress = connection.progress
            count = count + 1 if progress is not None and progress == before else 0
            self._seen[connection] = progress, count
            if count == LOOKS:
                connection.stall(Stall(f"nothing came for {limit_s:g} s (MODEL_STALL_TIMEOUT_S)"))
