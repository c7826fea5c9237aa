"""Observers: objects that are called at each step of a request, and never decide anything.

Owns the `Observer` base class and the calls to each observer. The access log and the timings are observers
(access_log.py, timings.py); an author's come with `Backend.observers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from lib.request.exchange import Exchange, Step, Steps


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


def steps_of(observers: Sequence[Observer]) -> Steps:
    """The functions to call at each step. A step that no observer overrides costs nothing."""
    return Steps(
        admitted=_functions(observers, "admitted"),
        accepted=_functions(observers, "accepted"),
        started=_functions(observers, "started"),
        first_byte=_functions(observers, "first_byte"),
        ended=_functions(observers, "ended"),
    )


def _functions(observers: Sequence[Observer], step: str) -> tuple[Step, ...]:
    """The methods for `step` of those observers that override it."""
    base = getattr(cast(Any, Observer), step)
    return tuple(getattr(o, step) for o in observers if getattr(cast(Any, type(o)), step) is not base)
