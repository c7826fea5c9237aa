"""Faults on demand: how the local engine misbehaves, for tests of what a worker makes of it.

Owns what can be asked for and how often it applies; api.py plays it.
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
    """What happens to requests of one kind. A delay comes first, then the first that is set, in this order.

    `drop`: the connection is closed and the request not processed. `refuse`: 503, not processed. `status`:
    that answer, 400 to 599, not processed. `lose`: processed, and then the connection is closed without an
    answer. `times`: to how many requests it applies before it clears itself; None is until cleared.
    """

    drop: bool = False
    refuse: bool = False
    status: int | None = None
    lose: bool = False
    delay_s: float = 0.0
    times: int | None = None

    @property
    def active(self) -> bool:
        wanted = self.drop or self.refuse or self.lose or self.status is not None or self.delay_s > 0
        return wanted and self.times != 0


@dataclass
class Faults:
    """The fault in force for each kind of route; all of it may be assigned at any time."""

    reports: Fault = field(default_factory=Fault)
    completions: Fault = field(default_factory=Fault)
    pubkey: Fault = field(default_factory=Fault)
    route: Fault = field(default_factory=Fault)

    def of(self, kind: FaultKind) -> Fault:
        """The fault in force for `kind`, inactive where there is none."""
        faults = {
            "reports": self.reports,
            "completions": self.completions,
            "pubkey": self.pubkey,
            "route": self.route,
        }
        return faults[kind]

    def take(self, kind: FaultKind) -> Fault | None:
        """What becomes of one more request of `kind`, counted; None if nothing special."""
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
        for kind in FAULT_KINDS:
            setattr(self, kind, Fault())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def update(self, message: Mapping[str, object]) -> None:
        """Put faults in force from JSON: `{"reports": {"lose": true, "times": 2}, "route": null}`.

        A kind that is null is cleared, one that is left out stays as it is. Raises `BadMessage` naming
        whatever is wrong, and then nothing changes.
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
        reader.problem("status", "goes alone: only one of drop, refuse, status and lose can be asked for")
    return fault
