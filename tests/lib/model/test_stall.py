"""An answer is broken off when nothing has come on it for the limit, and never earlier."""

from __future__ import annotations

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from lib.model.stall import LOOKS, Stall, StallWatch
from tests.manual_clock import ManualClock

LIMIT_S = 120.0
LATEST_S = LIMIT_S * (1 + 1 / LOOKS)


class NotingConnection:
    """A connection whose progress the test sets; it notes when its answer is broken off."""

    def __init__(self, clock: ManualClock) -> None:
        self.progress: object = None
        self.broken_s: list[float] = []
        self.reason = ""
        self._clock = clock

    def stall(self, error: Stall) -> None:
        self.progress = None
        self.broken_s.append(self._clock.monotonic())
        self.reason = str(error)


def watched(clock: ManualClock, limit_s: float | None = LIMIT_S) -> tuple[StallWatch, NotingConnection]:
    watch, connection = StallWatch(clock, limit_s), NotingConnection(clock)
    watch.add(connection)
    return watch, connection


def test_silence_is_broken_off_once_with_the_reason_in_words() -> None:
    clock = ManualClock()
    _, connection = watched(clock)
    connection.progress = 1
    clock.advance(LATEST_S)
    assert len(connection.broken_s) == 1
    assert connection.reason == "nothing came for 120 s (MODEL_STALL_TIMEOUT_S)"
    clock.advance(10 * LIMIT_S)
    assert len(connection.broken_s) == 1


# What is done after each number of seconds: "more" comes, as "much" comes as the reader takes for now, or the
# next is "awaited".
STEPS = st.lists(st.tuples(st.floats(0.0, 70.0), st.sampled_from(["more", "much", "awaited"])), max_size=40)


@given(steps=STEPS)
def test_only_the_time_in_which_more_is_awaited_counts(steps: list[tuple[float, str]]) -> None:
    clock = ManualClock()
    _, connection = watched(clock)
    parts, is_awaited, silent_since_s = 1, True, clock.monotonic()
    connection.progress = parts
    for delay_s, what in steps:
        clock.advance(delay_s)
        if connection.broken_s:
            break
        assert not is_awaited or clock.monotonic() - silent_since_s <= LATEST_S
        if what != "awaited":
            parts += 1
        if what != "awaited" or not is_awaited:
            silent_since_s = clock.monotonic()
        is_awaited = what != "much" and (is_awaited or what == "awaited")
        connection.progress = parts if is_awaited else None
    if connection.broken_s:
        event("broken off")
        # A pause of the reader between two looks is not seen: it is shorter than the time between them.
        assert connection.broken_s[0] - silent_since_s >= LIMIT_S - LIMIT_S / LOOKS


@pytest.mark.parametrize("limit_s", [None, LIMIT_S])
def test_without_a_connection_or_a_limit_no_timer_runs(limit_s: float | None) -> None:
    clock = ManualClock()
    watch, first = watched(clock, limit_s)
    second = NotingConnection(clock)
    watch.add(second)
    assert clock.pending == (0 if limit_s is None else 1)
    clock.advance(LIMIT_S)
    watch.remove(first)
    assert clock.pending == (0 if limit_s is None else 1)
    watch.remove(second)
    watch.remove(second)
    assert clock.pending == 0


def test_connections_that_were_removed_are_left_alone() -> None:
    clock = ManualClock()
    watch, connection = watched(clock)
    connection.progress = 1
    clock.advance(LIMIT_S / 2)
    watch.remove(connection)
    watch.add(other := NotingConnection(clock))
    clock.advance(2 * LIMIT_S)
    assert connection.broken_s == other.broken_s == []


def test_a_worker_that_was_held_up_takes_no_answer_for_stalled() -> None:
    clock = ManualClock()
    _, connection = watched(clock)
    connection.progress = 1
    clock.advance(LIMIT_S / LOOKS)
    clock.jump(10 * LIMIT_S)
    clock.advance(0.0)  # the timer is late; what has arrived meanwhile is read after it
    connection.progress = 2
    clock.advance(LIMIT_S)
    assert connection.broken_s == []
