from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.runtime.figures import more_than


@pytest.mark.parametrize(
    ("value", "limit", "text"),
    [
        (2.5, 2.0, "2.5 s, more than 2 s"),
        (2.04, 2.0, "2.04 s, more than 2 s"),
        (1342.77, 30, "1342.8 s, more than 30 s"),
        (1_000_000.4, 1_000_000, "1000000.4 s, more than 1000000 s"),
        (100, 99.96, "100 s, more than 99.96 s"),
        (0.00011, 0.0001, "0.00011 s, more than 0.0001 s"),
        (1e300, 30.0, "1e+300 s, more than 30.0 s"),
    ],
)
def test_as_many_decimals_are_shown_as_are_needed(value: float, limit: float, text: str) -> None:
    assert more_than(value, limit, " s") == text


@given(st.floats(0, 1e308), st.floats(0, 1e308))
def test_the_first_figure_always_reads_as_more(one: float, other: float) -> None:
    if one != other:
        first, second = more_than(max(one, other), min(one, other)).split(", more than ")
        assert float(first) > float(second)
