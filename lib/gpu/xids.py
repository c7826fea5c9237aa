"""The meaning of XIDs, the numbers by which NVIDIA's driver reports errors (docs/operating.md, "GPU health").

Owns the table. What is done about an event is decided in lib/gpu/health.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Severity(str, Enum):
    """An error lasts until the worker is restarted; a warning doesn't change the worker's state."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class XidMeaning:
    """An XID's severity, what has happened in words, and what to do."""

    severity: Severity
    words: str
    advice: str


_RESET = "Reset the GPU or restart the machine; replace the GPU if it happens again"
_APPLICATION = "An application caused it, and may have ended: look at the model server's log"

XIDS = {
    13: XidMeaning(Severity.WARNING, "a kernel of an application failed", _APPLICATION),
    31: XidMeaning(Severity.WARNING, "an application accessed memory that isn't its own", _APPLICATION),
    43: XidMeaning(Severity.WARNING, "an application's work on the GPU was stopped", _APPLICATION),
    45: XidMeaning(
        Severity.WARNING,
        "an application was removed from the GPU",
        "It was stopped, or an error came before: look at the model server's log",
    ),
    48: XidMeaning(Severity.ERROR, "memory has an uncorrectable ECC error", _RESET),
    64: XidMeaning(Severity.ERROR, "memory that failed could not be replaced", _RESET),
    74: XidMeaning(Severity.ERROR, "an NVLink connection failed", _RESET),
    79: XidMeaning(
        Severity.ERROR,
        "the GPU has fallen off the bus",
        "Restart the machine; replace the GPU if it happens again",
    ),
    94: XidMeaning(
        Severity.WARNING,
        "an uncorrectable ECC error was contained, in one application",
        "That application has ended: look at the model server's log",
    ),
    95: XidMeaning(Severity.ERROR, "an uncorrectable ECC error was not contained", _RESET),
    119: XidMeaning(Severity.ERROR, "the GPU's system processor (GSP) doesn't answer", _RESET),
    120: XidMeaning(Severity.ERROR, "the GPU's system processor (GSP) failed", _RESET),
}
# It does not stop the worker: many XIDs are messages, and new ones come with each driver.
_OTHER = XidMeaning(
    Severity.WARNING, "the driver reported an error", "Look the number up in NVIDIA's list of XIDs"
)


def meaning_of(xid: int) -> XidMeaning:
    """The meaning of `xid`; a warning for one that is not in the table."""
    return XIDS.get(xid, _OTHER)
