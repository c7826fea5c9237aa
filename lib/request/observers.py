"""Observers: objects that are called at each step of a request, and can't influence it.

Owns the `Observer` base class and the checks of observers. The access log (access_log.py) and the timings
(timings.py) are observers; an author adds others to `Backend.observers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, cast

from lib.fields.callables import call_problems, same_function
from lib.request.exchange import Exchange, Step, Steps

_STEPS = tuple(field.name for field in fields(Steps))


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


def observer_problems(observers: Sequence[object]) -> Iterator[str]:
    """Yield a line for each reason why a step of one of `observers` would not be called, or would fail."""
    for observer in observers:
        if isinstance(observer, type):
            yield f"observers: {observer.__name__} is a class: give an object, {observer.__name__}()"
            continue
        name = f"observer {type(observer).__name__}"
        for step in _STEPS:
            yield from call_problems(f"{name}: {step}", getattr(observer, step, None), 1)
        if not any(_functions([observer], step) for step in _STEPS):
            own = [member for member in dir(observer) if not member.startswith("_") and member not in _STEPS]
            similar = {member: get_close_matches(member, _STEPS, 1) for member in own}
            hints = [f"; by {member}, did you mean {steps[0]}?" for member, steps in similar.items() if steps]
            yield f"{name} has none of the steps {', '.join(_STEPS)}{''.join(hints)}"


def steps_of(observers: Sequence[object]) -> Steps:
    """The methods of all observers by step; a step that no observer overrides has none."""
    return Steps(
        admitted=_functions(observers, "admitted"),
        accepted=_functions(observers, "accepted"),
        started=_functions(observers, "started"),
        first_byte=_functions(observers, "first_byte"),
        ended=_functions(observers, "ended"),
    )


def _functions(observers: Sequence[object], step: str) -> tuple[Step, ...]:
    """The functions of `step`, without those that only inherit the empty one of `Observer`."""
    empty = getattr(cast(Any, Observer), step)
    functions = (getattr(observer, step, None) for observer in observers)
    return tuple(f for f in functions if f is not None and not same_function(f, empty))
