"""Observers: objects that are called at each step of a request, and never decide anything.

Owns the `Observer` base class and the calls to each observer. The access log and the timings are observers
(access_log.py, timings.py); an author's come with `Backend.observers`.
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
    exchange. What one raises is logged, and the request goes on.
    """

    def admitted(self, exchange: Exchange) -> None:
        """The request is authenticated; `exchange.entry` is its entry in the ledger."""

    def accepted(self, exchange: Exchange) -> None:
        """The payload is valid and counts as load; the request may have to wait for a slot."""

    def started(self, exchange: Exchange) -> None:
        """The request has its slot; the model is called next."""

    def first_byte(self, exchange: Exchange) -> None:
        """The first part of the answer's body is about to be written to the client."""

    def ended(self, exchange: Exchange) -> None:
        """The request has ended; `exchange.verdict` says how. A refused one was never admitted."""


class Observers:
    """The observers of every request, by step. A step that none of them overrides costs nothing."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        listed = list(observers)
        self.admitted = _of_step(listed, "admitted")
        self.accepted = _of_step(listed, "accepted")
        self.started = _of_step(listed, "started")
        self.first_byte = _of_step(listed, "first_byte")
        self.ended = _of_step(listed, "ended")


def notify(calls: Sequence[Step], exchange: Exchange) -> None:
    """Call each of `calls`, whatever the others raise."""
    for call in calls:
        try:
            call(exchange)
        except Exception:
            log.exception("request %s: an observer failed", exchange.id)


def _of_step(observers: list[Observer], step: str) -> tuple[Step, ...]:
    """The methods for `step` of those observers that override it."""
    base = getattr(cast(Any, Observer), step)
    return tuple(getattr(o, step) for o in observers if getattr(cast(Any, type(o)), step) is not base)
