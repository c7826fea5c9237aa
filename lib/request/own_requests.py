"""Requests that author code counts itself, by the methods that workers written elsewhere call.

Owns their entries in the ledger. Requests to a handler are counted by the worker: calls for them do nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from lib.metrics import Entry, Ledger, Outcome

# Whether the author code that runs handles a request that the worker counts.
IS_COUNTED = ContextVar("is_counted", default=False)


@dataclass
class RequestMetrics:
    """A request that author code counts. `workload` is in the author's unit."""

    request_idx: int
    reqnum: int
    workload: float
    status: str = "Created"
    success: bool = False


class OwnCall:
    """The arguments of a call for a request: an object like `RequestMetrics`, or numbers.

    `request_idx` and `reqnum` are None where they were not given.
    """

    def __init__(self, args: Sequence[Any], names: Mapping[str, Any]) -> None:
        first = names.get("request", args[0] if args else None)
        self._request = first if hasattr(first, "workload") else None
        if self._request is not None:
            fields = ("workload", "reqnum", "request_idx")
            names = {name: getattr(self._request, name, None) for name in fields}
        workload = names.get("workload", first)
        self.workload = (
            float(workload) if isinstance(workload, (int, float)) and 0 <= workload < math.inf else 0.0
        )
        self.reqnum: object | None = names.get("reqnum", args[-1] if len(args) > 1 else None)
        self.request_idx: int | None = names.get("request_idx") or None

    def note(self, status: str, success: bool) -> None:
        """Note on the author's object, if there is one, what has become of the request."""
        if self._request is not None:
            self._request.status, self._request.success = status, success


class OwnRequests:
    """The open requests that author code has started. Each of them reaches one outcome in `ledger`.

    The arguments of a call are an object like `RequestMetrics`, or a workload and perhaps a reqnum. Without a
    reqnum, the oldest open request of that workload is meant.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._open: dict[object, Entry] = {}

    def start(self, call: OwnCall) -> None:
        """Count a request as load. One that is open already is not counted again."""
        if IS_COUNTED.get() or call.reqnum in self._open:
            return
        entry = self._entry(call)
        entry.accept()
        entry.start()
        self._open[object() if call.reqnum is None else call.reqnum] = entry
        call.note("Started", False)

    def set_outcome(self, call: OwnCall, outcome: Outcome) -> None:
        """Set the outcome of an open request, unless it has one.

        A request may be rejected without having been started.
        """
        if IS_COUNTED.get():
            return
        entry = self._open.get(self._key_of(call))
        if entry is None and outcome is Outcome.REJECTED:
            entry = self._entry(call)
        if entry is not None:
            entry.set_outcome(outcome)
            call.note(outcome.status, outcome.success)

    def end(self, call: OwnCall) -> None:
        """Forget a request; one without an outcome counts as cancelled."""
        entry = None if IS_COUNTED.get() else self._open.pop(self._key_of(call), None)
        if entry is not None:
            entry.set_outcome(Outcome.CANCELLED)

    def _entry(self, call: OwnCall) -> Entry:
        entry = self._ledger.open(call.request_idx)
        entry.set_workload(call.workload)
        return entry

    def _key_of(self, call: OwnCall) -> object:
        """The key of the open request that `call` means; None if there is none."""
        if call.reqnum is not None:
            return call.reqnum
        alike = [key for key, entry in self._open.items() if entry.workload == call.workload]
        undecided = (key for key in alike if self._open[key].outcome is None)
        return next(undecided, alike[0] if alike else None)
