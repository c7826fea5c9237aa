"""The intervals between lines about one wait."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lib.runtime.intervals import FIRST_INTERVAL_S, LAST_INTERVAL_S, interval_s


@given(st.floats(0, 1e7), st.floats(0, 1e7))
def test_they_grow_within_their_limits(waited_s: float, more_s: float) -> None:
    assert FIRST_INTERVAL_S <= interval_s(waited_s) <= interval_s(waited_s + more_s) <= LAST_INTERVAL_S


def test_they_are_30_s_for_two_minutes_and_an_hour_at_last() -> None:
    assert [interval_s(s) for s in (0, 119, 240, 14400, 1e6)] == [30, 30, 60, 3600, 3600]
