"""The ledger's sums are right after any sequence of events."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lib.metrics import MAX_UNDELIVERED, MAX_WORKLOAD, Entry, Ledger, Outcome, Snapshot
from lib.wire import FinishedRequest
from tests.event_loop import run_event_loop_turns
from tests.manual_clock import ManualClock

LIMIT = 5
WORKLOADS = st.integers(0, 1000)
IDXS = st.one_of(st.none(), st.integers(1, 3))


def accepted(ledger: Ledger, workload: float = 1.0, request_idx: int | None = None) -> Entry:
    entry = ledger.open(request_idx)
    entry.set_workload(workload)
    entry.accept()
    return entry


class LedgerMachine(RuleBasedStateMachine):
    """Requests, reports and completions in any order, compared with sums of a simple model.

    Workloads are integers, so that sums are exact. One report and one message of completions may be
    under way; each is acknowledged or lost after any other events.
    """

    limit = LIMIT

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(ManualClock(), self.limit)
        self.open: list[Entry] = []
        self.report: Snapshot | None = None
        self.completions: tuple[tuple[FinishedRequest, ...], int] | None = None
        self.sent: list[int] = []
        self.served = self.rejected = self.net = self.withdrawn = 0.0
        self.acknowledged_served = self.acknowledged_rejected = self.acknowledged_new = 0.0
        self.received = self.ended = 0
        self.arriving: list[Entry] = []
        self.highest_acknowledged_net = 0.0
        self.net_in_report = 0.0
        self.finished: list[tuple[int, str]] = []
        self.undelivered: list[int] = []  # positions in `finished`
        self.dropped = 0

    # Requests

    @rule(workload=WORKLOADS, idx=IDXS)
    def arrive(self, workload: int, idx: int | None) -> None:
        self.open.append(accepted(self.ledger, workload, idx))
        self.received += 1
        self.net += workload

    @rule(workload=WORKLOADS, idx=IDXS)
    def begin_to_arrive(self, workload: int, idx: int | None) -> None:
        self.arriving.append(self.ledger.open(idx))
        self.arriving[-1].set_workload(workload)

    @rule(outcome=st.sampled_from(Outcome))
    def pass_within_a_session(self, outcome: Outcome) -> None:
        entry = self.ledger.open(1, counted=False)
        entry.accept()
        entry.set_outcome(outcome)

    @precondition(lambda self: self.arriving)
    @rule()
    def finish_arriving(self) -> None:
        self.open.append(self.arriving.pop())
        self.open[-1].accept()
        self.received += 1
        self.net += self.open[-1].workload

    @rule(workload=WORKLOADS, idx=IDXS, outcome=st.sampled_from(Outcome), without_work=st.booleans())
    def arrive_and_end_unaccepted(
        self, workload: int, idx: int | None, outcome: Outcome, without_work: bool
    ) -> None:
        entry = self.ledger.open(idx)
        entry.set_workload(workload)
        entry.set_outcome(outcome, without_work)
        self.rejected += workload if outcome is Outcome.REJECTED else 0
        self.closed(entry, outcome)

    @precondition(lambda self: self.open)
    @rule(
        data=st.data(),
        outcome=st.sampled_from(Outcome),
        without_work=st.booleans(),
        then=st.sampled_from([None, *Outcome]),
    )
    def leave(self, data: st.DataObject, outcome: Outcome, without_work: bool, then: Outcome | None) -> None:
        entry = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        if data.draw(st.booleans()):
            entry.start()
        self.end(entry, outcome, without_work)
        if then is not None:  # only the first counts
            entry.set_outcome(then)

    def end(self, entry: Entry, outcome: Outcome, without_work: bool = False) -> None:
        entry.set_outcome(outcome, without_work)
        if outcome is Outcome.SERVED and not without_work:
            self.served += entry.workload
        elif outcome is Outcome.REJECTED:
            self.rejected += entry.workload
        if outcome in (Outcome.CANCELLED, Outcome.REJECTED) or (outcome is Outcome.SERVED and without_work):
            self.net -= entry.workload
            self.withdrawn += entry.workload
        self.closed(entry, outcome)

    def closed(self, entry: Entry, outcome: Outcome) -> None:
        assert entry.outcome is outcome
        self.ended += 1
        if entry.request_idx is not None:
            self.note_finished(entry.request_idx, outcome)

    def note_finished(self, request_idx: int, outcome: Outcome) -> None:
        self.undelivered.append(len(self.finished))
        self.finished.append((request_idx, outcome.status))
        if len(self.undelivered) > self.limit:
            del self.undelivered[0]
            self.dropped += 1

    # Reports

    @precondition(lambda self: self.report is None)
    @rule()
    def send_report(self) -> None:
        self.report, self.net_in_report = self.ledger.snapshot(), self.net
        assert self.report.new_load >= 0

    @precondition(lambda self: self.report is not None)
    @rule(acknowledged=st.booleans())
    def answer_report(self, acknowledged: bool) -> None:
        report, self.report = self.report, None
        assert report is not None
        if not acknowledged:
            return
        self.ledger.acknowledge(report)
        self.acknowledged_served += report.cur_perf
        self.acknowledged_rejected += report.rej_load
        self.acknowledged_new += report.new_load
        self.highest_acknowledged_net = max(self.highest_acknowledged_net, self.net_in_report)

    # The steps above rarely come in such an order by themselves.

    @precondition(lambda self: self.report is None)
    @rule(
        workload=WORKLOADS,
        ends=st.lists(st.tuples(st.sampled_from(Outcome), st.booleans()), max_size=3),
        acknowledged=st.booleans(),
    )
    def report_while_requests_end(
        self, workload: int, ends: list[tuple[Outcome, bool]], acknowledged: bool
    ) -> None:
        self.arrive(workload, None)
        self.send_report()
        self.arrive(workload + 1, 1)
        for outcome, without_work in ends:
            if self.open:
                self.end(self.open.pop(), outcome, without_work)
        self.answer_report(acknowledged)

    @precondition(lambda self: self.completions is None)
    @rule(before=st.integers(1, LIMIT), during=st.integers(0, LIMIT + 2), acknowledged=st.booleans())
    def deliver_while_requests_end(self, before: int, during: int, acknowledged: bool) -> None:
        for number in range(before + during):
            if number == before:
                self.send_completions(LIMIT)
            self.arrive_and_end_unaccepted(1, 100 + number, Outcome.REJECTED, False)
        if self.completions is not None:
            self.answer_completions(acknowledged)

    @precondition(lambda self: self.completions is None)
    @rule(limit=st.integers(1, LIMIT + 1))
    def send_completions(self, limit: int) -> None:
        self.completions = self.ledger.finished(limit)
        self.sent = self.undelivered[:limit]
        assert self.statuses(self.completions[0]) == [self.finished[position] for position in self.sent]

    @precondition(lambda self: self.completions is not None)
    @rule(acknowledged=st.booleans())
    def answer_completions(self, acknowledged: bool) -> None:
        assert self.completions is not None
        (_, mark), self.completions = self.completions, None
        if acknowledged:
            self.ledger.acknowledge_finished(mark)
            self.undelivered = [position for position in self.undelivered if position not in self.sent]

    # Invariants

    @invariant()
    def what_is_open_is_in_flight(self) -> None:
        snapshot = self.ledger.snapshot()
        assert snapshot.cur_load == sum(e.workload for e in self.open)
        assert snapshot.working == len(self.open) == self.ledger.in_flight
        assert snapshot.received == self.received
        assert list(snapshot.working_request_idxs) == [e.request_idx for e in self.open if e.request_idx]

    @invariant()
    def acknowledged_and_unreported_loads_add_up(self) -> None:
        snapshot = self.ledger.snapshot()
        assert self.acknowledged_served + snapshot.cur_perf == self.served
        assert self.acknowledged_rejected + snapshot.rej_load == self.rejected
        # A negative new_load can't be reported: the deficit is carried over.
        assert self.acknowledged_new == self.highest_acknowledged_net
        assert self.acknowledged_new + snapshot.new_load == max(self.acknowledged_new, self.net)

    @invariant()
    def a_deficit_is_what_was_told_for_requests_withdrawn_since(self) -> None:
        snapshot = self.ledger.snapshot()
        deficit = self.acknowledged_new - self.net
        assert deficit <= self.withdrawn
        assert snapshot.new_load == max(0.0, -deficit)

    @invariant()
    def every_request_has_one_outcome(self) -> None:
        assert sum(self.ledger.outcomes.values()) == self.ended

    @invariant()
    def what_was_opened_is_arriving_in_flight_or_ended(self) -> None:
        assert self.ledger.arriving == len(self.arriving)
        assert self.ledger.opened == len(self.arriving) + len(self.open) + self.ended
        assert self.ledger.unfinished == len(self.arriving) + len(self.open)

    @invariant()
    def all_accepted_work_is_accounted_for(self) -> None:
        ledger = self.ledger
        ended = ledger.accepted_load - ledger.cur_load
        assert 0 <= ledger.served_load <= ended - ledger.withdrawn_load

    @invariant()
    def what_is_neither_delivered_nor_dropped_is_kept(self) -> None:
        entries, _ = self.ledger.finished()
        assert self.statuses(entries) == [self.finished[position] for position in self.undelivered]
        assert self.ledger.dropped_entries == self.dropped

    @staticmethod
    def statuses(entries: tuple[FinishedRequest, ...]) -> list[tuple[int, str]]:
        return [(e.request_idx, e.status) for e in entries]


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


@pytest.mark.parametrize(
    ("outcome", "status", "success"),
    [
        (Outcome.SERVED, "Success", True),
        (Outcome.ERRORED, "Error", False),
        (Outcome.CANCELLED, "Cancelled", True),
        (Outcome.REJECTED, "Rejected", False),
    ],
)
def test_each_outcome_has_its_status_on_the_wire(outcome: Outcome, status: str, success: bool) -> None:
    ledger = Ledger(ManualClock())
    accepted(ledger, request_idx=1).set_outcome(outcome)
    assert dict(ledger.outcomes) == {outcome: 1}
    (finished,), _ = ledger.finished()
    assert (finished.status, finished.success) == (status, success)


def test_each_change_that_a_report_would_show_is_notified() -> None:
    ledger, notes = Ledger(ManualClock()), list[int]()
    ledger.listeners += [lambda: notes.append(1), lambda: notes.append(2)]
    inside = ledger.open(counted=False)
    inside.accept()
    inside.set_outcome(Outcome.SERVED)
    entry = ledger.open()
    assert notes == []
    entry.accept()
    assert notes == [1, 2]
    entry.set_outcome(Outcome.SERVED)
    assert notes == [1, 2, 1, 2]


def test_without_another_clock_times_are_those_of_the_system() -> None:
    before = time.time()
    entry = Ledger().open(1)
    entry.accept()
    assert before <= entry.entered_queue_at <= time.time()


def test_a_request_whose_workload_is_not_known_yet_is_no_load() -> None:
    ledger = Ledger(ManualClock())
    ledger.open(1).accept()
    assert (ledger.cur_load, ledger.accepted_load) == (0.0, 0.0)


def test_only_the_first_outcome_counts() -> None:
    ledger = Ledger(ManualClock())
    entry = accepted(ledger)
    entry.set_outcome(Outcome.SERVED)
    entry.set_outcome(Outcome.ERRORED)
    assert dict(ledger.outcomes) == {Outcome.SERVED: 1}


def test_a_request_that_was_never_accepted_adds_no_throughput() -> None:
    ledger = Ledger(ManualClock())
    entry = ledger.open(1)
    entry.set_workload(10.0)
    entry.set_outcome(Outcome.SERVED)  # answered by a middleware
    snapshot = ledger.snapshot()
    assert (snapshot.cur_perf, snapshot.new_load, snapshot.received) == (0.0, 0.0, 0)
    assert dict(ledger.outcomes) == {Outcome.SERVED: 1}


def test_times_are_unix_times_and_0_for_steps_that_never_came() -> None:
    clock = ManualClock(wall_s=1000.0)
    ledger = Ledger(clock)
    ledger.open(1).set_outcome(Outcome.REJECTED)
    entry = ledger.open(2)
    entry.accept()
    clock.advance(1.0)
    entry.start()
    clock.advance(2.0)
    entry.set_outcome(Outcome.SERVED)
    entry = ledger.open(3)
    entry.accept()
    entry.set_outcome(Outcome.CANCELLED)
    (refused, served, left), _ = ledger.finished()
    assert (left.entered_queue_at, left.work_started_at, left.work_completed_at) == (1003, 0.0, 0.0)
    assert (refused.entered_queue_at, refused.work_started_at, refused.work_completed_at) == (0.0, 0.0, 0.0)
    assert (served.entered_queue_at, served.work_started_at, served.work_completed_at) == (1000, 1001, 1003)


def test_with_nothing_in_flight_the_load_is_exactly_0() -> None:
    ledger = Ledger(ManualClock())
    entries = [accepted(ledger, 0.1) for _ in range(3)]
    for entry in entries:
        entry.set_outcome(Outcome.SERVED)
    assert ledger.cur_load == 0.0


def test_enormous_workloads_do_not_distort_later_reports() -> None:
    ledger = Ledger(ManualClock())
    for _ in range(3):
        accepted(ledger, 1.7e308).set_outcome(Outcome.SERVED)
    first = ledger.snapshot()
    assert first.cur_perf == first.new_load == 3 * MAX_WORKLOAD
    ledger.acknowledge(first)
    accepted(ledger, 1.5).set_outcome(Outcome.CANCELLED)
    accepted(ledger, 1.5).set_outcome(Outcome.SERVED)
    assert (ledger.snapshot().cur_perf, ledger.snapshot().new_load) == (1.5, 1.5)


def test_undelivered_requests_are_limited(caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(ManualClock())
    with caplog.at_level(logging.WARNING):
        for number in range(1, MAX_UNDELIVERED + 2002):
            accepted(ledger, request_idx=number).set_outcome(Outcome.SERVED)
    entries, _ = ledger.finished()
    assert [e.request_idx for e in entries] == list(range(2002, MAX_UNDELIVERED + 2002))
    assert ledger.dropped_entries == 2001
    assert [message.split()[0] for message in caplog.messages] == ["1", "1000", "2000"]


def test_entries_dropped_during_a_delivery_are_not_removed_twice() -> None:
    ledger = Ledger(ManualClock(), 3)
    for number in (1, 2, 3):
        accepted(ledger, request_idx=number).set_outcome(Outcome.SERVED)
    _, mark = ledger.finished()
    for number in (4, 5):
        accepted(ledger, request_idx=number).set_outcome(Outcome.SERVED)
    ledger.acknowledge_finished(mark)
    entries, _ = ledger.finished()
    assert [e.request_idx for e in entries] == [4, 5]


def test_a_mark_that_is_acknowledged_again_removes_nothing() -> None:
    ledger = Ledger(ManualClock())
    for number in (1, 2, 3):
        accepted(ledger, request_idx=number).set_outcome(Outcome.SERVED)
    _, first = ledger.finished(1)
    _, third = ledger.finished()
    for mark in (third, third):
        ledger.acknowledge_finished(mark)
        assert ledger.finished()[0] == ()
    for number in (4, 5, 6):
        accepted(ledger, request_idx=number).set_outcome(Outcome.SERVED)
    _, fourth = ledger.finished(1)
    for mark in (third, first, fourth, fourth):
        ledger.acknowledge_finished(mark)
    assert [e.request_idx for e in ledger.finished()[0]] == [5, 6]


def test_a_request_is_accepted_once_and_not_after_its_end() -> None:
    ledger = Ledger(ManualClock())
    entry = accepted(ledger, 5.0)
    entry.accept()
    assert (ledger.received, ledger.cur_load, ledger.in_flight) == (1, 5.0, 1)
    refused = ledger.open()
    refused.set_outcome(Outcome.REJECTED)
    refused.accept()
    assert (ledger.received, ledger.cur_load, ledger.in_flight) == (1, 5.0, 1)


async def test_emptied_waits_for_the_last_request() -> None:
    ledger = Ledger(ManualClock())
    await ledger.emptied()
    entries = [accepted(ledger), accepted(ledger)]
    for _ in range(2):
        waiting = asyncio.ensure_future(ledger.emptied())
        for entry in entries:
            await run_event_loop_turns()
            assert not waiting.done()
            entry.set_outcome(Outcome.SERVED)
        await run_event_loop_turns()
        assert waiting.done()
        entries = [accepted(ledger)]  # it can be emptied again
