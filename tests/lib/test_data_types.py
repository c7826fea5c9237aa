"""The defaults of `EndpointHandler` that concern the handler itself: its problems and its lifetime."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.fakes.plain_handler import PlainHandler


def test_a_handler_with_default_fields_has_no_problems() -> None:
    assert PlainHandler().problems() == []
    assert (
        PlainHandler(max_queue_time=0, keepalive_s=0.5, max_concurrency=1, benchmark_concurrency=1).problems()
        == []
    )


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"max_concurrency": 0}, "max_concurrency is 0, less than 1"),
        ({"benchmark_concurrency": -1}, "benchmark_concurrency is -1, less than 1"),
        ({"max_queue_time": math.inf}, "max_queue_time is inf, not a finite number of seconds ≥ 0"),
        ({"keepalive_s": -1.0}, "keepalive_s is -1.0, not a finite number of seconds ≥ 0"),
        ({"idempotent": None}, "idempotent must be True or False, not None"),
        ({"on_disconnect": "stop"}, "on_disconnect must be one of 'cancel', 'finish', not 'stop'"),
    ],
)
def test_each_wrong_field_is_a_problem(fields: dict[str, Any], problem: str) -> None:
    assert PlainHandler(**fields).problems() == [problem]


def test_all_wrong_fields_are_reported() -> None:
    assert len(PlainHandler(max_concurrency=0, keepalive_s=math.nan).problems()) == 2


async def test_the_default_lifetime_is_empty_and_can_be_entered_again() -> None:
    handler = PlainHandler()
    for _ in range(2):
        async with handler.running():
            pass
