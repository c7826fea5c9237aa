"""Delays between retries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lib.runtime.backoff import Backoff

SECONDS = st.floats(0.001, 100)


@given(SECONDS, st.floats(1, 1000))
def test_delays_double_up_to_the_limit_less_at_most_a_half(first_s: float, factor: float) -> None:
    last_s = first_s * factor
    backoff = Backoff(first_s, last_s)
    for number in range(12):
        longest_s = min(first_s * 2**number, last_s)
        assert longest_s / 2 <= backoff.next_s() <= longest_s


def test_delays_differ_at_random() -> None:
    assert len({Backoff(1.0, 8.0).next_s() for _ in range(20)}) > 10
