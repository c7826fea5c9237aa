"""A deployment as a worker: a route for each function, the deployment's contexts as the worker's lifecycle.

Owns the checks of a deployment, so that what can't work is reported before anything starts. How the
deployment is found by its name is in lib/tools/deployment_target.py.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from lib.backend import Backend
from lib.declare.handler_config import BenchmarkConfig
from lib.deployment.contexts import contexts_entered
from lib.deployment.deployed_handler import DeployedHandler
from lib.deployment.remote_call import CallFormat
from lib.deployment.sdk import Deployment, Json, RegisteredFunction, Sdk
from lib.errors import SettingsError, result_or_error
from lib.fields.callables import is_async

# As many sessions as a declared worker may have.
MAX_SESSIONS = 10


def worker_of(deployment: Deployment, sdk: Sdk) -> tuple[Backend, list[web.RouteDef]]:
    """Make the backend and the routes that serve `deployment`.

    Raises `SettingsError` with a line for everything that is wrong.
    """
    if not deployment.remote_funcs:
        raise SettingsError(["the deployment has no functions: decorate one with its remote()"])
    built = [
        _Built("/".join(key), function, CallFormat(sdk, function, deployment.root_module or ""), sdk)
        for key, function in deployment.remote_funcs.items()
    ]
    problems = [f"function {each.name}: {problem}" for each in built for problem in each.problems()]
    measured = [each.name for each in built if each.is_measured]
    if len(measured) > 1:
        problems.append(f"functions {' and '.join(measured)} have a benchmark: keep one")
    if problems:
        raise SettingsError(problems)
    handlers = [each.handler() for each in built]
    backend = Backend(
        None,
        benchmark_handler=next((handler for handler in handlers if handler.make_sample), None),
        max_sessions=MAX_SESSIONS,
        lifecycle=partial(contexts_entered, deployment),
    )
    return backend, [web.post(handler.route, backend.create_handler(handler)) for handler in handlers]


@dataclass(frozen=True)
class _Built:
    """A registered function, and what is wrong with its registration."""

    name: str
    function: RegisteredFunction
    format: CallFormat
    sdk: Sdk

    @property
    def is_measured(self) -> bool:
        function = self.function
        return function.benchmark_dataset is not None or function.benchmark_generator is not None

    def handler(self) -> DeployedHandler:
        benchmark = self._benchmark()
        return DeployedHandler(
            route=f"/remote/{self.name}",
            function=self.function,
            format=self.format,
            make_sample=self._sampler(),
            allow_parallel_requests=self.function.allow_parallel_requests,
            max_queue_time=self.function.max_queue_time,
            **benchmark.options(benchmark.given),
        )

    def problems(self) -> Iterator[str]:
        options, known = vars(self.function), RegisteredFunction.__annotations__
        unknown = [name for name, value in options.items() if name not in known and value]
        if unknown:
            yield f"this worker doesn't know {', '.join(unknown)}"
        if any(
            test(self.function.func) for test in (inspect.isgeneratorfunction, inspect.isasyncgenfunction)
        ):
            yield "it is a generator, but a call has one result: return it"
        calculator = self.function.workload_calculator
        if calculator is not None and is_async(calculator):
            yield "workload_calculator is async: give a plain function"
        yield from (f"benchmark: {problem}" for problem in self._benchmark().problems())
        sampler = result_or_error(self._sampler)
        if isinstance(sampler, Exception):
            yield f"benchmark_dataset has a call that no client could send: {sampler}"

    def _benchmark(self) -> BenchmarkConfig:
        function = self.function
        benchmark = BenchmarkConfig(function.benchmark_dataset, function.benchmark_generator)
        if function.benchmark_runs != self.sdk.default_runs:  # which counts as not given
            benchmark.runs = function.benchmark_runs
        return benchmark

    def _sampler(self) -> Callable[[], Json] | None:
        """A function that makes the payloads of the benchmark, calls as a client sends them.

        Raises what `CallFormat.write_call` raises for the dataset.
        """
        dataset, generator = self.function.benchmark_dataset, self.function.benchmark_generator
        write = self.format.write_call
        if dataset:
            return partial(next, itertools.cycle([write(**item) for item in dataset]))
        return None if generator is None else lambda: write(**generator())
