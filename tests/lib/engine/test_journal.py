"""What a killed worker had not reported, and must not forget, is there after its restart."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from lib.engine.journal import RETRY_S, Journal, JournalFile
from lib.engine.journal_records import OLDEST_S, recall
from lib.metrics import MAX_UNDELIVERED, Entry, Ledger, Outcome
from lib.request.sessions import DueEnd
from tests.lib.test_metrics import LedgerMachine, accepted
from tests.manual_clock import ManualClock

IDENTITY = b"this worker"
NOW = 1e9  # Unix time
SMALL_BYTES = 400  # a few changes: the file is written anew all the time


def each(end_turn: Callable[[], None]) -> None:
    """End the event loop's turn after each change."""
    end_turn()


class Sessions:
    """Sessions whose ends are due."""

    def __init__(self) -> None:
        self.ends: dict[str, DueEnd] = {}

    def due_ends(self) -> Iterable[DueEnd]:
        return self.ends.values()


class Used:
    """Used signatures."""

    def __init__(self) -> None:
        self.fingerprint = b""
        self.signatures: list[tuple[int, bytes]] = []

    def used(self) -> Iterable[tuple[int, bytes]]:
        return self.signatures


class Life:
    """One life of a worker with the journal at `path`, until `kill`."""

    def __init__(
        self,
        path: Path,
        clock: ManualClock | None = None,
        max_bytes: int = SMALL_BYTES,
        at_turn_end: Callable[[Callable[[], None]], object] = each,
    ) -> None:
        self.path, self.clock = path, clock or ManualClock(wall_s=NOW)
        file = JournalFile(path, IDENTITY)
        self.remembered = recall(file.read(), self.clock.wall())
        self.ledger, self.sessions, self.signatures = Ledger(self.clock), Sessions(), Used()
        self.ledger.inherit(self.remembered.ledger)
        self.sessions.ends = dict(self.remembered.due_ends)
        self.signatures.fingerprint = self.remembered.fingerprint
        self.signatures.signatures = list(self.remembered.used)
        memories = self.signatures, self.sessions
        self.journal = Journal(file, self.ledger, *memories, self.clock, at_turn_end, max_bytes)
        self.journal.begin()
        self.ledger.journal = self.journal

    def kill(self, torn: bytes = b"") -> None:
        """End the life: the file stays as it is now, with a last record of which `torn` was written."""
        written = self.path.read_bytes()
        self.journal.close()
        self.path.write_bytes(written + torn)


class JournaledLedgerMachine(LedgerMachine):
    """The same as `LedgerMachine` with a journal, where the worker may be killed after any event.

    Requests in flight are then errored; reports in the air are lost, and totals since the start begin anew.
    """

    limit = MAX_UNDELIVERED

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.life = Life(self.folder / "journal")
        self.ledger = self.life.ledger

    def teardown(self) -> None:
        self.life.kill()
        shutil.rmtree(self.folder)

    @rule(torn=st.binary(max_size=40))
    def kill_and_restart(self, torn: bytes) -> None:
        for entry in self.open:
            if entry.request_idx is not None:
                self.note_finished(entry.request_idx, Outcome.ERRORED)
        self.life.kill(torn)
        self.life = Life(self.folder / "journal")
        self.ledger = self.life.ledger
        self.open, self.arriving = [], []
        self.report = self.completions = None
        self.received = self.ended = 0


TestJournaledLedger = JournaledLedgerMachine.TestCase
TestJournaledLedger.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def numbers(ledger: Ledger) -> tuple[float, float, float, list[tuple[int, str]]]:
    """The numbers in a report of `ledger`, and its undelivered entries."""
    report = ledger.snapshot()
    finished = [(f.request_idx, f.status) for f in ledger.finished()[0]]
    return report.new_load, report.rej_load, report.cur_perf, finished


@given(st.data())
def test_a_file_cut_anywhere_says_what_was_true_at_some_moment(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        life = Life(Path(folder) / "journal", max_bytes=10**6)
        states = [numbers(life.ledger)]
        in_flight = [accepted(life.ledger, 1.0, 1)]
        states.append((1.0, 0.0, 0.0, [(1, "Error")]))
        for number in (2, 3, 4):
            in_flight.append(accepted(life.ledger, 10.0**number, number))
            states.append(_if_killed(life.ledger, [e.request_idx or 0 for e in in_flight]))
            in_flight.pop(0).set_outcome(Outcome.SERVED)
            states.append(_if_killed(life.ledger, [e.request_idx or 0 for e in in_flight]))
        whole = life.path.read_bytes()
        life.journal.close()
        size_bytes = data.draw(st.integers(0, len(whole)))
        event("cut" if size_bytes < len(whole) else "whole")
        life.path.write_bytes(whole[:size_bytes])
        assert numbers(Life(life.path).ledger) in states


def _if_killed(ledger: Ledger, in_flight: list[int]) -> tuple[float, float, float, list[tuple[int, str]]]:
    new, rejected, served, finished = numbers(ledger)
    return new, rejected, served, [*finished, *((idx, "Error") for idx in in_flight)]


@pytest.mark.parametrize("position", [-1, -5, 20])
def test_a_damaged_record_ends_the_file(path: Path, position: int) -> None:
    life = Life(path, max_bytes=10**6)
    accepted(life.ledger, 5.0, 1).set_outcome(Outcome.SERVED)
    life.kill()
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)
    # Either the last record is lost, and the request was in flight; or all of them.
    assert numbers(Life(path).ledger) in [(5.0, 0.0, 0.0, [(1, "Error")]), (0.0, 0.0, 0.0, [])]


def test_records_that_contradict_each_other_are_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    life = Life(path, max_bytes=10**6)
    entry = accepted(life.ledger, 5.0)
    entry.set_outcome(Outcome.SERVED)
    life.journal.ended(entry, Outcome.SERVED, False, NOW)  # a second end
    accepted(life.ledger, 7.0)
    life.kill()
    with caplog.at_level(logging.WARNING):
        assert numbers(Life(path).ledger) == (5.0, 0.0, 5.0, [])
    assert "is damaged" in caplog.text


@pytest.mark.parametrize(("age_s", "is_told"), [(0.0, True), (OLDEST_S, True), (OLDEST_S + 1, False)])
@pytest.mark.parametrize("is_in_flight", [False, True])
def test_what_is_older_than_an_hour_is_not_told(
    path: Path, age_s: float, is_told: bool, is_in_flight: bool
) -> None:
    life = Life(path)
    entry = accepted(life.ledger, 5.0, 1)
    if not is_in_flight:
        entry.set_outcome(Outcome.SERVED)
    life.kill()
    later = Life(path, ManualClock(wall_s=NOW + age_s))
    new, _, _, finished = numbers(later.ledger)
    assert (new, len(finished)) == ((5.0, 1) if is_told else (0.0, 0))


@pytest.mark.parametrize("age_s", [1.0, OLDEST_S])
def test_only_the_older_part_is_not_told(path: Path, age_s: float) -> None:
    life = Life(path, max_bytes=10**6)
    accepted(life.ledger, 5.0, 1).set_outcome(Outcome.SERVED)
    still = accepted(life.ledger, 1.0, 2)
    life.clock.advance(OLDEST_S)
    accepted(life.ledger, 7.0, 3).set_outcome(Outcome.SERVED)
    life.kill()
    assert still.outcome is None
    later = Life(path, ManualClock(wall_s=life.clock.wall() + age_s))
    assert numbers(later.ledger) == (7.0, 0.0, 7.0, [(3, "Success"), (2, "Error")])


def test_what_is_an_hour_old_is_told_with_what_is_younger(path: Path) -> None:
    life = Life(path, max_bytes=10**6)
    accepted(life.ledger, 5.0, 1).set_outcome(Outcome.SERVED)
    life.clock.advance(OLDEST_S / 2)
    accepted(life.ledger, 7.0, 2).set_outcome(Outcome.SERVED)
    life.kill()
    later = Life(path, ManualClock(wall_s=NOW + OLDEST_S))
    assert numbers(later.ledger) == (12.0, 0.0, 12.0, [(1, "Success"), (2, "Success")])


def test_finished_requests_keep_their_times(path: Path) -> None:
    life = Life(path, max_bytes=10**6)
    entry = accepted(life.ledger, 5.0, 1)
    for step in (entry.start, lambda: entry.set_outcome(Outcome.SERVED)):
        life.clock.advance(1.0)
        step()
    told = life.ledger.finished()[0]
    assert (told[0].work_started_at, told[0].work_completed_at) == (NOW + 1, NOW + 2)
    life.kill()
    for _ in range(2):  # from the record of its end, and from the one of what still counts
        life = Life(path, ManualClock(wall_s=NOW + 9))
        assert life.ledger.finished()[0] == told
        life.kill()


def test_a_clock_that_was_set_back_loses_nothing(path: Path) -> None:
    life = Life(path)
    accepted(life.ledger, 5.0, 1).set_outcome(Outcome.SERVED)
    life.kill()
    assert numbers(Life(path, ManualClock(wall_s=NOW - 10**6)).ledger) == (5.0, 0.0, 5.0, [(1, "Success")])


def test_the_journal_of_another_worker_is_ignored(path: Path) -> None:
    life = Life(path)
    accepted(life.ledger, 5.0, 1).set_outcome(Outcome.SERVED)
    life.kill()
    assert JournalFile(path, b"another").read() == []
    assert JournalFile(path, IDENTITY).read() != []


def test_only_this_user_may_read_it(path: Path) -> None:
    old_mask = os.umask(0)
    try:
        life = Life(path)
    finally:
        os.umask(old_mask)
    assert path.stat().st_mode & 0o777 == 0o600
    life.journal.close()


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    life = Life(tmp_path / "elsewhere")
    life.journal.close()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        JournalFile(path, IDENTITY).read()
    before = (tmp_path / "elsewhere").read_bytes()
    JournalFile(path, IDENTITY).replace([b"new"])
    assert (path.is_symlink(), (tmp_path / "elsewhere").read_bytes()) == (False, before)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_read(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    try:
        assert JournalFile(path, IDENTITY).read() == []
    except OSError as e:
        assert isinstance(e, IsADirectoryError)  # noqa: PT017


def test_a_pipe_is_not_read_though_it_has_records(path: Path) -> None:
    JournalFile(path, IDENTITY).replace([b"record"])
    content = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(descriptor, content)
        assert JournalFile(path, IDENTITY).read() == []
    finally:
        os.close(descriptor)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_another_user_s_file_is_not_read(path: Path) -> None:
    JournalFile(path, IDENTITY).replace([b"record"])
    os.chown(path, 12345, -1)
    assert JournalFile(path, IDENTITY).read() == []


def open_files(path: Path) -> int:
    """The number of this process's descriptors of the file at `path`, and of those that were there before."""
    links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).startswith(str(path)) for link in links if link.is_symlink())


def test_one_file_is_open_between_replace_and_the_end(path: Path) -> None:
    file = JournalFile(path, IDENTITY)
    assert (file.size_bytes, open_files(path)) == (0, 0)
    for _ in range(3):
        file.replace([b"record"])
        assert (file.size_bytes, open_files(path)) == (path.stat().st_size, 1)
    file.append(b"another")
    assert file.size_bytes == path.stat().st_size
    file.close()
    assert open_files(path) == 0
    file.replace([])
    file.discard()
    assert (file.size_bytes, path.exists(), open_files(path)) == (0, False, 0)


def test_a_record_that_is_written_only_in_part_is_an_error(path: Path) -> None:
    file = JournalFile(path, IDENTITY)
    file.replace([b"whole"])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.size_bytes + 20, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            file.append(bytes(100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.stat().st_size == file.size_bytes + 20
    assert JournalFile(path, IDENTITY).read() == [b"whole"]
    file.close()


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(path: Path) -> None:
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        JournalFile(path, IDENTITY).replace([b"record"])
    assert (list(path.parent.iterdir()), open_files(path)) == ([path], 0)


def test_a_new_file_that_a_killed_worker_left_is_replaced(path: Path) -> None:
    path.with_name("journal.new").write_bytes(b"unfinished")
    file = JournalFile(path, IDENTITY)
    file.replace([b"record"])
    file.close()
    assert list(path.parent.iterdir()) == [path]
    assert JournalFile(path, IDENTITY).read() == [b"record"]


def test_the_file_is_bounded(path: Path) -> None:
    life = Life(path, max_bytes=10_000)
    for number in range(1, 2000):
        accepted(life.ledger, 1.0, number).set_outcome(Outcome.SERVED)
        life.ledger.acknowledge(life.ledger.snapshot())
        life.ledger.acknowledge_finished(life.ledger.finished()[1])
        assert path.stat().st_size <= 10_000 + 200
    assert numbers(Life(path).ledger) == (0.0, 0.0, 0.0, [])


class CountingFile(JournalFile):
    """Counts how often it was written anew."""

    replaced = 0

    def replace(self, records: Iterable[bytes]) -> None:
        self.replaced += 1
        super().replace(records)


def test_a_state_larger_than_the_limit_is_not_written_at_each_change(path: Path) -> None:
    clock, file = ManualClock(wall_s=NOW), CountingFile(path, IDENTITY)
    ledger = Ledger(clock)
    journal = Journal(file, ledger, None, Sessions(), clock, each, max_bytes=1000)
    journal.begin()
    ledger.journal = journal
    for _ in range(2000):
        accepted(ledger)
    assert 2 < file.replaced < 12
    journal.close()


class FullDisk(JournalFile):
    """A journal whose disk is full while `is_full`. `tries` counts how often it was to be written anew."""

    is_full = False
    tries = 0

    def append(self, record: bytes) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")
        super().append(record)

    def replace(self, records: Iterable[bytes]) -> None:
        self.tries += 1
        if self.is_full:
            raise OSError(28, "No space left on device")
        super().replace(records)

    def close(self) -> None:
        super().close()
        if self.is_full:
            raise OSError(28, "No space left on device")


class Turns:
    """Turns of the event loop that end when the test says so."""

    def __init__(self) -> None:
        self._ends: list[Callable[[], None]] = []

    def at_end(self, call: Callable[[], None]) -> None:
        """Call `call` once, at the end of this turn."""
        self._ends.append(call)

    def end(self) -> None:
        """End the turn."""
        ends, self._ends = self._ends, []
        for call in ends:
            call()


def written(path: Path) -> int:
    """The number of records in the file: each is one call of the operating system."""
    return len(JournalFile(path, IDENTITY).read())


@pytest.mark.parametrize("requests", [1, 2, 5])
def test_a_turn_is_at_most_two_writes(path: Path, requests: int) -> None:
    turns = Turns()
    life = Life(path, max_bytes=10**6, at_turn_end=turns.at_end)
    before = written(path)
    for turn in range(3):
        for _ in range(requests):
            accepted(life.ledger, 1.0).set_outcome(Outcome.SERVED)
            assert written(path) == before + 2 * turn + 1  # the first change is there at once
        turns.end()
        assert written(path) == before + 2 * turn + 2
        turns.end()  # without a change
        assert written(path) == before + 2 * turn + 2
    assert numbers(recall(JournalFile(path, IDENTITY).read(), NOW).ledger) == numbers(life.ledger)
    life.journal.close()


@given(st.lists(st.sampled_from(["open", "end", "report", "used", "turn"]), min_size=1, max_size=40))
def test_what_is_written_by_turns_says_the_same_as_what_is_written_by_changes(steps: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        turns = Turns()
        lives = [
            Life(Path(folder) / "by changes", max_bytes=10**6),
            Life(Path(folder) / "by turns", max_bytes=10**6, at_turn_end=turns.at_end),
        ]
        for life in lives:
            in_flight = list[Entry]()
            for number, step in enumerate([*steps, "open", "turn"], 1):
                if step == "open":
                    in_flight.append(accepted(life.ledger, float(number), number))
                elif step == "end" and in_flight:
                    in_flight.pop(0).set_outcome(Outcome.SERVED)
                elif step == "report":
                    life.ledger.acknowledge(life.ledger.snapshot())
                elif step == "used":
                    life.journal.signature_used(number, b"digest")
                elif step == "turn":
                    turns.end()
            life.kill()
        by_changes, by_turns = (recall(JournalFile(life.path, IDENTITY).read(), NOW) for life in lives)
        assert numbers(by_turns.ledger) == numbers(by_changes.ledger)
        assert by_turns.used == by_changes.used


def test_what_a_turn_has_left_is_written_at_the_end(path: Path) -> None:
    turns = Turns()
    life = Life(path, max_bytes=10**6, at_turn_end=turns.at_end)
    for number in (1, 2):
        accepted(life.ledger, 1.0, number)
    life.journal.signature_used(7, b"digest")
    life.journal.close()
    turns.end()
    remembered = recall(JournalFile(path, IDENTITY).read(), NOW)
    assert numbers(remembered.ledger) == (2.0, 0.0, 0.0, [(1, "Error"), (2, "Error")])
    assert remembered.used == [(7, b"digest")]


def test_a_used_signature_is_written_with_the_next_change(path: Path) -> None:
    life = Life(path, max_bytes=10**6)
    before = written(path)
    life.journal.signature_used(7, b"digest")
    assert written(path) == before
    accepted(life.ledger)
    assert written(path) == before + 1
    assert recall(JournalFile(path, IDENTITY).read(), NOW).used == [(7, b"digest")]
    life.journal.close()


def test_changes_that_are_not_written_yet_are_in_a_new_file_once(path: Path) -> None:
    turns = Turns()
    life = Life(path, max_bytes=10**6, at_turn_end=turns.at_end)
    accepted(life.ledger, 1.0, 1)
    accepted(life.ledger, 2.0, 2)
    life.journal.begin()
    turns.end()
    life.kill()
    assert numbers(Life(path).ledger) == (3.0, 0.0, 0.0, [(1, "Error"), (2, "Error")])


def test_changes_that_wait_when_the_disk_is_full_are_in_the_next_file_once(path: Path) -> None:
    clock, file, turns = ManualClock(wall_s=NOW), FullDisk(path, IDENTITY), Turns()
    ledger = Ledger(clock)
    journal = Journal(file, ledger, None, Sessions(), clock, turns.at_end)
    ledger.journal = journal
    journal.begin()
    accepted(ledger, 1.0, 1)
    accepted(ledger, 2.0, 2)
    file.is_full = True
    turns.end()
    assert not path.exists()
    file.is_full = False
    clock.advance(RETRY_S)
    accepted(ledger, 4.0, 3)
    accepted(ledger, 8.0, 4)
    turns.end()
    journal.close()
    assert numbers(recall(JournalFile(path, IDENTITY).read(), NOW).ledger)[0] == 15.0


def test_a_full_disk_at_the_end_is_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock, file = ManualClock(wall_s=NOW), FullDisk(path, IDENTITY)
    journal = Journal(file, Ledger(clock), None, Sessions(), clock, each)
    journal.begin()
    file.is_full = True
    journal.close()
    assert f"the journal {path} can't be written: No space left on device" in caplog.text


def test_a_full_disk_is_told_once_and_tried_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock, file = ManualClock(wall_s=NOW), FullDisk(path, IDENTITY)
    ledger = Ledger(clock)
    journal = Journal(file, ledger, None, Sessions(), clock, each)
    ledger.journal = journal
    journal.begin()
    with caplog.at_level(logging.INFO):
        accepted(ledger, 1.0, 1)
        file.is_full = True
        accepted(ledger, 2.0, 2).set_outcome(Outcome.SERVED)
        # The old records would say that the first request is in flight, and that no other was served.
        assert not path.exists()
        assert [r.levelname for r in caplog.records] == ["WARNING"]
        assert file.tries == 1
        clock.advance(RETRY_S)
        accepted(ledger, 4.0, 3)
        assert file.tries == 2
        assert [r.levelname for r in caplog.records] == ["WARNING"]
        file.is_full = False
        accepted(ledger, 8.0, 4)
        assert not path.exists()
        clock.advance(RETRY_S)
        accepted(ledger, 16.0, 5).set_outcome(Outcome.SERVED)
        assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]
    journal.close()
    remembered = recall(JournalFile(path, IDENTITY).read(), NOW)
    finished = [(2, "Success"), (5, "Success"), (1, "Error"), (3, "Error"), (4, "Error")]
    assert numbers(remembered.ledger) == (31.0, 0.0, 18.0, finished)


def test_a_request_in_flight_for_hours_is_told_if_the_worker_has_lived_until_now(path: Path) -> None:
    life = Life(path, max_bytes=10**6)
    accepted(life.ledger, 5.0, 1)
    for _ in range(3):  # reports without news
        life.clock.advance(OLDEST_S - 1)
        life.ledger.acknowledge(life.ledger.snapshot())
    life.kill()
    assert numbers(Life(path, ManualClock(wall_s=life.clock.wall())).ledger) == (
        0.0,
        0.0,
        0.0,
        [(1, "Error")],
    )


def test_what_is_delivered_after_it_became_too_old_takes_nothing_newer_with_it(path: Path) -> None:
    life = Life(path, max_bytes=10**6)
    for number in range(1, 6):
        accepted(life.ledger, 1.0, number).set_outcome(Outcome.SERVED)
    before = life.ledger.snapshot()
    life.clock.advance(OLDEST_S + 100)
    for number in range(6, 9):
        accepted(life.ledger, 1.0, number).set_outcome(Outcome.SERVED)
    life.ledger.acknowledge(before)
    life.ledger.acknowledge_finished(5)
    life.kill()
    later = Life(path, ManualClock(wall_s=life.clock.wall()))
    assert numbers(later.ledger) == (3.0, 0.0, 3.0, [(n, "Success") for n in (6, 7, 8)])


@pytest.mark.parametrize(
    "payload", [{"n": 2**70}, {"text": "\ud800"}, {"n": float("inf")}, {"é": [None]}, None]
)
def test_any_payload_of_a_sessions_end_is_kept(path: Path, payload: dict[str, Any] | None) -> None:
    life = Life(path)
    end = DueEnd("s", b"digest", "/close/\ud800", payload)
    life.sessions.ends["s"] = end
    life.journal.session_opened(end)
    life.kill()
    assert Life(path).remembered.due_ends == {"s": end}


def test_the_file_of_a_worker_before_is_not_told_twice_if_the_first_write_fails(path: Path) -> None:
    life = Life(path)
    accepted(life.ledger, 5.0, 1).set_outcome(Outcome.SERVED)
    life.kill()
    file = FullDisk(path, IDENTITY)
    file.is_full = True
    ledger = Ledger(life.clock)
    ledger.inherit(recall(file.read(), NOW).ledger)
    Journal(file, ledger, None, Sessions(), life.clock, each).begin()
    assert numbers(ledger) == (5.0, 0.0, 5.0, [(1, "Success")])
    assert JournalFile(path, IDENTITY).read() == []


def test_what_is_inherited_is_to_be_reported() -> None:
    ledger, notes = Ledger(ManualClock()), list[int]()
    ledger.listeners.append(lambda: notes.append(1))
    ledger.inherit(Ledger(ManualClock()))
    assert notes == [1]


def test_a_deficit_is_carried_over(path: Path) -> None:
    life = Life(path)
    entry = accepted(life.ledger, 10.0)
    life.ledger.acknowledge(life.ledger.snapshot())
    entry.set_outcome(Outcome.CANCELLED)
    life.kill()
    again = Life(path)
    accepted(again.ledger, 4.0)
    assert again.ledger.snapshot().new_load == 0.0
    accepted(again.ledger, 8.0)
    assert again.ledger.snapshot().new_load == 2.0


def test_used_signatures_come_with_their_key(path: Path) -> None:
    life = Life(path)
    life.journal.key_changed(b"old")
    life.journal.signature_used(1, b"a")
    life.journal.key_changed(b"new")
    life.journal.signature_used(2, b"b")
    accepted(life.ledger).set_outcome(Outcome.SERVED)  # what is held is written with it
    life.kill()
    for _ in range(2):  # from the records of changes, and from those of what still counts
        life = Life(path, max_bytes=10**6)
        assert (life.remembered.fingerprint, life.remembered.used) == (b"new", [(2, b"b")])
        life.kill()


def test_what_is_held_is_written_at_the_end(path: Path) -> None:
    life = Life(path)
    life.journal.key_changed(b"key")
    life.journal.signature_used(1, b"a")
    life.journal.close()
    assert Life(path).remembered.used == [(1, b"a")]


def test_the_ends_of_open_sessions_are_due(path: Path) -> None:
    life = Life(path)
    ends = {name: DueEnd(name, b"digest", "/close", {"n": 1}) for name in ("open", "ended")}
    for end in ends.values():
        life.sessions.ends[end.session_id] = end
        life.journal.session_opened(end)
    del life.sessions.ends["ended"]
    life.journal.session_ended("ended")
    life.kill()
    for _ in range(2):
        life = Life(path, max_bytes=10**6)
        assert life.remembered.due_ends == {"open": ends["open"]}
        life.kill()
