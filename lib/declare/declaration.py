"""What may be declared of a worker, and what of it can't work together (authoring.md §2).

Owns the fields, defaults and checks of `WorkerConfig`, `HandlerConfig`, `BenchmarkConfig` and
`LogActionConfig`. How arguments become fields is in config_fields.py; what they do is in declared.py and
worker.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from lib.data_types import EndpointHandler, LogAction, OnDisconnect
from lib.declare.config_fields import Declared
from lib.declare.declared_handler import (
    AnsweringHandler,
    DeclaredHandler,
    RequestParser,
    ResponseGenerator,
    Samples,
    WorkloadCalculator,
    makes_own_samples,
    sample_payload,
    takes_only_uploads,
)
from lib.declare.functions import RemoteFunction, is_async, takes, unusable
from lib.life.backend_config import Lifecycle

Method = Literal["POST", "GET", "PUT", "PATCH", "DELETE"]

# What a handler class says itself.
_OF_THE_CLASS = (
    *("payload_class", "request_parser", "response_generator", "workload_calculator"),
    *("is_remote_dispatch", "remote_function"),
)
# Fields that a handler has by the same name.
_OF_EVERY_HANDLER = (
    *("allow_parallel_requests", "max_queue_time", "max_concurrency", "benchmark_concurrency"),
    *("on_disconnect", "keepalive_s"),
)
# A benchmark's fields, by what a handler calls them.
_OF_THE_BENCHMARK = {
    "benchmark_runs": "runs",
    "benchmark_concurrency": "concurrency",
    "benchmark_warmup": "do_warmup",
}
# Functions that are called on the event loop, with how many arguments.
_ARGUMENTS = {"request_parser": 1, "workload_calculator": 1, "response_generator": 2}
# In a route they would end the path or make it a pattern, but for parameters; the model server has the same.
_NO_PATH = re.compile(r"[{}?#\s]")
_PATH_PARAMETER = re.compile(r"\{[A-Za-z_]\w*\}")


class LogActionConfig(Declared):
    """What lines of the model server's log mean: substrings, case-sensitive."""

    on_load: list[str] = field(default_factory=list[str])
    on_error: list[str] = field(default_factory=list[str])
    on_info: list[str] = field(default_factory=list[str])

    def check(self) -> list[str]:
        lists = [name for name in ("on_load", "on_error", "on_info") if self.has(name)]
        empty = [f"{name} has an empty text" for name in lists if "" in getattr(self, name)]
        return [*super().check(), *empty]

    def actions(self) -> list[tuple[LogAction, str]]:
        return [
            *((LogAction.ModelLoaded, text) for text in self.on_load),
            *((LogAction.ModelError, text) for text in self.on_error),
            *((LogAction.Info, text) for text in self.on_info),
        ]


class BenchmarkConfig(Declared):
    """What the benchmark sends: payloads of `dataset` in turn, or what `generator` makes for each request.

    `runs` rounds of `concurrency` requests at once (None: found by the benchmark), after a warm-up request
    where `do_warmup`. With neither dataset nor generator, the handler's or the payload's class makes them.
    """

    dataset: list[dict[str, Any]] | None = None
    generator: Callable[[], dict[str, Any]] | None = None
    runs: int = 8
    concurrency: int | None = 10
    do_warmup: bool = True

    def check(self) -> list[str]:
        problems = [*super().check(), *self.too_small(1, "runs", "concurrency")]
        if self.dataset is not None and self.generator is not None:
            problems.append("dataset and generator are both given")
        if self.has("dataset") and not self.dataset:
            problems.append("dataset is empty")
        return [*problems, *_misfits(self, {"generator": 0})]

    def samples(self) -> Samples | None:
        return Samples(self.dataset, self.generator) if self.dataset or self.generator else None

    def options(self, names: Collection[str]) -> dict[str, Any]:
        """What of this a handler has as fields, as far as it is among `names`."""
        return {key: getattr(self, name) for key, name in _OF_THE_BENCHMARK.items() if name in names}


class HandlerConfig(Declared):
    """A route of the worker: the same path on the model server, or `remote_function` instead of one.

    `max_queue_time` and `keepalive_s` are in seconds, None for no limit and for none. With
    `handler_class`, only fields that are given override the class's own.
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
    # Each by itself: on Python 3.10 the type hints of a class with a `KW_ONLY` can't be read.
    method: Method = field(default="POST", kw_only=True)
    max_concurrency: int | None = field(default=None, kw_only=True)
    benchmark_concurrency: int | None = field(default=None, kw_only=True)
    on_disconnect: OnDisconnect = field(default="cancel", kw_only=True)
    keepalive_s: float | None = field(default=None, kw_only=True)

    def check(self) -> list[str]:
        return [
            *super().check(),
            *self._route_problems(),
            *self.too_small(1, "max_concurrency", "benchmark_concurrency"),
            *self.no_duration("max_queue_time", "keepalive_s"),
            *_misfits(self, _ARGUMENTS),
            *self._function_problems(),
            *self._class_problems(),
            *self._benchmark_problems(),
        ]

    def build(self, benchmark: BenchmarkConfig | None) -> EndpointHandler[Any]:
        """The handler, with `benchmark` where it is the one to benchmark.

        Raises what a handler class raises.
        """
        if self.handler_class is not None:
            return self._built_by_class(self.handler_class, benchmark)
        options = {name: getattr(self, name) for name in _OF_EVERY_HANDLER}
        if benchmark is not None:
            of_benchmark = benchmark.options(_OF_THE_BENCHMARK.values())
            options |= {k: v for k, v in of_benchmark.items() if k not in self.given}
        kind = DeclaredHandler if self.response_generator is None else AnsweringHandler
        return kind(
            route=self.route,
            method=self.method,
            payload_class=self.payload_class,
            request_parser=self.request_parser,
            response_generator=self.response_generator,
            workload_calculator=self.workload_calculator,
            function=RemoteFunction(self.remote_function) if self.remote_function else None,
            samples=benchmark.samples() if benchmark else None,
            **options,
        )

    def _built_by_class(
        self, handler_class: Callable[[], EndpointHandler[Any]], benchmark: BenchmarkConfig | None
    ) -> EndpointHandler[Any]:
        handler = handler_class()
        options = benchmark.options(benchmark.given) if benchmark else {}
        options |= {name: getattr(self, name) for name in _OF_EVERY_HANDLER if name in self.given}
        samples = benchmark.samples() if benchmark else None
        if samples is not None:
            options["make_benchmark_payload"] = partial(sample_payload, handler, samples)
        for name, value in options.items():
            setattr(handler, name, value)
        return handler

    def _route_problems(self) -> Iterator[str]:
        if not self.has("route"):
            return
        if not self.route.startswith("/") or _NO_PATH.search(_PATH_PARAMETER.sub("", self.route)):
            yield (
                f"route {self.route!r} is not a path: it begins with '/', has parameters as {{name}}, and "
                "neither a query nor a space"
            )

    def _function_problems(self) -> Iterator[str]:
        if self.remote_function is None:
            if self.is_remote_dispatch is True:
                yield "is_remote_dispatch, but there is no remote_function"
        elif self.has("remote_function"):
            if self.is_remote_dispatch is False and "is_remote_dispatch" in self.given:
                yield "remote_function is given, but is_remote_dispatch is False"
            if problem := unusable(self.remote_function):
                yield f"remote_function {problem}"
            elif self._function_has_uploads() and not takes(self.remote_function, 0, "upload"):
                yield "remote_function can't be called with upload= alone, as it is for an upload"

    def _class_problems(self) -> Iterator[str]:
        idle = [name for name in _OF_THE_CLASS if getattr(self, name) not in (None, False)]
        if self.handler_class is not None and idle:
            yield f"handler_class is given as well as {', '.join(idle)}: put that into the class"
        own = self.payload_class
        if self.request_parser is not None and takes_only_uploads(own):
            yield "request_parser is given, but an upload has no JSON: use its class's from_upload"
        if self.workload_calculator is not None and self._takes_uploads():
            yield "workload_calculator is given, but an upload has no JSON: use its class's count_workload"
        if self.has("payload_class") and own is not dict and not hasattr(own, "from_json_msg"):
            yield f"payload_class {cast(Any, own).__name__} has no from_json_msg"

    def _benchmark_problems(self) -> Iterator[str]:
        benchmark = self.benchmark_config
        if not (self.has("benchmark_config") and benchmark):
            return
        yield from (f"benchmark_config: {problem}" for problem in benchmark.check())
        own, its = self.benchmark_concurrency, benchmark.concurrency
        if "benchmark_concurrency" in self.given and "concurrency" in benchmark.given and own != its:
            yield f"benchmark_concurrency is {own}, but benchmark_config says concurrency={its}"

    def _takes_uploads(self) -> bool:
        """Whether a payload may be a body that is not JSON."""
        return self.has("payload_class") and hasattr(self.payload_class, "from_upload")

    def _function_has_uploads(self) -> bool:
        """Whether `remote_function` is given uploads, not the JSON that their class makes of them."""
        return self._takes_uploads() and not hasattr(self.payload_class, "generate_payload_json")

    def makes_samples(self) -> bool:
        """Whether payloads for a benchmark come from the handler's or the payload's class."""
        return self.handler_class is not None or makes_own_samples(self.payload_class)


class WorkerConfig(Declared):
    """A whole worker. Without handlers it has one, at `/`; `max_sessions` None or 0 is without a limit.

    `benchmark_route` and `benchmark_data` together are the same as that handler's `benchmark_config`.
    """

    model_server_url: str | None = None
    model_server_port: int | str | None = None
    model_log_file: str | Path | None = None
    benchmark_data: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    handlers: list[HandlerConfig] = field(default_factory=list[HandlerConfig])
    model_healthcheck_url: str | None = None
    benchmark_route: str | None = None
    log_action_config: LogActionConfig = field(default_factory=LogActionConfig)
    max_sessions: int | None = 10
    lifecycle: Lifecycle | None = None

    def check(self) -> list[str]:
        """Everything that is wrong with the declaration, its parts included, a line each."""
        return [
            *super().check(),
            *self._url_problems(),
            *self._route_problems(),
            *self._model_problems(),
            *self._benchmark_problems(),
            *(f"{self.label(h)}: {problem}" for h in self.all_handlers() for problem in h.check()),
            *self._log_problems(),
            *self.too_small(0, "max_sessions"),
            *self._lifecycle_problems(),
        ]

    def all_handlers(self) -> list[HandlerConfig]:
        """The handlers, whatever else is among them; without any, the one at `/`."""
        given = cast(Any, self.handlers)
        listed = cast("list[Any]", given if isinstance(given, (list, tuple)) else [])
        return [h for h in listed if isinstance(h, HandlerConfig)] or ([] if given else [_ONLY])

    def label(self, handler: HandlerConfig) -> str:
        """What a message calls `handler`."""
        if handler.has("route"):
            return f"handler {handler.route!r}"
        return next(f"handlers[{i}]" for i, h in enumerate(self.handlers) if h is handler)

    def url(self) -> str | None:
        """The model server's URL, with its port; None: there is none."""
        if not self.model_server_url or self.model_server_port is None:
            return self.model_server_url or None
        parts = urlsplit(self.model_server_url)
        if parts.port is not None:
            return self.model_server_url
        return parts._replace(netloc=f"{parts.netloc.rstrip(':')}:{self.model_server_port}").geturl()

    def needs_sign(self) -> bool:
        """Whether a health check has to tell when the model is loaded, as nothing else does."""
        return bool(self.model_server_url and self.lifecycle is None and not self._log_tells())

    def benchmark_of(self, handler: HandlerConfig) -> BenchmarkConfig | None:
        """The benchmark of `handler`, where it is the one that has it."""
        return next((benchmark for h, benchmark in self._benchmarks() if h is handler), None)

    def _log_tells(self) -> bool:
        return bool(self.has("log_action_config") and self.log_action_config.on_load)

    def _url_problems(self) -> Iterator[str]:
        port = _port(self.model_server_port) if self.has("model_server_port") else None
        if port is not None and not 1 <= port <= 65535:
            yield f"model_server_port {self.model_server_port!r} is not a port, 1 to 65535"
        if not self.model_server_url:
            if port is not None:
                yield "model_server_port is given without model_server_url"
        elif self.has("model_server_url"):
            try:
                parts = urlsplit(self.model_server_url)
                sound, own_port = parts.scheme in ("http", "https") and bool(parts.hostname), parts.port
            except ValueError:
                sound, own_port = False, None
            if not sound:
                yield f"model_server_url {self.model_server_url!r} is not an http(s) URL"
            if port is not None and own_port is not None and port != own_port:
                yield f"model_server_port is {port}, but model_server_url says {own_port}"

    def _route_problems(self) -> Iterator[str]:
        known = (h for h in self.all_handlers() if h.has("route") and h.has("method"))
        taken = Counter((h.method, h.route) for h in known)
        for (method, route), count in taken.items():
            if count > 1:
                yield f"{count} handlers have the route {method} {route}"

    def _model_problems(self) -> Iterator[str]:
        """What needs a model server, where there is none; health checks that contradict each other."""
        checks = {h.healthcheck: h for h in self.all_handlers() if h.healthcheck and h.has("healthcheck")}
        if len(checks) > 1 and not self.model_healthcheck_url:
            named = ", ".join(f"{h.healthcheck} ({self.label(h)})" for h in checks.values())
            yield f"the handlers have different health checks: {named}: choose by model_healthcheck_url"
        if self.model_server_url:
            return
        for handler in self.all_handlers():
            if handler.remote_function is None and handler.handler_class is None:
                yield f"{self.label(handler)}: there is neither a remote_function nor a model_server_url"
        if self.model_healthcheck_url:
            yield "model_healthcheck_url is given without model_server_url"
        for handler in checks.values():
            yield f"{self.label(handler)}: healthcheck is given without model_server_url"

    def _benchmark_problems(self) -> Iterator[str]:
        if self.has("benchmark_route") and self.benchmark_route:
            count = sum(h.route == self.benchmark_route for h in self.all_handlers())
            if count != 1:
                routes = ", ".join(h.route for h in self.all_handlers() if h.has("route"))
                what = "is the route of no handler" if count == 0 else f"is the route of {count} handlers"
                yield f"benchmark_route {self.benchmark_route!r} {what}: there are {routes}"
        elif self.benchmark_data and len(self.all_handlers()) > 1:
            yield "benchmark_data is given without benchmark_route, and there are several handlers"
        benchmarks = self._benchmarks()
        if len(benchmarks) > 1:
            yield f"more than one benchmark: of {', '.join(self.label(h) for h, _ in benchmarks)}"
        for handler, benchmark in benchmarks:
            if benchmark.dataset is None and benchmark.generator is None:
                if not handler.makes_samples():
                    yield f"{self.label(handler)}: its benchmark has neither a dataset nor a generator"
            elif takes_only_uploads(handler.payload_class):
                what = "dataset" if benchmark.generator is None else "generator"
                problem = f"its benchmark has a {what}, but an upload has no JSON: use its class's for_test"
                yield f"{self.label(handler)}: {problem}"
        for handler in self.all_handlers():
            if handler.benchmark_concurrency is not None and self.benchmark_of(handler) is None:
                yield f"{self.label(handler)}: benchmark_concurrency is given, but it has no benchmark"

    def _benchmarks(self) -> list[tuple[HandlerConfig, BenchmarkConfig]]:
        """Each benchmark that is declared; there may be one."""
        handlers = self.all_handlers()
        configs = [h.benchmark_config if h.has("benchmark_config") else None for h in handlers]
        found = [(h, benchmark) for h, benchmark in zip(handlers, configs, strict=True) if benchmark]
        data = self.benchmark_data if self.has("benchmark_data") else []
        if self.benchmark_route or data:
            named = [h for h in handlers if self.benchmark_route in (None, "", h.route)]
            if len(named) == 1 and (data or all(h is not named[0] for h, _ in found)):
                found.append((named[0], BenchmarkConfig(dataset=data) if data else BenchmarkConfig()))
        return found

    def _log_problems(self) -> Iterator[str]:
        if not self.has("log_action_config"):
            return
        problems = self.log_action_config.check()
        yield from (f"log_action_config: {problem}" for problem in problems)
        if not problems and self.log_action_config.actions() and not self.model_log_file:
            yield "log_action_config has lines to look for, but there is no model_log_file"

    def _lifecycle_problems(self) -> Iterator[str]:
        lifecycle = self.lifecycle
        if isinstance(lifecycle, AbstractAsyncContextManager) or not self.has("lifecycle"):
            return
        assert lifecycle is not None
        if is_async(lifecycle):
            yield "lifecycle is an async function: make it a contextlib.asynccontextmanager"
        elif isinstance(lifecycle, AbstractContextManager):
            yield "lifecycle is a context manager, but not an async one"
        elif not takes(lifecycle, 0):
            yield "lifecycle must be callable without arguments"


_ONLY = HandlerConfig("/")


def _misfits(config: Declared, functions: dict[str, int]) -> Iterator[str]:
    """A line for each of the author's functions that can't be called as it will be."""
    for name, arguments in functions.items():
        if config.has(name):
            function = getattr(config, name)
            if is_async(function) and name != "response_generator":
                yield f"{name} is async: give a plain function"
            if not takes(function, arguments):
                yield f"{name} can't be called with {arguments} argument{'s' * (arguments != 1)}"


def _port(given: int | str | None) -> int:
    """The port, 0 for what is none."""
    text = str(given)
    return int(text) if text.isascii() and text.isdigit() else 0
