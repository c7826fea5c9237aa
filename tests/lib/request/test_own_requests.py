"""Requests that author code counts by itself, in each form of call that workers use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.metrics import Ledger, Outcome
from lib.request.own_requests import OwnCall, OwnRequests, RequestMetrics

SERVED, ERRORED, CANCELLED, REJECTED = Outcome.SERVED, Outcome.ERRORED, Outcome.CANCELLED, Outcome.REJECTED
W = 100.0

Call = Callable[[OwnRequests], None]


def call(*args: Any, **names: Any) -> OwnCall:
    return OwnCall(args, names)


def start(*args: Any, **names: Any) -> Call:
    return lambda own: own.start(call(*args, **names))


def outcome(which: Outcome, *args: Any, **names: Any) -> Call:
    return lambda own: own.set_outcome(call(*args, **names), which)


def end(*args: Any, **names: Any) -> Call:
    return lambda own: own.end(call(*args, **names))


def counted(calls: Sequence[Call]) -> tuple[Ledger, dict[Outcome, int]]:
    ledger = Ledger()
    own = OwnRequests(ledger)
    for each in calls:
        each(own)
    return ledger, dict(ledger.outcomes)


A, B = RequestMetrics(0, 7, 10.0), RequestMetrics(0, 7, 10.0)


@pytest.mark.parametrize(
    ("calls", "outcomes"),
    [
        pytest.param(
            [
                *(start(W, 1), start(W, 2), outcome(SERVED, workload=W), end(W, 2)),
                *(outcome(SERVED, workload=W), end(W, 1)),
            ],
            {SERVED: 2},
            id="outcome by workload, end by reqnum",
        ),
        pytest.param(
            [start(W), start(W), outcome(SERVED, W), end(W), outcome(SERVED, W), end(W)],
            {SERVED: 2},
            id="by workload",
        ),
        pytest.param(
            [start(W, reqnum=1), outcome(REJECTED, workload=W), outcome(SERVED, workload=W), end(W, 1)],
            {SERVED: 1, REJECTED: 1},
            id="another is rejected",
        ),
        pytest.param(
            [start(A), start(B), outcome(SERVED, A), end(A), outcome(ERRORED, B), end(B)],
            {SERVED: 1, ERRORED: 1},
            id="two objects of one reqnum",
        ),
        pytest.param(
            [start(A), outcome(REJECTED, B), outcome(SERVED, A), end(A)],
            {SERVED: 1, REJECTED: 1},
            id="another object of that reqnum is rejected",
        ),
        pytest.param(
            [start(W, 1), outcome(SERVED, W, 1), start(W, 1), outcome(ERRORED, W, 1), end(W, 1)],
            {SERVED: 1, ERRORED: 1},
            id="without an end, a reqnum comes again",
        ),
        pytest.param(
            [start(W, 1), start(W, 1), outcome(SERVED, W, 1), outcome(ERRORED, W, 1), end(W, 1)],
            {SERVED: 1},
            id="each call twice",
        ),
        pytest.param(
            [start(A), outcome(SERVED, 10.0, 7), end(workload=10.0)], {SERVED: 1}, id="object, then numbers"
        ),
        pytest.param([start(10.0, 7), outcome(SERVED, A), end(A)], {SERVED: 1}, id="numbers, then object"),
        pytest.param(
            [
                *(start(W, 1), start(W, 2), outcome(SERVED, W), outcome(ERRORED, W, 1)),
                *(end(W, 1), end(W, 2)),
            ],
            {SERVED: 1, ERRORED: 1},
            id="an outcome by reqnum takes the place of one by workload",
        ),
        pytest.param([outcome(SERVED, W), outcome(ERRORED, W, 1), end(W), end(A)], {}, id="unknown"),
    ],
)
def test_each_request_has_its_outcome(calls: Sequence[Call], outcomes: dict[Outcome, int]) -> None:
    ledger, seen = counted(calls)
    assert (seen, ledger.unfinished, ledger.cur_load) == (outcomes, 0, 0.0)


def by_object(n: int) -> tuple[OwnCall, OwnCall, OwnCall]:
    request = RequestMetrics(0, 7, W)
    return call(request), call(request=request), call(request)


def by_numbers(n: int) -> tuple[OwnCall, OwnCall, OwnCall]:
    return call(W, n), call(workload=W, reqnum=n), call(W, n)


def by_workload_within(n: int) -> tuple[OwnCall, OwnCall, OwnCall]:
    return call(workload=W, reqnum=n), call(workload=W), call(W, n)


def by_workload(n: int) -> tuple[OwnCall, OwnCall, OwnCall]:
    return call(W), call(workload=W), call(W)


def calls_of(
    own: OwnRequests, form: tuple[OwnCall, OwnCall, OwnCall], which: Outcome | None
) -> list[Callable[[], None]]:
    """The calls for a request that ends with the outcome `which`, or without one."""
    first, middle, last = form
    outcomes = [] if which is None else [partial(own.set_outcome, middle, which)]
    return [partial(own.start, first), *outcomes, partial(own.end, last)]


FORMS = [by_object, by_numbers, by_workload_within, by_workload]
ENDS = st.lists(st.sampled_from([SERVED, ERRORED, CANCELLED, None]), min_size=1, max_size=6)


@pytest.mark.parametrize("form", FORMS)
@given(ends=ENDS, data=st.data())
def test_however_requests_overlap_each_has_one_outcome(
    form: Callable[[int], tuple[OwnCall, OwnCall, OwnCall]], ends: list[Outcome | None], data: st.DataObject
) -> None:
    ledger = Ledger()
    own = OwnRequests(ledger)
    left = {n: calls_of(own, form(n), which) for n, which in enumerate(ends)}
    while left:
        n = data.draw(st.sampled_from(sorted(left)))
        left[n].pop(0)()
        if not left[n]:
            del left[n]
    assert ledger.outcomes == Counter(which or CANCELLED for which in ends)
    assert (ledger.received, ledger.unfinished, ledger.cur_load) == (len(ends), 0, 0.0)
