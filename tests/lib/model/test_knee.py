"""The curve of throughput against concurrency: what to expect above, and what to hope for between."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.model.knee import Point, best_between, expected_above

BASE_S = st.floats(0.001, 1.0)
EACH_S = st.floats(0.0, 0.1)
CONCURRENCY = st.integers(1, 64)
FACTOR = st.floats(1.5, 8.0)


def straight(base_s: float, each_s: float, concurrency: float) -> Point:
    """A server whose time for a request grows by `each_s` for each other one."""
    return Point(concurrency, concurrency / (base_s + each_s * concurrency))


@given(BASE_S, EACH_S, CONCURRENCY, FACTOR, FACTOR)
def test_above_two_points_a_straight_line_is_followed(
    base_s: float, each_s: float, first: int, step: float, further: float
) -> None:
    points = [straight(base_s, each_s, concurrency) for concurrency in (first, first * step)]
    truth = straight(base_s, each_s, first * step * further)
    assert expected_above(points, truth.concurrency) == pytest.approx(truth.throughput, rel=1e-6)


@given(BASE_S, EACH_S, CONCURRENCY, FACTOR, FACTOR)
def test_between_points_of_a_straight_line_there_is_nothing_better(
    base_s: float, each_s: float, first: int, step: float, further: float
) -> None:
    below = [straight(base_s, each_s, concurrency) for concurrency in (first, first * step)]
    above = straight(base_s, each_s, first * step * further)
    hope = best_between(below, above)
    assert below[-1].concurrency < hope.concurrency < above.concurrency
    assert hope.throughput <= above.throughput * (1 + 1e-9)


@given(BASE_S, EACH_S, CONCURRENCY, FACTOR, FACTOR, st.floats(1.5, 20))
def test_past_a_knee_half_way_the_hope_is_close_to_the_best(
    base_s: float, each_s: float, first: int, step: float, further: float, slower: float
) -> None:
    low, high = first * step, first * step * further
    knee = (low * high) ** 0.5
    more_s = slower * (base_s + each_s * high)

    def server(concurrency: float) -> Point:
        part = max(0.0, (concurrency - knee) / (high - knee))
        time_s = base_s + each_s * concurrency + more_s * part * part
        return Point(concurrency, concurrency / time_s)

    hope = best_between([server(first), server(low)], server(high))
    best = max(server(low + (high - low) * part / 500).throughput for part in range(1, 500))
    assert hope.throughput == pytest.approx(best, rel=0.03)
    assert server(hope.concurrency).throughput == pytest.approx(hope.throughput, rel=1e-6)


def test_of_one_point_the_time_is_expected_not_to_grow() -> None:
    assert expected_above([Point(4, 100.0)], 16) == 400.0


def test_a_time_that_shrinks_is_noise() -> None:
    """The first may have waited for something that compiled."""
    assert expected_above([Point(1, 1.0), Point(4, 8.0)], 16) == 32.0
