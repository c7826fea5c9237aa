"""The replay window, by examples and by properties (docs/protocol.md, "Signature")."""

from __future__ import annotations

from operator import add

from hypothesis import given
from hypothesis import strategies as st

from lib.access.signatures import WINDOW, ReplayWindow

FIRST = st.integers(-300, 300) | st.sampled_from([-(2**62), 2**62])
# From the highest reqnum so far: a few steps, about the size of the window or of two, or very far.
DISTANCES = st.one_of(
    st.integers(-3, 3),
    st.builds(add, st.sampled_from([-WINDOW, WINDOW, 2 * WINDOW]), st.integers(-2, 2)),
    st.integers(-3 * WINDOW, 3 * WINDOW),
    st.sampled_from([-(2**40), 2**40]),
)


def test_a_message_is_accepted_once() -> None:
    window = ReplayWindow()
    assert window.accept(7, b"a")
    assert not window.accept(7, b"a")


def test_two_messages_with_one_reqnum_are_both_accepted() -> None:
    window = ReplayWindow()
    assert window.accept(7, b"a")
    assert window.accept(7, b"b")
    assert not window.accept(7, b"b")


def test_a_hundred_behind_is_accepted_and_more_is_not() -> None:
    window = ReplayWindow()
    assert window.accept(1000, b"a")
    assert window.accept(900, b"a")
    assert not window.accept(899, b"a")
    assert window.accept(1001, b"a")
    assert not window.accept(900, b"b")


def test_a_refused_message_does_not_move_the_window() -> None:
    window = ReplayWindow()
    assert window.accept(1000, b"a")
    assert not window.accept(1000, b"a")
    assert not window.accept(5, b"a")
    assert window.accept(900, b"a")


@given(FIRST, st.lists(st.tuples(DISTANCES, st.sampled_from([b"a", b"b"])), max_size=40))
def test_any_message_is_accepted_once_unless_far_behind(first: int, steps: list[tuple[int, bytes]]) -> None:
    window, accepted, highest = ReplayWindow(), list[tuple[int, bytes]](), first
    for distance, body in [(0, b"a"), *steps]:
        message = (highest + distance, body)
        is_new = distance >= -WINDOW and message not in accepted
        assert window.accept(*message) is is_new
        if is_new:
            accepted.append(message)
            highest = max(highest, message[0])
    assert not any(window.accept(*message) for message in accepted)


@given(FIRST, st.lists(st.tuples(DISTANCES, st.integers(1, 2 * WINDOW)), max_size=8))
def test_it_remembers_no_reqnum_outside_the_window(first: int, runs: list[tuple[int, int]]) -> None:
    window, accepted, highest = ReplayWindow(), {first}, first
    assert window.accept(first, b"a")
    for distance, count in runs:
        for reqnum in range(highest + distance, highest + distance + count):
            if window.accept(reqnum, b"a"):
                accepted.add(reqnum)
                highest = max(highest, reqnum)
        assert len(window) == sum(reqnum >= highest - WINDOW for reqnum in accepted)
