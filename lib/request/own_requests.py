"""Requests that author code counts itself, by the methods that workers written elsewhere call.

Owns their entries in the ledger. Requests to a handler are counted by the worker: calls for them do nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from lib.metrics import Entry, Ledger, Outcome

# Whether the author code that runs works for a request that the worker counts, or for the benchmark.
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

    `request`, the object, `request_idx` and `reqnum` are None where they were not given.
    """

    def __init__(self, args: Sequence[Any], names: Mapping[str, Any]) -> None:
        first = names.get("request", args[0] if args else None)
        self.request: Any = first if hasattr(first, "workload") else None
        if self.request is not None:
            fields = ("workload", "reqnum", "request_idx")
            names = {name: getattr(self.request, name, None) for name in fields}
        workload = names.get("workload", first)
        self.workload = (
            float(workload) if isinstance(workload, (int, float)) and 0 <= workload < math.inf else 0.0
        )
        self.reqnum: object | None = names.get("reqnum", args[-1] if len(args) > 1 else None)
        self.request_idx: int | None = names.get("request_idx") or None

    @property
    def names_one(self) -> bool:
        """Whether the call says by more than a workload which request is meant."""
        return self.request is not None or self.reqnum is not None

    @property
    def key(self) -> object:
        """The key of the request: two objects are two requests, whatever their reqnums."""
        if self.request is not None:
            return "object", id(self.request)
        return object() if self.reqnum is None else ("reqnum", self.reqnum)

    def note(self, status: str, success: bool) -> None:
        """Note on the author's object, if there is one, what has become of the request."""
        if self.request is not None:
            self.request.status, self.request.success = status, success


@dataclass(eq=False)
class StartedRequest:
    """A request that author code has started: its `key`, its first `call`, and its `entry`.

    `is_guessed`: its outcome came by a workload only, so that it may be another's.
    """

    key: object
    call: OwnCall
    entry: Entry
    is_guessed: bool = False

    @property
    def is_decided(self) -> bool:
        """Whether the request has an outcome."""
        return self.entry.outcome is not None


class OwnRequests:
    """The open requests that author code has started. Each of them reaches one outcome in `ledger`.

    The arguments of a call are an object like `RequestMetrics`, or a workload and perhaps a reqnum. Without a
    reqnum, the oldest open request of that workload is meant that the call can concern.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._open: dict[object, StartedRequest] = {}

    def start(self, call: OwnCall) -> None:
        """Count a request as load. One that is open without an outcome is not counted again."""
        key = call.key
        known = self._open.get(key)
        if IS_COUNTED.get() or (known is not None and not known.is_decided):
            return
        self._open.pop(key, None)
        entry = self._entry(call)
        entry.accept()
        entry.start()
        self._open[key] = StartedRequest(key, call, entry)
        call.note("Started", False)

    def set_outcome(self, call: OwnCall, outcome: Outcome) -> None:
        """Set the outcome of an open request, unless it has one.

        A request may be rejected without having been started: one with only a workload was not.
        """
        if IS_COUNTED.get():
            return
        is_rejected = outcome is Outcome.REJECTED
        request = self._find(call, decided=False) if call.names_one or not is_rejected else None
        if request is not None:
            if call.names_one and request.is_guessed:
                self._swap(request, lambda other: not other.is_decided)
            if not request.is_decided:
                request.is_guessed = not call.names_one
                request.entry.set_outcome(outcome)
        elif is_rejected:
            self._entry(call).set_outcome(outcome)
        else:
            return
        call.note(outcome.status, outcome.success)

    def end(self, call: OwnCall) -> None:
        """Forget a request; one without an outcome counts as cancelled."""
        request = None if IS_COUNTED.get() else self._find(call, decided=True)
        if request is None:
            return
        if call.names_one and not request.is_decided:
            self._swap(request, lambda other: other.is_guessed)
        del self._open[request.key]
        request.entry.set_outcome(Outcome.CANCELLED)

    def abandon(self) -> None:
        """Forget all requests; those without an outcome have errored: the worker cuts them off."""
        while self._open:
            self._open.popitem()[1].entry.set_outcome(Outcome.ERRORED)

    def _entry(self, call: OwnCall) -> Entry:
        entry = self._ledger.open(call.request_idx)
        entry.set_workload(call.workload)
        return entry

    def _find(self, call: OwnCall, decided: bool) -> StartedRequest | None:
        """The open request that `call` means. Of several, one is preferred that is `decided`, or is not."""
        if (request := self._open.get(call.key)) is not None:
            return request
        alike = [request for request in self._open.values() if _may_mean(call, request.call)]
        return min(alike, key=lambda request: request.is_decided is not decided, default=None)

    def _swap(self, request: StartedRequest, wanted: Callable[[StartedRequest], bool]) -> None:
        """Swap entry and outcome with the oldest request of the same workload that is `wanted`, if any is."""
        for other in self._open.values():
            if other.call.workload == request.call.workload and wanted(other):
                request.entry, other.entry = other.entry, request.entry
                request.is_guessed, other.is_guessed = other.is_guessed, request.is_guessed
                return


def _may_mean(call: OwnCall, started: OwnCall) -> bool:
    """Whether `call` may concern the request of `started`, whose key is another."""
    if call.request is not None and started.request is not None:
        return False
    if call.reqnum is not None:
        return call.reqnum == started.reqnum
    return call.workload == started.workload
