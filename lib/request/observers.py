"""Observers: objects that are called at each step of a request, and can't influence it.

Owns the `Observer` base class and the calls of observers. The access log (access_log.py) and the timings
(timings.py) are observers; an author adds others to `Backend.observers`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from lib.request.exchange import Exchange

log = logging.getLogger(__name__)

Step = Callable[["Exchange"], None]


class Observer:
    """A base class: override the steps to observe.

    The methods run on the event loop, in the order of the steps; they must neither block nor change the
    exchange. An exception is logged, and the request goes on.
    """

    def admitted(self, exchange: Exchange) -> None:
        """Called when the request is authenticated; `exchange.entry` is its entry in the ledger."""

    def accepted(self, exchange: Exchange) -> None:
        """Called when the payload is valid and counts as load; the request may have to wait for a slot."""

    def started(self, exchange: Exchange) -> None:
        """Called when the request has its slot; the model is called next."""

    def first_byte(self, exchange: Exchange) -> None:
        """Called before the first byte of the answer's body is written to the client."""

    def ended(self, exchange: Exchange) -> None:
        """Called at the end; `exchange.verdict` is set. The only call for an unauthenticated request."""


class Observers:
    """The methods of all observers by step; a step that no observer overrides has none."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        listed = list(observers)
        self.admitted = _of_step(listed, "admitted")
        self.accepted = _of_step(listed, "accepted")
        self.started = _of_step(listed, "started")
        self.first_byte = _of_step(listed, "first_byte")
        self.ended = _of_step(listed, "ended")


def notify(calls: Sequence[Step], exchange: Exchange) -> None:
    """Call each of `calls`, and log what they raise."""
    for call in calls:
        try:
            call(exchange)
        except Exception:
            log.exception("request %s: an observer failed", exchange.id)


def _of_step(observers: list[Observer], step: str) -> tuple[Step, ...]:
    """The methods of `step` of the observers that override it."""
    base = getattr(cast(Any, Observer), step)
    return tuple(getattr(o, step) for o in observers if getattr(cast(Any, type(o)), step) is not base)
