"""The defaults of `EndpointHandler` that concern the handler itself: its problems and its lifetime."""

from __future__ import annotations

import asyncio
import math
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
from anyio.to_thread import current_default_thread_limiter
from anyio.to_thread import run_sync as in_thread

from tests.fakes.plain_handler import PlainHandler
from tests.guard import GUARD_S


def test_a_handler_with_default_fields_has_no_problems() -> None:
    assert PlainHandler().problems() == []
    assert PlainHandler(keepalive_s=0.1).problems() == PlainHandler(keepalive_s=0).problems() == []
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
        ({"keepalive_s": 0.001}, "keepalive_s is 0.001, less than 0.1 s: proxies wait for longer"),
        ({"idempotent": None}, "idempotent must be True or False, not None"),
        ({"on_disconnect": "stop"}, "on_disconnect must be one of 'cancel', 'finish', not 'stop'"),
    ],
)
def test_each_wrong_field_is_a_problem(fields: dict[str, Any], problem: str) -> None:
    assert PlainHandler(**fields).problems() == [problem]


def test_all_wrong_fields_are_reported() -> None:
    assert len(PlainHandler(max_concurrency=0, keepalive_s=math.nan).problems()) == 2


@dataclass
class ByDataclass(PlainHandler):
    benchmark_runs = 3
    max_queue_time = 5.0
    allow_parallel_requests = True
    idempotent = True


class ByClass(PlainHandler):
    benchmark_runs = 3
    max_queue_time = 5.0
    allow_parallel_requests = True
    idempotent = True


@dataclass
class ByOwnPostInit(ByClass):
    own: int = 0

    def __post_init__(self) -> None:
        pass


@pytest.mark.parametrize("handler_class", [ByDataclass, ByClass, ByOwnPostInit])
def test_a_class_attribute_is_the_default_of_a_field_that_is_not_given(
    handler_class: type[PlainHandler],
) -> None:
    names = ("benchmark_runs", "max_queue_time", "allow_parallel_requests", "idempotent", "benchmark_words")
    default, changed = handler_class(), handler_class(4, max_queue_time=6.0)
    base = {name: getattr(PlainHandler(), name) for name in names}
    given = handler_class(**base)
    assert [getattr(default, name) for name in names] == [3, 5.0, True, True, 100]
    assert [getattr(changed, name) for name in names] == [4, 6.0, True, True, 100]
    assert {name: getattr(given, name) for name in names} == base


class Properties(PlainHandler):
    """A handler from before these names were fields."""

    @property
    def concurrency(self) -> str:  # type: ignore[override] - as authors may have written it
        return "its own"

    @property
    def do_warmup_benchmark(self) -> int:  # type: ignore[override]
        return 0

    @property
    def has_benchmark(self) -> None:  # type: ignore[override]
        return None

    @property
    def extra(self) -> dict[str, int]:  # type: ignore[override]
        return {"seed": 1}

    @property
    def remote_function(self) -> str:  # type: ignore[override]
        return "its own"


class Methods(PlainHandler):
    def concurrency(self) -> int:  # type: ignore[override]
        return 7

    def do_warmup_benchmark(self) -> bool:  # type: ignore[override]
        return False

    @cached_property
    def has_benchmark(self) -> str:  # type: ignore[override]
        return "its own"

    def extra(self) -> dict[str, int]:  # type: ignore[override]
        return {"seed": 1}


class Attributes(PlainHandler):
    extra = {"seed": 1}  # type: ignore[assignment]  # noqa: RUF012 - as authors may have written it


@pytest.mark.parametrize("handler_class", [Properties, Methods, Attributes])
def test_names_that_a_handler_uses_for_itself_are_no_fields(handler_class: type[PlainHandler]) -> None:
    handler = handler_class(benchmark_runs=2)
    assert handler.problems() == []
    assert (handler.benchmark_concurrency, handler.benchmark_warmup, handler.benchmark_runs) == (
        None,
        True,
        2,
    )


class Computed(PlainHandler):
    """Computes its fields, which need no setter."""

    @property
    def max_queue_time(self) -> float:  # type: ignore[override]
        return 2.0

    @property
    def benchmark_concurrency(self) -> int:  # type: ignore[override]
        return 4

    @property
    def benchmark_warmup(self) -> bool:  # type: ignore[override]
        return False


def test_a_property_may_compute_a_field() -> None:
    handler = Computed()
    assert handler.problems() == []
    assert (handler.max_queue_time, handler.benchmark_concurrency, handler.benchmark_warmup) == (
        2.0,
        4,
        False,
    )


def test_a_misspelt_extra_is_a_problem() -> None:
    fields: dict[str, Any] = {"extra": "forbidden"}
    assert PlainHandler(**fields).problems() == ["extra must be one of 'ignore', 'forbid', not 'forbidden'"]


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
