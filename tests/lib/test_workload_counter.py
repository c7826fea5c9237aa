"""The workload is a finite number, whatever `count_workload` returns or raises."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.errors import Invalid
from lib.metrics import DEFAULT_WORKLOAD, WorkloadCap, WorkloadCounter
from lib.runtime.figures import more_than


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


def raises(error: Exception) -> Callable[[], float]:
    def count() -> float:
        raise error

    return count


RAISED_AT = f"test_workload_counter.py:{cast(Any, raises).__code__.co_firstlineno + 2}"


@pytest.mark.parametrize(
    ("count", "problem"),
    [
        (lambda: math.nan, "returned nan, not a finite number of 0 or more"),
        (lambda: math.inf, "returned inf, not a finite number of 0 or more"),
        (lambda: True, "returned bool, not a finite number of 0 or more"),
        (lambda: -0.5, "returned a negative number, not a finite number of 0 or more"),
        (lambda: -12345, "returned a negative number, not a finite number of 0 or more"),
        (lambda: "a secret", "returned str, not a finite number of 0 or more"),
        (lambda: {"prompt": "a secret"}, "returned dict, not a finite number of 0 or more"),
        (raises(ValueError("a secret")), f"raised ValueError (at {RAISED_AT})"),
        (raises(KeyError("a secret")), f"raised KeyError (at {RAISED_AT})"),
    ],
)
def test_a_wrong_result_is_logged_once_for_each_handler_by_its_type(
    count: Callable[[], Any], problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for counter in (WorkloadCounter("One"), WorkloadCounter("Two")):
            for _ in range(3):
                counter.count(Payload(count))
    messages = [f"{name}: count_workload {problem}: counted as 100" for name in ("One", "Two")]
    assert [(r.getMessage(), r.exc_info) for r in caplog.records] == [(m, None) for m in messages]


FINITE = st.floats(0, 1e300)


@given(FINITE, FINITE)
def test_more_than_max_workload_is_refused(workload: float, limit: float) -> None:
    counter = WorkloadCounter("Handler", limit, WorkloadCap())
    if workload <= limit:
        assert counter.count(Payload(lambda: workload)) == workload
        return
    with pytest.raises(Invalid) as raised:
        counter.count(Payload(lambda: workload))
    assert raised.value.fields == {
        "payload": f"its workload is {more_than(workload, limit)}, the most that is accepted"
    }


@pytest.mark.parametrize(
    ("samples", "max_perf", "limit"),
    [
        ([], 0.0, 100_000.0),
        ([], 100.0, 360_000.0),
        ([2.0], 0.0, 2000.0),
        ([2.0, 3.0, 1.0], 0.0, 3000.0),
        ([2.0], 1.0, 3600.0),
        ([0.0], 0.0, 0.0),
        ([1e300, 2e307], 1.0, math.inf),
    ],
)
def test_the_cap_is_the_larger_of_1000_samples_and_an_hour(
    samples: list[float], max_perf: float, limit: float
) -> None:
    cap = WorkloadCap()
    cap.note_max_perf(max_perf)
    for sample in samples:
        cap.note_sample(sample)
    assert cap.limit == limit
    counter = WorkloadCounter("Handler", cap=cap)
    for workload in (limit / 2, limit):
        if workload < math.inf:
            assert counter.count(Payload(lambda workload=workload: workload)) == workload
    assert counter.count(Payload(lambda: 1e300)) == min(limit, 1e300)


def test_before_the_benchmark_has_ended_only_its_payloads_count() -> None:
    cap = WorkloadCap()
    assert cap.limit == 100_000.0
    cap.note_sample(2.0)
    assert cap.limit == 2000.0


def test_a_capped_workload_is_logged_once_for_each_handler(caplog: pytest.LogCaptureFixture) -> None:
    counter = WorkloadCounter("Handler", cap=WorkloadCap())
    with caplog.at_level(logging.WARNING):
        counter.count(Payload(lambda: 1e5))  # the limit itself
        assert caplog.records == []
        for _ in range(3):
            counter.count(Payload(lambda: 1e9))
    assert [r.getMessage() for r in caplog.records] == [
        "Handler: a workload of 1e+09 counts as 100000, the most without a max_workload: set the handler's "
        "max_workload to refuse such requests, or to count them whole"
    ]


# The author's exceptions


class Request:
    """A payload whose workload is counted by an author's function."""

    def __init__(self, payload: dict[str, Any], calculator: Callable[[dict[str, Any]], Any]) -> None:
        self.steps = "many"
        self._payload = payload
        self._calculator = calculator

    def count_workload(self) -> Any:
        return self._calculator(self._payload)


@dataclass
class Typed:
    steps: Any

    def count_workload(self) -> float:
        return float(self.steps)


@pytest.mark.parametrize(
    ("payload", "kind", "fields"),
    [
        (Request({}, lambda p: p["n"]), "KeyError", "n"),
        (Request({"n": "a secret"}, lambda p: int(p["n"])), "ValueError", "n"),
        (Request({"n": "a secret"}, lambda p: p.get("n") / p.get("m", 1)), "TypeError", "n, m"),
        (Request({"n": [1]}, lambda p: math.sqrt(p.pop("n"))), "TypeError", "n"),
        (Typed("a secret"), "ValueError", "steps"),
        (Typed([1]), "TypeError", "steps"),
    ],
)
def test_the_field_that_was_read_is_named(
    payload: Any, kind: str, fields: str, caplog: pytest.LogCaptureFixture
) -> None:
    WorkloadCounter("/route").count(payload)
    (line,) = caplog.messages
    assert line.startswith(f"/route: count_workload raised {kind} (at test_workload_counter.py:")
    assert line.endswith(f", reading {fields}): counted as 100")


def test_the_authors_refusal_is_passed_on() -> None:
    class Refusal(Exception):
        pass

    counter = WorkloadCounter("/route", refusal=Refusal)
    with pytest.raises(Refusal):
        counter.count(Payload(raises(Refusal())))
