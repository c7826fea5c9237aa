"""Refused signatures are counted, in all and of the last minute."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lib.access.refusals import RECENT_S, Refusals
from tests.manual_clock import ManualClock

PAUSES_S = st.sampled_from([0.0, 0.25, 1.0, 2.0, RECENT_S - 1, RECENT_S, RECENT_S + 1])


@given(st.lists(PAUSES_S, min_size=1, max_size=20) | st.just([0.5] * 3 * RECENT_S))
def test_those_of_the_last_minute_are_counted(pauses_s: list[float]) -> None:
    clock = ManualClock()
    refusals, at_s = Refusals(clock), list[int]()
    for pause_s in pauses_s:
        clock.advance(pause_s)
        refusals.note()
        now_s = int(clock.monotonic())
        at_s.append(now_s)
        assert refusals.recent() == sum(now_s - s < RECENT_S for s in at_s)
    assert refusals.total == len(pauses_s)
    clock.advance(RECENT_S)
    assert refusals.recent() == 0
