"""The replay window, by examples and by properties (docs/protocol.md, "Signature")."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lib.access.signatures import WINDOW, ReplayWindow

MESSAGES = st.tuples(st.integers(-300, 300) | st.integers(-(2**63), 2**63 - 1), st.sampled_from([b"a", b"b"]))


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


@given(st.lists(MESSAGES, max_size=60))
def test_any_message_is_accepted_once_unless_far_behind(messages: list[tuple[int, bytes]]) -> None:
    window, accepted = ReplayWindow(), list[tuple[int, bytes]]()
    for message in messages:
        too_old = bool(accepted) and message[0] < max(n for n, _ in accepted) - WINDOW
        assert window.accept(*message) is (message not in accepted and not too_old)
        if message not in accepted and not too_old:
            accepted.append(message)


@given(st.integers(-(2**62), 2**62), st.lists(st.integers(1, 3), max_size=400))
def test_its_memory_is_limited(first: int, steps: list[int]) -> None:
    window, reqnum = ReplayWindow(), first
    for step in steps:
        assert window.accept(reqnum, b"a")
        reqnum += step
    assert len(window) <= WINDOW + 1
