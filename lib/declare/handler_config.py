"""The declaration of a handler and its benchmark (docs/writing-a-worker.md, "The declared way").

Owns the fields and defaults of `HandlerConfig` and `BenchmarkConfig`, and which of them can't be combined.
How arguments become fields is in config_fields.py. What is wrong with a handler by itself is found in
declared_handler.py. The declaration around the handlers is in worker_config.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import field
from functools import partial
from typing import Any, Literal

from lib.data_types import EndpointHandler, OnDisconnect, has_own_member
from lib.declare.config_fields import DeclaredConfig
from lib.declare.declared_handler import (
    AnsweringHandler,
    DeclaredHandler,
    RequestParser,
    ResponseGenerator,
    Samples,
    WorkloadCalculator,
    defines_for_test,
    payload_from,
)
from lib.declare.dispatch import attach_dispatch
from lib.declare.functions import RemoteFunction
from lib.fields.callables import call_problems
from lib.fields.limits import below_minimum
from lib.fields.unknown_fields import Extra

Method = Literal["POST", "GET", "PUT", "PATCH", "DELETE"]

# Fields that a handler class replaces.
_REPLACED_BY_CLASS = (
    *("payload_class", "request_parser", "response_generator", "workload_calculator"),
    *("is_remote_dispatch", "remote_function"),
)
# Fields that every handler has under the same name.
_HANDLER_FIELDS = (
    *(
        "allow_parallel_requests",
        "max_queue_time",
        "max_concurrency",
        "max_workload",
        "benchmark_concurrency",
    ),
    *("on_disconnect", "keepalive_s", "idempotent", "extra"),
)
# A handler's fields for its benchmark, with their names in `BenchmarkConfig`.
_BENCHMARK_FIELDS = {
    "benchmark_runs": "runs",
    "benchmark_concurrency": "concurrency",
    "benchmark_warmup": "do_warmup",
}
# Older names of a handler's fields, which follow them.
_OLDER_FIELDS = {"concurrency": "benchmark_concurrency", "do_warmup_benchmark": "benchmark_warmup"}
# Characters that end a route's path or make it a pattern. A `{name}` is allowed: the path on the model server
# has it too.
_NOT_IN_PATH = re.compile(r"[{}?#\s]")
_PATH_PARAMETER = re.compile(r"\{[A-Za-z_]\w*\}")


class BenchmarkConfig(DeclaredConfig):
    """The benchmark's requests: payloads of `dataset` in turn, or what `generator` returns for each request.

    After a warm-up request, if `do_warmup`, `concurrency` requests are kept in flight until at least `runs`
    times as many have ended. Without these two, the benchmark finds the best number in flight: the defaults
    count as not given. With neither dataset nor generator, payloads come from `for_test` of the payload
    class, or from the handler class.
    """

    dataset: list[dict[str, Any]] | None = None
    generator: Callable[[], dict[str, Any]] | None = None
    runs: int = 8
    concurrency: int | None = 10
    do_warmup: bool = True

    def problems(self) -> list[str]:
        problems = super().problems()
        problems += below_minimum(self, 1, *filter(self.has, ("runs", "concurrency")))
        if self.dataset is not None and self.generator is not None:
            problems.append("dataset and generator are both given")
        if self.has("dataset") and not self.dataset:
            problems.append("dataset is empty")
        return [*problems, *call_problems("generator", self.valid("generator"), 0)]

    def samples(self) -> Samples | None:
        """The payloads of the dataset or the generator; None with neither."""
        return Samples(self.dataset, self.generator) if self.dataset or self.generator else None

    def options(self, names: Collection[str]) -> dict[str, Any]:
        """The handler fields set by this config, limited to `names`."""
        return {key: getattr(self, name) for key, name in _BENCHMARK_FIELDS.items() if name in names}


class HandlerConfig(DeclaredConfig):
    """A route of the worker: the same path on the model server, or a `remote_function` in its place.

    `max_queue_time` is in seconds, None for no limit; `keepalive_s` is in seconds between two newlines, None
    for none. `idempotent`: a request may be sent to the model server a second time if its connection broke
    before any answer. A request whose workload is more than `max_workload` is refused; with None, what counts
    is limited (`EndpointHandler`). A payload's unknown fields are ignored, or refused with `extra="forbid"`.
    With `handler_class`, only the fields that are given override the class's own. Without a `payload_class`,
    the class of a `remote_function`'s parameter is it if it is made of uploads, as `Upload` is.

    A route that ends in `/{path}` is a wildcard, for every path below it. `methods` has several methods, in
    place of the one in `method`.
    """

    route: str
    healthcheck: str | None = None
    allow_parallel_requests: bool = False
    max_queue_time: float | None = 30.0
    benchmark_config: BenchmarkConfig | None = None
    handler_class: type[EndpointHandler[Any]] | None = None
    payload_class: type[Any] | None = None
    request_parser: RequestParser | None = None
    response_generator: ResponseGenerator | None = None
    workload_calculator: WorkloadCalculator | None = None
    is_remote_dispatch: bool = False
    remote_function: Callable[..., Any] | None = None
    # Not after a `KW_ONLY`: on Python 3.10 the type hints of a class that has one can't be read.
    method: Method = field(default="POST", kw_only=True)
    methods: list[Method] | None = field(default=None, kw_only=True)
    max_concurrency: int | None = field(default=None, kw_only=True)
    max_workload: float | None = field(default=None, kw_only=True)
    benchmark_concurrency: int | None = field(default=None, kw_only=True)
    on_disconnect: OnDisconnect = field(default="cancel", kw_only=True)
    keepalive_s: float | None = field(default=None, kw_only=True)
    idempotent: bool = field(default=False, kw_only=True)
    extra: Extra = field(default="ignore", kw_only=True)

    def problems(self) -> list[str]:
        return [
            *super().problems(),
            *self._route_problems(),
            *self._method_problems(),
            *self._dispatch_problems(),
            *self._class_problems(),
            *self._benchmark_problems(),
        ]

    def build(self, benchmark: BenchmarkConfig | None) -> EndpointHandler[Any]:
        """Make the handler, with `benchmark` if it is the handler to benchmark.

        Fields of a wrong type have their defaults in it, and a benchmark with problems is left out: what is
        wrong with the handler itself can still be found. Raises what a handler class raises.
        """
        if benchmark is not None and benchmark.problems():
            benchmark = None
        if (handler_class := self.valid("handler_class")) is not None:
            return self._built_by_class(handler_class, benchmark)
        options = {name: self.valid(name) for name in _HANDLER_FIELDS}
        if benchmark is not None:
            of_benchmark = benchmark.options(benchmark.given)
            options |= {k: v for k, v in of_benchmark.items() if k not in self.given}
        generator, function = self.valid("response_generator"), self._function()
        handler_type = DeclaredHandler if generator is None else AnsweringHandler
        return handler_type(
            route=self.valid("route"),
            methods=self.all_methods,
            payload_class=self._payload_type(function),
            request_parser=self.valid("request_parser"),
            response_generator=generator,
            workload_calculator=self.valid("workload_calculator"),
            function=function,
            samples=benchmark.samples() if benchmark else None,
            **options,
        )

    @property
    def all_methods(self) -> tuple[Method, ...]:
        """The methods of the route, each once."""
        several: list[Method] | None = self.valid("methods")
        return tuple(dict.fromkeys(several or [self.valid("method")]))

    def makes_samples(self) -> bool:
        """Whether payloads for a benchmark come from the handler's or the payload's class."""
        return self.handler_class is not None or defines_for_test(self.payload_type())

    def payload_type(self) -> type[Any] | None:
        """The `payload_class` or, without one, the class of the function's parameter that takes uploads."""
        return self._payload_type(self._function())

    def _payload_type(self, function: RemoteFunction | None) -> type[Any] | None:
        if self.payload_class is not None or self.handler_class is not None or function is None:
            return self.valid("payload_class")
        return function.upload_class

    def _function(self) -> RemoteFunction | None:
        function = self.valid("remote_function")
        return RemoteFunction(function, self.valid("route")) if function else None

    def _built_by_class(
        self, handler_class: Callable[[], EndpointHandler[Any]], benchmark: BenchmarkConfig | None
    ) -> EndpointHandler[Any]:
        handler = handler_class()
        handler.adopt_older_fields()
        attach_dispatch(handler)
        options = benchmark.options(benchmark.given) if benchmark else {}
        options |= {name: self.valid(name) for name in _HANDLER_FIELDS if name in self.given}
        options |= {
            older: options[name]
            for older, name in _OLDER_FIELDS.items()
            if name in options and not has_own_member(handler, older)
        }
        samples = benchmark.samples() if benchmark else None
        if samples is not None:
            options["make_benchmark_payload"] = partial(
                payload_from, samples, handler, handler.make_benchmark_payload
            )
        for name, value in options.items():
            setattr(handler, name, value)
        return handler

    def _route_problems(self) -> Iterator[str]:
        if not self.has("route"):
            return
        if not self.route.startswith("/") or _NOT_IN_PATH.search(_PATH_PARAMETER.sub("", self.route)):
            yield (
                f"route {self.route!r} is not a path: it begins with '/', has parameters as {{name}}, and "
                "neither a query nor a space"
            )

    def _method_problems(self) -> Iterator[str]:
        if self.methods is not None and "method" in self.given:
            yield "method and methods are both given"
        if self.methods == []:
            yield "methods is empty"

    def _dispatch_problems(self) -> Iterator[str]:
        if self.remote_function is None:
            if self.is_remote_dispatch is True:
                yield "is_remote_dispatch is True, but there is no remote_function"
        elif "is_remote_dispatch" in self.given and self.is_remote_dispatch is False:
            yield "remote_function is given, but is_remote_dispatch is False"

    def _class_problems(self) -> Iterator[str]:
        replaced = [name for name in _REPLACED_BY_CLASS if getattr(self, name) not in (None, False)]
        if self.handler_class is not None and replaced:
            yield f"handler_class is given as well as {', '.join(replaced)}: put that into the class"

    def _benchmark_problems(self) -> Iterator[str]:
        benchmark = self.benchmark_config
        if not (self.has("benchmark_config") and benchmark):
            return
        yield from (f"benchmark_config: {problem}" for problem in benchmark.problems())
        own, its = self.benchmark_concurrency, benchmark.concurrency
        if "benchmark_concurrency" in self.given and "concurrency" in benchmark.given and own != its:
            yield f"benchmark_concurrency is {own}, but benchmark_config says concurrency={its}"
