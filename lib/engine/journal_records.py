"""The records of the journal, and what they say after a restart (docs/operating.md, "Journal").

Owns their form and meaning: they are played to a ledger again. It does not own the file, or when they are
written: that is journal.py.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from lib.metrics import Balance, Entry, Ledger, Outcome
from lib.request.sessions import DueEnd
from lib.runtime.clock import SystemClock
from lib.wire import FinishedRequest, RequestStatus

log = logging.getLogger(__name__)

# The version of the records: a file of another version is ignored.
FORMAT = 2
# Seconds after which what was not acknowledged is not told any more.
OLDEST_S = 3600.0


class Sums(msgspec.Struct, array_like=True, tag=0):
    balance: tuple[float, float, float, float, float, float, float]
    at: float


class Finished(msgspec.Struct, array_like=True, tag=1):
    request: FinishedRequest


class Accepted(msgspec.Struct, array_like=True, tag=2):
    number: int
    workload: float
    request_idx: int | None
    at: float


class Ended(msgspec.Struct, array_like=True, tag=3):
    number: int
    outcome: RequestStatus
    without_work: bool
    started_at: float
    at: float


class EndedUnaccepted(msgspec.Struct, array_like=True, tag=4):
    workload: float
    request_idx: int | None
    outcome: RequestStatus
    at: float


class Acknowledged(msgspec.Struct, array_like=True, tag=5):
    new: float
    rejected: float
    served: float
    at: float


class Delivered(msgspec.Struct, array_like=True, tag=6):
    count: int


class Key(msgspec.Struct, array_like=True, tag=7):
    fingerprint: bytes


class Used(msgspec.Struct, array_like=True, tag=8):
    reqnum: int
    digest: bytes


class SessionOpened(msgspec.Struct, array_like=True, tag=9):
    session_id: str
    digest: bytes
    # The route and the payload of the call at its end, as JSON: it has numbers and texts that msgpack lacks.
    call: str

    @classmethod
    def of(cls, end: DueEnd) -> SessionOpened:
        """The record of a session with this `end`."""
        return cls(end.session_id, end.digest, json.dumps([end.route, end.payload]))

    @property
    def end(self) -> DueEnd:
        """The call that is due at the session's end."""
        route, payload = json.loads(self.call)
        return DueEnd(self.session_id, self.digest, route, payload)


class SessionEnded(msgspec.Struct, array_like=True, tag=10):
    session_id: str


LedgerRecord = Sums | Finished | Accepted | Ended | EndedUnaccepted | Acknowledged | Delivered
Record = LedgerRecord | Key | Used | SessionOpened | SessionEnded
_OUTCOMES = {outcome.status: outcome for outcome in Outcome}
# Changes, oldest first, as one record of the file: all of them are read, or none.
encode: Callable[[Sequence[Record]], bytes] = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], list[Record]] = msgspec.msgpack.Decoder(list[Record]).decode


@dataclass
class Remembered:
    """The part of a journal that still counts after its worker has ended.

    `ledger` has what the engine has not acknowledged; requests that were in flight are errored in it. `used`
    are the used signatures, as reqnum and digest, under the key with `fingerprint`. `due_ends` are those of
    the sessions that were open, by the session's id.
    """

    ledger: Ledger
    fingerprint: bytes = b""
    used: list[tuple[int, bytes]] = field(default_factory=list[tuple[int, bytes]])
    due_ends: dict[str, DueEnd] = field(default_factory=dict[str, DueEnd])


def recall(written: Iterable[bytes], now: float) -> Remembered:
    """Return what the file's records, oldest first, say at the Unix time `now`.

    Nothing is told that ended more than an hour ago. A record that can't be understood is ignored, with all
    that follow it.
    """
    player = _Player(now - OLDEST_S)
    try:
        for data in written:
            for record in _decode(data):
                player.play(record)
    except (msgspec.MsgspecError, KeyError) as e:
        log.warning("the journal is damaged, and read only in part: %r", e)
    return player.end()


class _RecordedTime(SystemClock):
    """The time at which the record was written that is being played."""

    def __init__(self) -> None:
        self.at = 0.0

    def wall(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride] - a function too
        return self.at


class _Player:
    """Plays records of changes, oldest first. What ended before the Unix time `oldest` counts as told."""

    def __init__(self, oldest: float) -> None:
        self._oldest = oldest
        self._time = _RecordedTime()
        self._settled = 0  # finished requests that count as told, of which the engine was told later
        self._entries: dict[int, Entry] = {}
        self._ledger = Ledger(self._time)
        self._remembered = Remembered(self._ledger)

    def play(self, record: Record) -> None:
        """Make the change of `record`. Raises `KeyError` for one that contradicts those before it."""
        if isinstance(record, (Sums, Accepted, Ended, EndedUnaccepted, Acknowledged)):
            self._move_time(record.at)
        remembered = self._remembered
        match record:
            case Key():
                remembered.fingerprint = record.fingerprint
                remembered.used.clear()
            case Used():
                remembered.used.append((record.reqnum, record.digest))
            case SessionOpened():
                remembered.due_ends[record.session_id] = record.end
            case SessionEnded():
                remembered.due_ends.pop(record.session_id, None)
            case _:
                self._play_to_ledger(record)

    def end(self) -> Remembered:
        """Return what is left after the last record. The requests in flight are errored."""
        is_old = self._time.at < self._oldest
        for entry in self._entries.values():
            entry.set_outcome(Outcome.ERRORED)
        if is_old:
            self._settle()
            self._remembered.due_ends.clear()
        return self._remembered

    def _play_to_ledger(self, record: LedgerRecord) -> None:
        ledger = self._ledger
        match record:
            case Accepted():
                self._entries[record.number] = entry = self._opened(record)
                entry.accept()
            case Ended():
                entry = self._entries.pop(record.number)
                entry.work_started_at = record.started_at
                entry.set_outcome(_OUTCOMES[record.outcome], record.without_work)
            case EndedUnaccepted():
                self._opened(record).set_outcome(_OUTCOMES[record.outcome])
            case Sums():
                ledger.restore(Balance(*record.balance))
            case Finished():
                ledger.restore_finished(record.request)
            case Acknowledged():
                told = ledger.balance  # more, if it was settled
                ledger.mark_told(
                    max(record.new, told.told_new),
                    max(record.rejected, told.told_rejected),
                    max(record.served, told.told_served),
                )
            case Delivered():
                settled = min(record.count, self._settled)  # of the oldest, which are not there any more
                self._settled -= settled
                ledger.acknowledge_finished(ledger.finished(record.count - settled)[1])

    def _opened(self, record: Accepted | EndedUnaccepted) -> Entry:
        entry = self._ledger.open(record.request_idx)
        entry.set_workload(record.workload)
        return entry

    def _move_time(self, at: float) -> None:
        if self._time.at < self._oldest <= at:
            self._settle()
        self._time.at = at

    def _settle(self) -> None:
        """Count all that has ended until now as told."""
        self._ledger.acknowledge(self._ledger.snapshot())
        finished, mark = self._ledger.finished()
        self._ledger.acknowledge_finished(mark)
        self._settled += len(finished)
