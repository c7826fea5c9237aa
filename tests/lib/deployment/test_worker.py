"""What a deployment becomes, and what is wrong with one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import make_dataclass
from typing import Any

import pytest

from lib.deployment.deployed_handler import DeployedHandler
from lib.deployment.worker import worker_of
from lib.errors import SettingsError
from tests.lib.deployment.registered import SDK, deployment_with


async def function(n: int, text: str = "a") -> None: ...


async def another(n: int) -> None: ...


async def streams(n: int) -> AsyncIterator[int]:
    yield n


def plain_stream(n: int) -> Iterator[int]:
    yield n


async def counts(n: int) -> float:
    return n


def length(n: int, text: str) -> int:
    return n + len(text)


def handler_of(deployment: Any) -> DeployedHandler:
    backend, _ = worker_of(deployment, SDK)
    (handler,) = backend.handlers
    assert isinstance(handler, DeployedHandler)
    return handler


def problems_of(deployment: Any) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as refused:
        worker_of(deployment, SDK)
    return refused.value.problems


def test_each_function_has_a_route() -> None:
    deployment = deployment_with(function)
    deployment.remote(another)
    backend, routes = worker_of(deployment, SDK)
    assert [(route.method, route.path) for route in routes] == [
        ("POST", "/remote/function"),
        ("POST", "/remote/another"),
    ]
    assert backend.benchmark_handler is None
    assert backend.config().problems() == []


def test_options_reach_the_handler() -> None:
    options: dict[str, Any] = {
        "allow_parallel_requests": True,
        "max_queue_time": 7.5,
        "workload_calculator": length,
    }
    handler = handler_of(deployment_with(function, **options))
    assert (handler.allow_parallel_requests, handler.max_queue_time) == (True, 7.5)
    assert handler.read_payload({"payload": {"args": [3]}}).count_workload() == 4.0


def test_the_whole_dataset_is_used_in_turn() -> None:
    handler = handler_of(deployment_with(function, benchmark_dataset=[{"n": 1}, {"n": 2, "text": "b"}]))
    calls = [handler.make_benchmark_payload() for _ in range(3)]
    assert [call.args for call in calls] == [(1, "a"), (2, "b"), (1, "a")]


def test_a_generator_makes_each_payload() -> None:
    numbers = iter((5, 6))
    handler = handler_of(deployment_with(function, benchmark_generator=lambda: {"n": next(numbers)}))
    assert [handler.make_benchmark_payload().args[0] for _ in range(2)] == [5, 6]


@pytest.mark.parametrize(
    ("options", "runs"), [({}, 8), ({"benchmark_runs": 10}, 8), ({"benchmark_runs": 3}, 3)]
)
def test_the_sdks_default_of_the_runs_counts_as_not_given(options: dict[str, Any], runs: int) -> None:
    handler = handler_of(deployment_with(function, benchmark_dataset=[{"n": 1}], **options))
    assert SDK.default_runs == 10
    assert handler.benchmark_runs == runs  # 8 is that of a handler for which none are given


@pytest.mark.parametrize(
    ("registered", "options", "said"),
    [
        (streams, {}, "it is a generator, but a call has one result: return it"),
        (plain_stream, {}, "it is a generator, but a call has one result: return it"),
        (function, {"workload_calculator": counts}, "workload_calculator is async: give a plain function"),
        (function, {"benchmark_dataset": []}, "benchmark: dataset is empty"),
        (function, {"benchmark_generator": counts}, "benchmark: generator is async: give a plain function"),
        (function, {"benchmark_dataset": [{"n": 1}], "benchmark_runs": 0}, "benchmark: runs"),
        (
            function,
            {"benchmark_dataset": [{"m": 1}]},
            "benchmark_dataset has a call that no client could send: missing a required argument: 'n'",
        ),
        (
            function,
            {"benchmark_dataset": [{"n": {1}}]},
            "benchmark_dataset has a call that no client could send: Object of type",
        ),
        (
            function,
            {"benchmark_dataset": [{"n": 1}], "benchmark_generator": lambda: {"n": 1}},
            "benchmark: dataset and generator are both given",
        ),
    ],
)
def test_what_cannot_work_is_refused(registered: Any, options: dict[str, Any], said: str) -> None:
    problems = problems_of(deployment_with(registered, **options))
    name = registered.__name__
    assert any(problem.startswith(f"function {name}: {said}") for problem in problems), problems


def test_options_of_a_newer_sdk_are_named() -> None:
    deployment = deployment_with(function)
    ((key, known),) = deployment.remote_funcs.items()
    names: list[str] = [*vars(known), "streaming", "unused"]
    newer = make_dataclass("Newer", names)
    deployment.remote_funcs[key] = newer(**vars(known), streaming=True, unused=None)
    assert problems_of(deployment) == ("function function: this worker doesn't know streaming",)


def test_two_benchmarks_are_refused() -> None:
    deployment = deployment_with(function, benchmark_dataset=[{"n": 1}])
    deployment.remote(another, benchmark_dataset=[{"n": 1}])
    assert problems_of(deployment) == ("functions function and another have a benchmark: keep one",)
