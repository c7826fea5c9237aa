"""Fault injection: how the local engine misbehaves on request, to test workers and clients.

Owns the kinds of fault and how often each applies. api.py applies them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from lib.local.messages import Fields

FaultKind = Literal["reports", "completions", "pubkey", "route"]

FAULT_KINDS: tuple[FaultKind, ...] = ("reports", "completions", "pubkey", "route")


@dataclass
class Fault:
    """A fault that applies to requests of one kind, after a delay of `delay_s` seconds.

    Args:
        drop: close the connection without processing the request.
        refuse: answer 503 without processing the request.
        status: answer with this status, 400 to 599, without processing the request.
        lose: process the request, then close the connection without an answer.
        delay_s: seconds to wait first; may be combined with the others, of which only one may be set.
        times: how many requests it applies to before it clears itself; None: until it is cleared.
    """

    drop: bool = False
    refuse: bool = False
    status: int | None = None
    lose: bool = False
    delay_s: float = 0.0
    times: int | None = None

    @property
    def active(self) -> bool:
        """Whether it changes the handling of the next request."""
        wanted = self.drop or self.refuse or self.lose or self.status is not None or self.delay_s > 0
        return wanted and self.times != 0


@dataclass
class Faults:
    """The fault for each kind of request; fields may be assigned at any time."""

    reports: Fault = field(default_factory=Fault)
    completions: Fault = field(default_factory=Fault)
    pubkey: Fault = field(default_factory=Fault)
    route: Fault = field(default_factory=Fault)

    def of(self, kind: FaultKind) -> Fault:
        """The fault for `kind`; an inactive one if none is set."""
        faults = {
            "reports": self.reports,
            "completions": self.completions,
            "pubkey": self.pubkey,
            "route": self.route,
        }
        return faults[kind]

    def take(self, kind: FaultKind) -> Fault | None:
        """Return the fault for the next request of `kind` and count that request; None if none is active."""
        fault = self.of(kind)
        if not fault.active:
            return None
        taken = replace(fault)
        if fault.times is not None:
            fault.times -= 1
            if fault.times <= 0:
                setattr(self, kind, Fault())
        return taken

    def clear(self) -> None:
        """Clear the faults of every kind."""
        for kind in FAULT_KINDS:
            setattr(self, kind, Fault())

    def to_json(self) -> dict[str, Any]:
        """The faults of every kind, as `/local/faults` shows them."""
        return asdict(self)

    def update(self, message: Mapping[str, object]) -> None:
        """Set faults from JSON such as `{"reports": {"lose": true, "times": 2}, "route": null}`.

        Null clears a kind; a kind left out keeps its fault. Raises `BadMessage` (400) that names every wrong
        field; then nothing changes.
        """
        reader = Fields(message)
        reader.only(*FAULT_KINDS)
        wanted: dict[str, Fault] = {}
        for kind in FAULT_KINDS:
            if reader.has(kind):
                wanted[kind] = _read_fault(reader.object(kind))
            elif kind in message:
                wanted[kind] = Fault()
        reader.finish()
        for kind, fault in wanted.items():
            setattr(self, kind, fault)


def _read_fault(reader: Fields) -> Fault:
    reader.only(*(f.name for f in fields(Fault)))
    fault = Fault(
        drop=reader.has("drop") and reader.boolean("drop"),
        refuse=reader.has("refuse") and reader.boolean("refuse"),
        status=reader.integer("status", 400) if reader.has("status") else None,
        lose=reader.has("lose") and reader.boolean("lose"),
        delay_s=reader.number("delay_s", 0.0) if reader.has("delay_s") else 0.0,
        times=reader.integer("times", 1) if reader.has("times") else None,
    )
    if fault.status is not None and fault.status > 599:
        reader.problem("status", "must be 400 to 599")
    if sum((fault.drop, fault.refuse, fault.lose, fault.status is not None)) > 1:
        reader.problem("status", "conflicts: set only one of drop, refuse, status and lose")
    return fault
