"""The ledger: the outcome and workload of each request, and what the engine has acknowledged.

Owns outcomes, loads and the entries for `/delete_requests/`. It does no I/O: lib/engine/reports.py delivers
its numbers, and acknowledges them after a 2xx answer. Loads are in the author's workload units.
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
from typing import Any, Protocol

from lib.errors import Invalid
from lib.runtime.author_line import raised_at
from lib.runtime.clock import Clock, SystemClock
from lib.runtime.figures import more_than
from lib.runtime.settings import from_environment
from lib.wire import FinishedRequest, RequestStatus

__all__ = ["FinishedRequest", "Ledger", "Outcome", "Snapshot", "get_url"]

log = logging.getLogger(__name__)

# Most undelivered entries; the oldest are dropped (docs/protocol.md, "Finished requests").
MAX_UNDELIVERED = 10_000
# The workload of a payload without a `count_workload`, or with a wrong one.
DEFAULT_WORKLOAD = 100.0
# The highest workload of one request: sums stay finite, and precise enough for small workloads beside it.
MAX_WORKLOAD = 1e12
# The bounds of `WorkloadCap`.
SAMPLES_AT_MOST = 1000.0
SECONDS_AT_MOST = 3600.0


class Outcome(Enum):
    """The outcome of a request: its status in reports, and its success (docs/protocol.md, "Outcomes")."""

    SERVED = ("Success", True)
    ERRORED = ("Error", False)
    CANCELLED = ("Cancelled", True)
    REJECTED = ("Rejected", False)

    __hash__ = object.__hash__  # Enum's is written in Python, and an outcome is counted for each request

    def __init__(self, status: RequestStatus, success: bool) -> None:
        self.status: RequestStatus = status
        self.success = success


@dataclass(frozen=True)
class Snapshot:
    """The ledger's numbers for one status report, and the totals that its acknowledgement confirms."""

    new_load: float
    cur_load: float
    rej_load: float
    cur_perf: float
    working: int
    received: int
    working_request_idxs: tuple[int, ...]
    marks: tuple[float, float, float]


@dataclass(frozen=True)
class Balance:
    """The ledger's sums of workload, and for each of three what the engine has acknowledged of it.

    `told_new` is of `accepted` less `withdrawn`, and higher than that after a deficit.
    """

    accepted: float
    withdrawn: float
    rejected: float
    served: float
    told_new: float
    told_rejected: float
    told_served: float


class LedgerJournal(Protocol):
    """Records each change of a ledger that reports depend on (lib/engine/journal.py)."""

    def accepted(self, entry: Entry) -> None: ...

    def ended(self, entry: Entry, outcome: Outcome, without_work: bool, at: float) -> None: ...

    def acknowledged(self, told_new: float, told_rejected: float, told_served: float) -> None: ...

    def delivered(self, count: int) -> None: ...

    def write(self) -> None: ...


class Ledger:
    """Counts requests and their workload, in total and since the last acknowledged report.

    `opened` is the number of authenticated requests, `received` that of those that were accepted as load.
    Each of `listeners` is called after every change that a report would show. At most `max_undelivered`
    finished requests are kept for delivery.
    """

    def __init__(self, clock: Clock | None = None, max_undelivered: int = MAX_UNDELIVERED) -> None:
        self.clock: Clock = clock or SystemClock()
        self.listeners: list[Callable[[], object]] = []
        self.journal: LedgerJournal | None = None
        self.opened = 0
        self.received = 0
        self.outcomes: Counter[Outcome] = Counter()
        self.accepted_load = 0.0
        self.withdrawn_load = 0.0
        self.rejected_load = 0.0
        self.served_load = 0.0
        self.dropped_entries = 0
        self._in_flight: dict[int, Entry] = {}
        self._cur_load = 0.0
        self._numbered = 0
        self._acknowledged_new = self._acknowledged_rejected = self._acknowledged_served = 0.0
        self._finished: deque[FinishedRequest] = deque()
        self._max_undelivered = max_undelivered
        self._delivered = 0
        self._open = 0
        self._empty = asyncio.Event()

    @property
    def cur_load(self) -> float:
        """The workload that waits or is worked on now."""
        return self._cur_load

    @property
    def in_flight(self) -> int:
        """The number of requests that wait or are worked on, as reported: a session is one request."""
        return len(self._in_flight)

    @property
    def arriving(self) -> int:
        """The number of requests that are neither in flight yet nor ended: `opened` less all others."""
        return self.opened - self.in_flight - sum(self.outcomes.values())

    @property
    def unfinished(self) -> int:
        """The number of open entries: also those that are not accepted yet, or not counted."""
        return self._open

    async def emptied(self) -> None:
        """Return once `unfinished` is 0."""
        while self.unfinished:
            self._empty.clear()
            await self._empty.wait()

    def open(self, request_idx: int | None = None, *, counted: bool = True) -> Entry:
        """Open an entry for an authenticated request; the caller must end it by `set_outcome`.

        An entry that is not `counted` is part of a session's entry: it adds no load and is not reported.
        """
        self._numbered += 1
        self.opened += counted
        self._open += 1
        return Entry(self, self._numbered, request_idx if counted else None, counted)

    def snapshot(self) -> Snapshot:
        """The numbers of a report made now; changes nothing."""
        net = self.accepted_load - self.withdrawn_load
        new_load = max(0.0, net - self._acknowledged_new)
        return Snapshot(
            new_load=new_load,
            cur_load=self._cur_load,
            rej_load=self.rejected_load - self._acknowledged_rejected,
            cur_perf=self.served_load - self._acknowledged_served,
            working=len(self._in_flight),
            received=self.received,
            working_request_idxs=tuple(e.request_idx for e in self._in_flight.values() if e.request_idx),
            # A negative new_load can't be reported, and is carried over to the next report.
            marks=(max(net, self._acknowledged_new), self.rejected_load, self.served_load),
        )

    def acknowledge(self, snapshot: Snapshot) -> None:
        """Note that the engine has acknowledged a report of `snapshot`: don't report its numbers again."""
        self.mark_told(*snapshot.marks)

    def finished(self, limit: int = MAX_UNDELIVERED) -> tuple[tuple[FinishedRequest, ...], int]:
        """The oldest undelivered entries, at most `limit`, and the mark to acknowledge once delivered."""
        entries = tuple(islice(self._finished, limit))
        return entries, self._delivered + len(entries)

    def acknowledge_finished(self, mark: int) -> None:
        """Note that all entries up to `mark` were delivered."""
        count = min(max(0, mark - self._delivered), len(self._finished))
        for _ in range(count):
            self._finished.popleft()
        self._delivered += count
        if self.journal is not None and count:
            self.journal.delivered(count)

    # For the journal

    @property
    def balance(self) -> Balance:
        """The sums now."""
        return Balance(
            accepted=self.accepted_load,
            withdrawn=self.withdrawn_load,
            rejected=self.rejected_load,
            served=self.served_load,
            told_new=self._acknowledged_new,
            told_rejected=self._acknowledged_rejected,
            told_served=self._acknowledged_served,
        )

    @property
    def accepted_entries(self) -> tuple[Entry, ...]:
        """The entries in flight, oldest first."""
        return tuple(self._in_flight.values())

    def mark_told(self, new: float, rejected: float, served: float) -> None:
        """Note how much of three sums the engine has acknowledged (`Balance`)."""
        self._acknowledged_new, self._acknowledged_rejected, self._acknowledged_served = new, rejected, served
        if self.journal is not None:
            self.journal.acknowledged(new, rejected, served)

    def restore(self, balance: Balance) -> None:
        """Set the sums to `balance`: it has the load of the entries that were accepted before."""
        self.accepted_load, self.withdrawn_load = balance.accepted, balance.withdrawn
        self.rejected_load, self.served_load = balance.rejected, balance.served
        self.mark_told(balance.told_new, balance.told_rejected, balance.told_served)

    def restore_finished(self, request: FinishedRequest) -> None:
        """Add an undelivered entry."""
        self._finished.append(request)

    def inherit(self, former: Ledger) -> None:
        """Report, beside its own numbers, those of `former` that were not acknowledged; a deficit too.

        Totals since the start stay those of this ledger.
        """
        theirs = former.balance
        self.mark_told(
            self._acknowledged_new + theirs.told_new - (theirs.accepted - theirs.withdrawn),
            self._acknowledged_rejected + theirs.told_rejected - theirs.rejected,
            self._acknowledged_served + theirs.told_served - theirs.served,
        )
        entries, _ = former.finished()
        self._finished.extendleft(reversed(entries))
        self._notify()

    # Called by entries

    def accept(self, entry: Entry) -> None:
        """Count `entry` as received and in flight."""
        if not entry.counted:
            return
        self.received += 1
        self.accepted_load += entry.workload
        self._in_flight[entry.number] = entry
        self._cur_load += entry.workload
        if self.journal is not None:
            self.journal.accepted(entry)
        self._notify()

    def close(self, entry: Entry, outcome: Outcome, without_work: bool = False) -> None:
        """Count `entry` as ended with `outcome`; if it was served `without_work`, as no throughput."""
        self._in_flight.pop(entry.number, None)
        self._open -= 1
        if not self._open:
            self._empty.set()
        if not entry.counted:
            return
        if entry.accepted:
            # Sums of floats drift: with nothing in flight the load is exactly 0.
            self._cur_load = self._cur_load - entry.workload if self._in_flight else 0.0
        self.outcomes[outcome] += 1
        if outcome is Outcome.REJECTED:
            self.rejected_load += entry.workload
        if entry.accepted and outcome is Outcome.SERVED and not without_work:
            self.served_load += entry.workload
        elif entry.accepted and outcome is not Outcome.ERRORED:
            self.withdrawn_load += entry.workload
        if entry.request_idx is not None or self.journal is not None:
            at = self.clock.wall()
            if entry.request_idx is not None:
                self._finish(entry.request_idx, entry, outcome, at)
            if self.journal is not None:
                self.journal.ended(entry, outcome, without_work, at)
        self._notify()

    def _notify(self) -> None:
        for listener in self.listeners:
            listener()

    def _finish(self, request_idx: int, entry: Entry, outcome: Outcome, at: float) -> None:
        if len(self._finished) >= self._max_undelivered:
            self._finished.popleft()
            self._delivered += 1
            self.dropped_entries += 1
            if self.dropped_entries == 1 or self.dropped_entries % 1000 == 0:
                log.warning(
                    "%d finished requests dropped: the engine accepts none, see the failed deliveries",
                    self.dropped_entries,
                )
        self._finished.append(
            FinishedRequest(
                request_idx,
                outcome.success,
                outcome.status,
                entry.entered_queue_at,
                entry.work_started_at,
                at if entry.work_started_at else 0.0,
            )
        )


class Entry:
    """One authenticated request in the ledger. Times are Unix seconds, 0.0 for never."""

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
        """Set the request's workload, at most `MAX_WORKLOAD`. Call it before `accept`."""
        self.workload = workload if workload < MAX_WORKLOAD else MAX_WORKLOAD

    def accept(self) -> None:
        """Count the request as load from now on."""
        if self.accepted or self.outcome is not None:
            return
        self.accepted = True
        self.entered_queue_at = self._ledger.clock.wall()
        self._ledger.accept(self)

    def start(self) -> None:
        """Note that the work begins: the request has its slot."""
        self.work_started_at = self._ledger.clock.wall()

    def secure(self) -> None:
        """Have all changes so far in the journal: what follows can't be taken back."""
        if self._ledger.journal is not None:
            self._ledger.journal.write()

    def set_outcome(self, outcome: Outcome, without_work: bool = False) -> None:
        """End the request with `outcome`. Further calls do nothing.

        One that was served `without_work` adds no throughput: its workload is withdrawn.
        """
        if self.outcome is None:
            self.outcome = outcome
            self._ledger.close(self, outcome, without_work)


class WorkloadCap:
    """The highest workload that counts for one request, where the author gives no `max_workload`.

    `limit` is the larger of 1,000 times the benchmark's payload and of an hour at `max_perf`: clients choose
    what they ask for, and must not be able to make up a load for the engine. Without a benchmark, its payload
    counts as 100.0.
    """

    def __init__(self) -> None:
        self._sample: float | None = None
        self._max_perf = 0.0
        self._update()

    def note_sample(self, workload: float) -> None:
        """Note the workload of a payload of the benchmark; the largest counts."""
        self._sample = max(workload, self._sample or 0.0)
        self._update()

    def note_max_perf(self, max_perf: float) -> None:
        """Note the worker's throughput, in workload/s."""
        self._max_perf = max_perf
        self._update()

    def _update(self) -> None:
        sample = DEFAULT_WORKLOAD if self._sample is None else self._sample
        self.limit = max(SAMPLES_AT_MOST * sample, SECONDS_AT_MOST * self._max_perf)


def counter_name(payload: Any) -> str:
    """The name of the author's code that counts the workload of `payload`, for messages."""
    return getattr(payload, "counter_name", "count_workload")


def _kind_of(counted: Any) -> str:
    """The kind of a wrong workload in words, without its value, which may be a part of the payload."""
    if isinstance(counted, (int, float)) and not isinstance(counted, bool) and counted < 0:
        return "a negative number"
    return f"{counted}" if isinstance(counted, float) else type(counted).__name__


class WorkloadCounter:
    """Counts the workload of one handler's payloads.

    A result that is not a finite number ≥ 0, or an exception, counts as 100.0 and is logged once, by its
    type and by the field that the author's code was reading: parts of the payload may be in its message. An
    exception of the type `refusal` refuses the request. More than `max_workload` is refused. Without one,
    more than the limit of `cap`, if any, counts as that limit, and is logged once.
    """

    def __init__(
        self,
        handler_name: str,
        max_workload: float | None = None,
        cap: WorkloadCap | None = None,
        refusal: type[Exception] = Invalid,
    ) -> None:
        self._handler_name = handler_name
        self._max_workload = max_workload
        self._cap = cap
        self._refusal = refusal
        self._has_warned = self._has_warned_of_cap = False

    def count(self, payload: Any) -> float:
        """The workload of `payload` in the author's unit; 100.0 for a payload without `count_workload`.

        Raises `Invalid` (422) for more than `max_workload`, and the author's refusal.
        """
        count = getattr(payload, "count_workload", None)
        if count is None:
            return DEFAULT_WORKLOAD
        try:
            counted: Any = count()
            workload = float(counted) if isinstance(counted, (int, float)) else math.nan
        except self._refusal:
            raise
        except Exception as e:  # noqa: BLE001 - an author's code may raise anything
            return self._default(payload, f"raised {type(e).__name__}{raised_at(e)}")
        if 0 <= workload < math.inf and not isinstance(counted, bool):
            return self._bounded(workload)
        return self._default(payload, f"returned {_kind_of(counted)}, not a finite number of 0 or more")

    def _default(self, payload: Any, problem: str) -> float:
        if not self._has_warned:
            self._has_warned = True
            counter = counter_name(payload)
            log.warning("%s: %s %s: counted as %g", self._handler_name, counter, problem, DEFAULT_WORKLOAD)
        return DEFAULT_WORKLOAD

    def _bounded(self, workload: float) -> float:
        if self._max_workload is not None:
            if workload > self._max_workload:
                raise Invalid({"payload": too_much_work("its workload", workload, self._max_workload)})
        elif self._cap is not None and workload > self._cap.limit:
            if not self._has_warned_of_cap:
                self._has_warned_of_cap = True
                log.warning(
                    "%s: a workload of %g counts as %g, the most without a max_workload: set the handler's "
                    "max_workload to refuse such requests, or to count them whole",
                    self._handler_name,
                    workload,
                    self._cap.limit,
                )
            return self._cap.limit
        return workload


def too_much_work(what: str, workload: float, limit: float) -> str:
    """The message for a `workload` above `limit`, which `what` names."""
    return f"{what} is {more_than(workload, limit)}, the most that is accepted"


def get_url() -> str:
    """The worker's public URL, from the environment. Raises `SettingsError` if the environment is invalid."""
    return from_environment().public_url
