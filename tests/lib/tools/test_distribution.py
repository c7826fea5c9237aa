from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.tools.distribution import GROWTH, MAX_ERROR, PERCENTILES, SMALLEST, Distribution

values = st.lists(st.floats(SMALLEST, 1e6), min_size=1, max_size=60)


def distribution_of(numbers: list[float], exact: int = 10_000) -> Distribution:
    distribution = Distribution(exact)
    distribution.update(numbers)
    return distribution


def nearest_rank(numbers: list[float], percent: float) -> float:
    return sorted(numbers)[max(1, math.ceil(percent / 100 * len(numbers))) - 1]


def test_percentiles_are_values_that_occurred() -> None:
    hundred = distribution_of([float(n) for n in range(100, 0, -1)])

    assert hundred.summary() == {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "max": 100.0}
    assert set(distribution_of([7.0]).summary().values()) == {7.0}
    assert (hundred.mean, hundred.error) == (50.5, 0.0)


def test_an_empty_distribution_has_no_percentiles() -> None:
    empty = Distribution()

    assert (empty.summary(), empty.cumulative(), empty.mean, empty.percentile(50)) == ({}, [], 0.0, 0.0)


@given(values)
def test_percentiles_of_few_values_are_exact(numbers: list[float]) -> None:
    for percent in (0, *PERCENTILES, 100):
        assert distribution_of(numbers).percentile(percent) == nearest_rank(numbers, percent)


@given(values, st.integers(0, 5))
def test_percentiles_of_a_histogram_are_within_its_error(numbers: list[float], exact: int) -> None:
    distribution = distribution_of(numbers, exact)
    error = distribution.error

    assert error == (MAX_ERROR if len(numbers) > exact else 0.0)
    for percent in (0, *PERCENTILES, 100):
        right = nearest_rank(numbers, percent)
        assert abs(distribution.percentile(percent) - right) <= right * (error + 1e-9)
    assert distribution.summary()["max"] == max(numbers)
    assert math.isclose(distribution.mean, sum(numbers) / len(numbers))


@given(values, values, st.integers(0, 8) | st.just(70), st.integers(0, 8) | st.just(70))
def test_a_merged_distribution_has_the_values_of_both(
    first: list[float], second: list[float], exact: int, other_exact: int
) -> None:
    merged = distribution_of(first, exact)
    merged.merge(distribution_of(second, other_exact))
    both = [*first, *second]

    assert (merged.count, merged.maximum) == (len(both), max(both))
    for percent in PERCENTILES:
        right = nearest_rank(both, percent)
        assert abs(merged.percentile(percent) - right) <= right * (MAX_ERROR + 1e-9)


@pytest.mark.parametrize("exact", [0, 100])
def test_the_cumulative_distribution_rises_to_1(exact: int) -> None:
    cumulative = distribution_of([3.0, 1.0, 2.0, 2.0], exact).cumulative()

    assert [fraction for _, fraction in cumulative] in ([0.25, 0.75, 1.0], [0.25, 0.5, 0.75, 1.0])
    assert [value for value, _ in cumulative] == sorted(value for value, _ in cumulative)


def test_memory_depends_on_the_range_of_values_and_not_on_their_count() -> None:
    many = distribution_of([SMALLEST * GROWTH ** (n / 10) for n in range(20_000)] * 2, exact=100)

    assert many.count == 40_000
    assert len(many.cumulative()) <= 2_001


def test_values_below_the_smallest_bucket_count_as_the_smallest() -> None:
    assert distribution_of([0.0, 1e-12, 1.0], exact=0).percentile(50) <= SMALLEST * GROWTH
