"""The journal: what a killed worker had not reported, or must not forget, for its next start.

Owns the file, and when it is written (docs/operating.md, "Journal"). The records are in journal_records.py.
There is no `fsync`: what a process has written survives its death by any signal, not that of the machine.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple
from pathlib import Path
from struct import Struct
from typing import Protocol
from zlib import crc32

from lib.engine.journal_records import (
    Accepted,
    Acknowledged,
    Delivered,
    Ended,
    EndedUnaccepted,
    Finished,
    Key,
    Record,
    SessionEnded,
    SessionOpened,
    Sums,
    Used,
    encode,
)
from lib.metrics import Entry, Ledger, Outcome
from lib.request.sessions import DueEnd
from lib.runtime.clock import Clock

log = logging.getLogger(__name__)

# A file that is larger is written anew, with what still counts. At 200 bytes a request these are 40,000.
MAX_BYTES = 8 * 1024 * 1024
# Seconds between two tries to write after a failure, for instance of a full disk.
RETRY_S = 30.0
# The length and the CRC-32 of the record that follows.
_FRAME = Struct("<II")
_NEW_SUFFIX = ".new"


class JournalFile:
    """The file at `path`, which only this user may read. `identity` is its first record.

    `size_bytes` is its size, 0 before `replace`. Every method blocks, and raises `OSError`.
    """

    def __init__(self, path: Path, identity: bytes) -> None:
        self.path = path
        self.size_bytes = 0
        self._identity = identity
        self._descriptor: int | None = None

    def read(self) -> list[bytes]:
        """The records on disk without the first, up to one that is torn or damaged.

        An empty list without a file, and for one of another identity, of another user, or that is no regular
        file.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return []
        with os.fdopen(descriptor, "rb") as file:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid():
                return []
            records = _records(file.read())
        return list(records) if next(records, None) == self._identity else []

    def replace(self, records: Iterable[bytes]) -> None:
        """Write a new file with `records` in place of the old one."""
        new = self.path.with_name(self.path.name + _NEW_SUFFIX)
        new.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(new, flags, 0o600)
        try:
            data = b"".join(map(_framed, (self._identity, *records)))
            _write(descriptor, data)
            new.rename(self.path)
        except BaseException:
            os.close(descriptor)
            new.unlink(missing_ok=True)
            raise
        self.close()
        self._descriptor, self.size_bytes = descriptor, len(data)

    def append(self, record: bytes) -> None:
        """Write `record`, by one call of the operating system.

        After an error the file's content is not to be relied on: call `discard`.
        """
        assert self._descriptor is not None
        data = _framed(record)
        _write(self._descriptor, data)
        self.size_bytes += len(data)

    def discard(self) -> None:
        """Delete the file, as it says what is no longer true. It is not written to until `replace`."""
        descriptor, self._descriptor = self._descriptor, None
        self.size_bytes = 0
        try:
            self.path.unlink(missing_ok=True)  # also one that a worker before has left
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


class SignatureMemory(Protocol):
    """The memory of used signatures (`lib.access.signatures.Signatures`)."""

    @property
    def fingerprint(self) -> bytes: ...

    def used(self) -> Iterable[tuple[int, bytes]]: ...


class SessionMemory(Protocol):
    """The memory of sessions whose end is due (`lib.request.session_life.SessionLife`)."""

    def due_ends(self) -> Iterable[DueEnd]: ...


class Journal:
    """Writes down each change in `file`: of `ledger`, of the used `signatures` (if any), and of `sessions`.

    `at_turn_end` has a function called once, at the end of the event loop's turn. The first change of a
    request in a turn is written at once, those that follow in the same turn together: at its end, or as soon
    as `write` is called, before anything is done that nobody could take back. If the file can't be written,
    that is logged once, the file is deleted, and it is tried again after `RETRY_S` seconds. A file of more
    than `max_bytes` is written anew.
    """

    def __init__(
        self,
        file: JournalFile,
        ledger: Ledger,
        signatures: SignatureMemory | None,
        sessions: SessionMemory,
        clock: Clock,
        at_turn_end: Callable[[Callable[[], None]], object],
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._file = file
        self._ledger = ledger
        self._signatures = signatures
        self._sessions = sessions
        self._clock = clock
        self._at_turn_end = at_turn_end
        self._max_bytes = self._limit_bytes = max_bytes
        self._retry_at_s: float | None = None  # after a failure: when to try again, on the clock
        self._unwritten: list[Record] = []
        self._is_in_turn = False  # something was written in this turn: what follows waits for its end

    def begin(self) -> None:
        """Write a new file with all that counts now."""
        self._unwritten.clear()  # it is among all that counts
        try:
            self._file.replace(encode((record,)) for record in self._records())
        except OSError as e:
            self._note_failure(e)
            return
        self._limit_bytes = max(self._max_bytes, 2 * self._file.size_bytes)
        if self._retry_at_s is not None:
            self._retry_at_s = None
            log.info("the journal %s is written again", self._file.path)

    def close(self) -> None:
        """Write what is left, and close the file. What was not acknowledged is in it for the next start."""
        self.write()
        try:
            self._file.close()
        except OSError as e:
            self._note_failure(e)

    def write(self) -> None:
        """Write what waits for the turn's end, by one call of the operating system."""
        if not self._unwritten:
            return
        if self._retry_at_s is not None:
            self._unwritten.clear()
            if self._clock.monotonic() >= self._retry_at_s:
                self.begin()  # with these changes, which have been made already
            return
        try:
            self._file.append(encode(self._unwritten))
        except OSError as e:
            self._note_failure(e)
            return
        finally:
            self._unwritten.clear()
        if self._file.size_bytes > self._limit_bytes:
            self.begin()

    # Called by the ledger

    def accepted(self, entry: Entry) -> None:
        """Note that `entry` is accepted as load."""
        self._note(Accepted(entry.number, entry.workload, entry.request_idx, entry.entered_queue_at))

    def ended(self, entry: Entry, outcome: Outcome, without_work: bool, at: float) -> None:
        """Note that `entry` has ended, at the Unix time `at`."""
        if entry.accepted:
            record = Ended(entry.number, outcome.status, without_work, entry.work_started_at, at)
        else:
            record = EndedUnaccepted(entry.workload, entry.request_idx, outcome.status, at)
        self._note(record)

    def acknowledged(self, told_new: float, told_rejected: float, told_served: float) -> None:
        """Note that the engine has acknowledged a report, also one that had no news: so long it has lived."""
        self._append(Acknowledged(told_new, told_rejected, told_served, self._clock.wall()))

    def delivered(self, count: int) -> None:
        """Note that the engine has accepted the `count` oldest finished requests."""
        self._append(Delivered(count))

    # Called by access and sessions

    def key_changed(self, fingerprint: bytes) -> None:
        """Note the key with which signatures are verified from now on: those used before are forgotten."""
        self._append(Key(fingerprint))

    def signature_used(self, reqnum: int, digest: bytes) -> None:
        """Note a used signature, to be written with what becomes of its request."""
        if self._retry_at_s is None:
            self._unwritten.append(Used(reqnum, digest))

    def session_opened(self, end: DueEnd) -> None:
        """Note that a session was opened, and what is due at its end."""
        self._append(SessionOpened.of(end))

    def session_ended(self, session_id: str) -> None:
        """Note that a session has ended, and that nothing is due any more."""
        self._append(SessionEnded(session_id))

    def _note(self, record: Record) -> None:
        """Write a change of a request: at once, or at the end of the turn if it is not the first of it."""
        self._unwritten.append(record)
        if not self._is_in_turn:
            self.write()
            self._is_in_turn = True
            self._at_turn_end(self._end_turn)

    def _append(self, record: Record) -> None:
        """Write a change at once."""
        self._unwritten.append(record)
        self.write()

    def _end_turn(self) -> None:
        self._is_in_turn = False
        self.write()

    def _note_failure(self, error: OSError) -> None:
        try:
            self._file.discard()
        except OSError as e:
            log.warning("the journal %s can't be deleted: %s", self._file.path, e.strerror or e)
        if self._retry_at_s is None:
            log.warning(
                "the journal %s can't be written: %s: if the worker is killed, reports are lost",
                self._file.path,
                error.strerror or error,
            )
        self._retry_at_s = self._clock.monotonic() + RETRY_S

    def _records(self) -> Iterator[Record]:
        """All that counts now. Changes are made before they are written down, so each is in here."""
        for entry in self._ledger.accepted_entries:
            yield Accepted(entry.number, entry.workload, entry.request_idx, entry.entered_queue_at)
        # After the entries, whose load is in the sums.
        yield Sums(astuple(self._ledger.balance), self._clock.wall())
        for request in self._ledger.finished()[0]:
            yield Finished(request)
        if self._signatures is not None:
            yield Key(self._signatures.fingerprint)
            for reqnum, digest in self._signatures.used():
                yield Used(reqnum, digest)
        for end in self._sessions.due_ends():
            yield SessionOpened.of(end)


def _framed(record: bytes) -> bytes:
    return _FRAME.pack(len(record), crc32(record)) + record


def _records(data: bytes) -> Iterator[bytes]:
    """Each record in `data`, up to one that is torn or damaged."""
    position = 0
    while position + _FRAME.size <= len(data):
        size_bytes, checksum = _FRAME.unpack_from(data, position)
        position += _FRAME.size
        record = data[position : position + size_bytes]
        if len(record) < size_bytes or crc32(record) != checksum:
            return
        yield record
        position += size_bytes


def _write(descriptor: int, data: bytes) -> None:
    """Write all of `data`. Only a part is written if the disk is full; the next write raises `OSError`."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, data[written:])
