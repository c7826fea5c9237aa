"""lib.http.deadlines: one timer for all items that have the same limit."""

from __future__ import annotations

from lib.http.deadlines import Deadlines
from tests.manual_clock import ManualClock


def deadlines(clock: ManualClock) -> tuple[Deadlines[str], list[tuple[str, float]]]:
    """Deadlines of ten seconds, and a list of what was due, with the time of each."""
    due: list[tuple[str, float]] = []
    return Deadlines(clock, 10.0, lambda item: due.append((item, clock.monotonic()))), due


async def test_items_are_due_in_their_order_each_at_its_time() -> None:
    clock = ManualClock(0.0)
    limits, due = deadlines(clock)
    limits.add("a")
    clock.advance(3.0)
    limits.add("b")
    limits.add("c")
    assert list(limits.items) == ["a", "b", "c"]
    clock.advance(6.9)
    assert due == []
    clock.advance(10.0)
    assert due == [("a", 10.0), ("b", 13.0), ("c", 13.0)]
    assert len(limits.items) == 0


async def test_adding_again_begins_the_limit_anew() -> None:
    clock = ManualClock(0.0)
    limits, due = deadlines(clock)
    limits.add("a")
    limits.add("b")
    clock.advance(9.0)
    limits.add("a")
    assert list(limits.items) == ["b", "a"]
    clock.advance(20.0)
    assert due == [("b", 10.0), ("a", 19.0)]


async def test_a_removed_item_is_not_due() -> None:
    clock = ManualClock(0.0)
    limits, due = deadlines(clock)
    for item in "abc":
        limits.add(item)
        clock.advance(1.0)
    limits.remove("a")
    limits.remove("c")
    limits.remove("never added")
    clock.advance(60.0)
    assert due == [("b", 11.0)]


async def test_there_is_one_timer_for_all() -> None:
    clock = ManualClock(0.0)
    limits, due = deadlines(clock)
    for number in range(100):
        limits.add(str(number))
        clock.advance(0.05)
        assert clock.pending == 1
    clock.advance(7.0)
    assert clock.pending == 1
    assert 0 < len(due) < 100
    clock.advance(60.0)
    assert (len(due), clock.pending) == (100, 0)


async def test_on_due_may_add_and_remove() -> None:
    clock = ManualClock(0.0)
    due: list[tuple[str, float]] = []

    def on_due(item: str) -> None:
        due.append((item, clock.monotonic()))
        limits.remove("removed")
        if len(due) < 4:
            limits.add(item)
        assert clock.pending <= 1

    limits = Deadlines[str](clock, 10.0, on_due)
    limits.add("a")
    limits.add("removed")
    clock.advance(5.0)
    limits.add("b")
    clock.advance(100.0)
    assert due == [("a", 10.0), ("b", 15.0), ("a", 20.0), ("b", 25.0), ("a", 30.0)]
    assert clock.pending == 0


async def test_nothing_is_due_after_close() -> None:
    clock = ManualClock(0.0)
    limits, due = deadlines(clock)
    limits.add("a")
    limits.close()
    assert (len(limits.items), clock.pending) == (0, 0)
    clock.advance(60.0)
    assert due == []
    limits.add("b")
    clock.advance(10.0)
    assert due == [("b", 70.0)]
