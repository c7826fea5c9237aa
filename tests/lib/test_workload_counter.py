"""The workload is a finite number, whatever `count_workload` returns or raises."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from lib.metrics import DEFAULT_WORKLOAD, WorkloadCounter


@dataclass
class Payload:
    count: Callable[[], Any]

    def count_workload(self) -> Any:
        return self.count()


def counted(value: Any) -> float:
    return WorkloadCounter("Handler").count(Payload(lambda: value))


@pytest.mark.parametrize("value", [0, 0.0, 1, 2.5, 10**9, 1e300])
def test_a_finite_number_counts_as_it_is(value: float) -> None:
    workload = counted(value)
    assert workload == value
    assert type(workload) is float


@pytest.mark.parametrize(
    "value", [-1, -0.5, math.nan, math.inf, -math.inf, None, "12", True, [1], 10**400, 1j, object()]
)
def test_any_other_value_counts_as_the_default(value: Any) -> None:
    assert counted(value) == DEFAULT_WORKLOAD


def test_a_payload_that_raises_or_has_no_count_counts_as_the_default() -> None:
    def fail() -> float:
        raise ZeroDivisionError

    assert WorkloadCounter("Handler").count(Payload(fail)) == DEFAULT_WORKLOAD
    assert WorkloadCounter("Handler").count({"prompt": "hi"}) == DEFAULT_WORKLOAD


def test_a_wrong_value_is_logged_once_for_each_handler(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for counter in (WorkloadCounter("One"), WorkloadCounter("Two")):
            for _ in range(3):
                counter.count(Payload(lambda: math.nan))
    assert [r.getMessage() for r in caplog.records] == [
        "One: count_workload gave nan: counted as 100",
        "Two: count_workload gave nan: counted as 100",
    ]
