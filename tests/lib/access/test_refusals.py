"""Refused signatures are counted, in all and of the last minute."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lib.access.refusals import RECENT_S, Refusals
from tests.manual_clock import ManualClock


@given(st.lists(st.integers(0, 30), max_size=80))
def test_those_of_the_last_minute_are_counted(pauses_s: list[int]) -> None:
    clock = ManualClock()
    refusals, at_s = Refusals(clock), list[float]()
    for pause_s in pauses_s:
        clock.advance(pause_s)
        refusals.note()
        at_s.append(clock.monotonic())
        assert refusals.recent() == sum(clock.monotonic() - s < RECENT_S for s in at_s)
    assert refusals.total == len(pauses_s)
    clock.advance(RECENT_S)
    assert refusals.recent() == 0
