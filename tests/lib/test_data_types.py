"""The defaults of `EndpointHandler` that concern the handler itself: its problems and its lifetime."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import Any

import pytest
from anyio.to_thread import current_default_thread_limiter
from anyio.to_thread import run_sync as in_thread

from tests.fakes.plain_handler import PlainHandler
from tests.guard import GUARD_S


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


async def test_plain_remote_functions_take_no_threads_of_others() -> None:
    released, running = threading.Event(), threading.Barrier(3)

    def job() -> str:
        running.wait(GUARD_S)
        released.wait(GUARD_S)
        return "done"

    handler = PlainHandler(remote_function=job)
    current_default_thread_limiter().total_tokens = 1
    calls = [asyncio.create_task(handler.call_remote_dispatch_function({})) for _ in range(2)]
    await in_thread(running.wait, GUARD_S)
    released.set()
    assert await asyncio.gather(*calls) == ["done", "done"]
