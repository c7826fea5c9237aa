"""The ledger: what became of each request, and what the engine has acknowledged of it.

Owns outcomes, loads and the entries for `delete_requests`. It does no I/O: engine/reports.py delivers
what it tells and acknowledges what a 2xx confirmed. Loads are in the author's workload units.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Any

from lib.runtime.clock import Clock, SystemClock
from lib.runtime.settings import from_environment
from lib.wire import FinishedRequest, RequestStatus

__all__ = ["Outcome", "get_url"]

log = logging.getLogger(__name__)

# protocol.md §3: undelivered entries past this many are dropped, oldest first.
MAX_UNDELIVERED = 10_000
# The workload of a payload that has none of its own, or a wrong one.
DEFAULT_WORKLOAD = 100.0
# More than this is counted as this: sums of it stay finite, and small loads beside it are not lost in them.
MAX_WORKLOAD = 1e12


class Outcome(Enum):
    """What became of a request (protocol.md §2): its status on the wire, and whether it was a success."""

    SERVED = ("Success", True)
    ERRORED = ("Error", False)
    CANCELLED = ("Cancelled", True)
    REJECTED = ("Rejected", False)

    def __init__(self, status: RequestStatus, success: bool) -> None:
        self.status: RequestStatus = status
        self.success = success


@dataclass(frozen=True)
class Snapshot:
    """What one report tells of the ledger, and the marks that its acknowledgement moves."""

    new_load: float
    cur_load: float
    rej_load: float
    cur_perf: float
    working: int
    received: int
    working_request_idxs: tuple[int, ...]
    marks: tuple[float, float, float]


class Ledger:
    """Counts requests and their workload, and what has happened since the last acknowledged report.

    Each of `listeners` is called after every change that a report would show. At most `max_undelivered`
    finished requests are kept until they are delivered.
    """

    def __init__(self, clock: Clock | None = None, max_undelivered: int = MAX_UNDELIVERED) -> None:
        self.clock: Clock = clock or SystemClock()
        self.listeners: list[Callable[[], object]] = []
        self.received = 0
        self.outcomes: Counter[Outcome] = Counter()
        self.accepted_load = 0.0
        self.withdrawn_load = 0.0
        self.rejected_load = 0.0
        self.served_load = 0.0
        self.dropped_entries = 0
        self._in_flight: dict[int, Entry] = {}
        self._cur_load = 0.0
        self._opened = 0
        self._told_new = self._told_rejected = self._told_served = 0.0
        self._finished: deque[FinishedRequest] = deque()
        self._max_undelivered = max_undelivered
        self._delivered = 0
        self._uncounted: set[int] = set()
        self._empty = asyncio.Event()

    @property
    def cur_load(self) -> float:
        """Workload queued and working now."""
        return self._cur_load

    @property
    def in_flight(self) -> int:
        """Requests queued and working now, as they are reported: a session is one, with all inside it."""
        return len(self._in_flight)

    @property
    def unfinished(self) -> int:
        """What is in flight, counted or not: requests inside sessions, and the calls at their ends, too."""
        return len(self._in_flight) + len(self._uncounted)

    async def emptied(self) -> None:
        """Return once nothing is in flight, counted or not."""
        while self.unfinished:
            self._empty.clear()
            await self._empty.wait()

    def open(self, request_idx: int | None = None, *, counted: bool = True) -> Entry:
        """A new entry for an authenticated request; its `set_outcome` must be called in the end.

        An entry that is not `counted` belongs to one that is, a session's: it adds no load, and is not
        reported.
        """
        self._opened += 1
        return Entry(self, self._opened, request_idx if counted else None, counted)

    def snapshot(self) -> Snapshot:
        """What a report built now tells; changes nothing."""
        net = self.accepted_load - self.withdrawn_load
        new_load = max(0.0, net - self._told_new)
        return Snapshot(
            new_load=new_load,
            cur_load=self._cur_load,
            rej_load=self.rejected_load - self._told_rejected,
            cur_perf=self.served_load - self._told_served,
            working=len(self._in_flight),
            received=self.received,
            working_request_idxs=tuple(e.request_idx for e in self._in_flight.values() if e.request_idx),
            # A deficit of new_load is carried over: what was told stays ahead of what is.
            marks=(max(net, self._told_new), self.rejected_load, self.served_load),
        )

    def acknowledge(self, snapshot: Snapshot) -> None:
        """The engine has confirmed a report with `snapshot`: tell what it told no more."""
        self._told_new, self._told_rejected, self._told_served = snapshot.marks

    def finished(self, limit: int = MAX_UNDELIVERED) -> tuple[tuple[FinishedRequest, ...], int]:
        """The oldest undelivered entries, and the mark to acknowledge once they are delivered."""
        entries = tuple(islice(self._finished, limit))
        return entries, self._delivered + len(entries)

    def acknowledge_finished(self, mark: int) -> None:
        """Everything up to `mark` was delivered."""
        while self._finished and self._delivered < mark:
            self._finished.popleft()
            self._delivered += 1

    # Called by entries

    def accept(self, entry: Entry) -> None:
        if not entry.counted:
            self._uncounted.add(entry.number)
            return
        self.received += 1
        self.accepted_load += entry.workload
        self._in_flight[entry.number] = entry
        self._cur_load += entry.workload
        self._notify()

    def close(self, entry: Entry, outcome: Outcome) -> None:
        self._in_flight.pop(entry.number, None)
        self._uncounted.discard(entry.number)
        if not self.unfinished:
            self._empty.set()
        if not entry.counted:
            return
        if entry.accepted:
            # Floats drift: with nothing in flight the load is exactly nothing.
            self._cur_load = self._cur_load - entry.workload if self._in_flight else 0.0
        self.outcomes[outcome] += 1
        if outcome is Outcome.SERVED and entry.accepted:
            self.served_load += entry.workload
        elif outcome is Outcome.REJECTED:
            self.rejected_load += entry.workload
        if entry.accepted and outcome in (Outcome.CANCELLED, Outcome.REJECTED):
            self.withdrawn_load += entry.workload
        if entry.request_idx is not None:
            self._finish(entry.request_idx, entry, outcome)
        self._notify()

    def _notify(self) -> None:
        for listener in self.listeners:
            listener()

    def _finish(self, request_idx: int, entry: Entry, outcome: Outcome) -> None:
        if len(self._finished) >= self._max_undelivered:
            self._finished.popleft()
            self._delivered += 1
            self.dropped_entries += 1
            if self.dropped_entries == 1 or self.dropped_entries % 1000 == 0:
                log.warning("%d finished requests dropped: the engine takes none", self.dropped_entries)
        self._finished.append(
            FinishedRequest(
                request_idx,
                outcome.success,
                outcome.status,
                entry.entered_queue_at,
                entry.work_started_at,
                self.clock.wall() if entry.work_started_at else 0.0,
            )
        )


class Entry:
    """One authenticated request in the ledger; `set_outcome` ends it. Times: Unix seconds, 0.0 for never."""

    def __init__(self, ledger: Ledger, number: int, request_idx: int | None, counted: bool) -> None:
        self._ledger = ledger
        self.counted = counted
        self.number = number
        self.request_idx = request_idx
        self.workload = 0.0
        self.accepted = False
        self.outcome: Outcome | None = None
        self.entered_queue_at = 0.0
        self.work_started_at = 0.0

    def set_workload(self, workload: float) -> None:
        """Set the request's workload, before `accept`; more than `MAX_WORKLOAD` counts as that."""
        self.workload = min(workload, MAX_WORKLOAD)

    def accept(self) -> None:
        """Count the request as load from now on."""
        self.accepted = True
        self.entered_queue_at = self._ledger.clock.wall()
        self._ledger.accept(self)

    def start(self) -> None:
        """Note that the request's work begins: it waits no longer."""
        self.work_started_at = self._ledger.clock.wall()

    def set_outcome(self, outcome: Outcome) -> None:
        """End the request with `outcome`; only the first call counts."""
        if self.outcome is None:
            self.outcome = outcome
            self._ledger.close(self, outcome)


class WorkloadCounter:
    """Counts the workload of one handler's payloads.

    Anything but a finite number ≥ 0, an exception included, counts as 100.0 and is logged once.
    """

    def __init__(self, handler_name: str) -> None:
        self._handler_name = handler_name
        self._has_warned = False

    def count(self, payload: Any) -> float:
        """The workload of `payload` in the author's unit; 100.0 for a payload without `count_workload`."""
        count = getattr(payload, "count_workload", None)
        if count is None:
            return DEFAULT_WORKLOAD
        try:
            counted: Any = count()
            workload = float(counted) if isinstance(counted, (int, float)) else math.nan
            if 0 <= workload < math.inf and not isinstance(counted, bool):
                return workload
        except Exception as e:  # noqa: BLE001 - an author's code may raise anything
            counted = e
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "%s: count_workload gave %r: counted as %g", self._handler_name, counted, DEFAULT_WORKLOAD
            )
        return DEFAULT_WORKLOAD


def get_url() -> str:
    """This worker's public URL, from the environment of the instance. Raises `SettingsError`."""
    return from_environment().public_url
