"""Writes that are made together, at the end of the event loop's turn.

Owns the moment at which connections write. A write wakes the process that reads it, which costs more than the
write itself: whoever reads from several connections is woken once for all that one turn has for it. What the
only busy connection has to write is written at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sized
from typing import Protocol

log = logging.getLogger(__name__)


class Writer(Protocol):
    """A connection that holds what it has to write."""

    def flush(self) -> None:
        """Write what is held, if the connection is still open."""
        ...


class Outbox:
    """Calls `flush` of each connection that was added, once, after all that has arrived was read.

    `connections` are all that may be added, and `idle` those of them that are not in use. The only one in use
    is flushed at once. `before` is called before each write.
    """

    __slots__ = ("_connections", "_idle", "_writers", "before")

    def __init__(self, connections: Sized, idle: Sized) -> None:
        self.before: Callable[[], object] = _nothing
        self._connections = connections
        self._idle = idle
        self._writers: list[Writer] = []

    def add(self, writer: Writer) -> None:
        """Have `writer` flushed. Call it when the writer begins to hold something."""
        if len(self._connections) - len(self._idle) <= 1:
            self.before()
            writer.flush()
            return
        if not self._writers:
            asyncio.get_running_loop().call_soon(self._flush)
        self._writers.append(writer)

    def _flush(self) -> None:
        self.before()
        writers, self._writers = self._writers, []
        for writer in writers:
            try:
                writer.flush()
            except Exception:
                log.exception("a write failed")


def _nothing() -> None:
    pass
