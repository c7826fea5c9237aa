"""The fields of a declared worker (docs/writing-a-worker.md, "The declared way").

Owns the fields and defaults of `WorkerConfig`, `HandlerConfig`, `BenchmarkConfig` and `LogActionConfig`, and
which of them can't be combined. How arguments become fields is in config_fields.py. What is wrong with a
handler by itself is found in declared_handler.py, with the backend's arguments in
lib/life/backend_config.py; lib/worker.py makes one message of all three.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

from lib.data_types import EndpointHandler, LogAction, OnDisconnect
from lib.declare.callables import accepts, call_problems, is_async, is_coroutine_function
from lib.declare.config_fields import DeclaredConfig
from lib.declare.declared_handler import (
    AnsweringHandler,
    DeclaredHandler,
    RequestParser,
    ResponseGenerator,
    Samples,
    WorkloadCalculator,
    accepts_only_uploads,
    defines_for_test,
    payload_from,
)
from lib.declare.functions import RemoteFunction
from lib.fields.limits import below_minimum
from lib.life.backend_config import ArgumentNames, Lifecycle
from lib.runtime.urls import is_http_url

if TYPE_CHECKING:
    from aiohttp.typedefs import Middleware
else:  # aiohttp's is a Protocol, of which no instance can be recognized
    Middleware = Callable

Method = Literal["POST", "GET", "PUT", "PATCH", "DELETE"]

# Fields that a handler class replaces.
_REPLACED_BY_CLASS = (
    *("payload_class", "request_parser", "response_generator", "workload_calculator"),
    *("is_remote_dispatch", "remote_function"),
)
# Fields that every handler has under the same name.
_HANDLER_FIELDS = (
    *("allow_parallel_requests", "max_queue_time", "max_concurrency", "benchmark_concurrency"),
    *("on_disconnect", "keepalive_s"),
)
# A handler's fields for its benchmark, with their names in `BenchmarkConfig`.
_BENCHMARK_FIELDS = {
    "benchmark_runs": "runs",
    "benchmark_concurrency": "concurrency",
    "benchmark_warmup": "do_warmup",
}
_LOG_FIELDS = {
    LogAction.ModelLoaded: "on_load",
    LogAction.ModelError: "on_error",
    LogAction.Info: "on_info",
}
# Characters that end a route's path or make it a pattern. A `{name}` is allowed: the path on the model server
# has it too.
_NOT_IN_PATH = re.compile(r"[{}?#\s]")
_PATH_PARAMETER = re.compile(r"\{[A-Za-z_]\w*\}")

DECLARED_NAMES = ArgumentNames(
    log_rules="log_action_config",
    log_texts={action: f"log_action_config: {name}" for action, name in _LOG_FIELDS.items()},
    ready_signals=(
        "model_healthcheck_url, a lifecycle, or log_action_config=LogActionConfig(on_load=[…]) with "
        "model_log_file"
    ),
)


class LogActionConfig(DeclaredConfig):
    """Lines of the model server's log that mean something: case-sensitive substrings."""

    on_load: list[str] = field(default_factory=list[str])
    on_error: list[str] = field(default_factory=list[str])
    on_info: list[str] = field(default_factory=list[str])

    def actions(self) -> list[tuple[LogAction, str]]:
        """The log rules, as `Backend` takes them."""
        return [(action, text) for action, name in _LOG_FIELDS.items() for text in self.valid(name)]


class BenchmarkConfig(DeclaredConfig):
    """The benchmark's requests: payloads of `dataset` in turn, or what `generator` returns for each request.

    `runs` rounds of `concurrency` simultaneous requests (None: found by the benchmark), after a warm-up
    request if `do_warmup`. With neither dataset nor generator, payloads come from `for_test` of the payload
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
    for none. With `handler_class`, only the fields that are given override the class's own.
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
    max_concurrency: int | None = field(default=None, kw_only=True)
    benchmark_concurrency: int | None = field(default=None, kw_only=True)
    on_disconnect: OnDisconnect = field(default="cancel", kw_only=True)
    keepalive_s: float | None = field(default=None, kw_only=True)

    def problems(self) -> list[str]:
        return [
            *super().problems(),
            *self._route_problems(),
            *self._dispatch_problems(),
            *self._class_problems(),
            *self._benchmark_problems(),
        ]

    def build(self, benchmark: BenchmarkConfig | None) -> EndpointHandler[Any]:
        """Make the handler, with `benchmark` if it is the handler to benchmark.

        Fields of a wrong type have their defaults in it, and a benchmark with problems is left out: what is
        wrong with the handler itself can be found even so. Raises what a handler class raises.
        """
        if benchmark is not None and benchmark.problems():
            benchmark = None
        if (handler_class := self.valid("handler_class")) is not None:
            return self._built_by_class(handler_class, benchmark)
        options = {name: self.valid(name) for name in _HANDLER_FIELDS}
        if benchmark is not None:
            of_benchmark = benchmark.options(_BENCHMARK_FIELDS.values())
            options |= {k: v for k, v in of_benchmark.items() if k not in self.given}
        generator, function = self.valid("response_generator"), self.valid("remote_function")
        handler_type = DeclaredHandler if generator is None else AnsweringHandler
        return handler_type(
            route=self.valid("route"),
            method=self.valid("method"),
            payload_class=self.valid("payload_class"),
            request_parser=self.valid("request_parser"),
            response_generator=generator,
            workload_calculator=self.valid("workload_calculator"),
            function=RemoteFunction(function) if function else None,
            samples=benchmark.samples() if benchmark else None,
            **options,
        )

    def makes_samples(self) -> bool:
        """Whether payloads for a benchmark come from the handler's or the payload's class."""
        return self.handler_class is not None or defines_for_test(self.payload_class)

    def _built_by_class(
        self, handler_class: Callable[[], EndpointHandler[Any]], benchmark: BenchmarkConfig | None
    ) -> EndpointHandler[Any]:
        handler = handler_class()
        options = benchmark.options(benchmark.given) if benchmark else {}
        options |= {name: self.valid(name) for name in _HANDLER_FIELDS if name in self.given}
        samples = benchmark.samples() if benchmark else None
        if samples is not None:
            options["make_benchmark_payload"] = partial(payload_from, samples, handler)
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

    def _dispatch_problems(self) -> Iterator[str]:
        if self.remote_function is None:
            if self.is_remote_dispatch is True:
                yield "is_remote_dispatch, but there is no remote_function"
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


class WorkerConfig(DeclaredConfig):
    """A whole worker. Without handlers it has one, at `/`. `max_sessions` None or 0 sets no limit.

    `benchmark_route` with `benchmark_data` is the same as a `benchmark_config` of that route's handler.
    `middlewares` are aiohttp's: `async def middleware(request, handler)`. They run after authentication.
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
    middlewares: list[Middleware] = field(default_factory=list[Middleware], kw_only=True)

    def problems(self) -> list[str]:
        """One line for each thing that is wrong with the declaration, its parts included.

        What is wrong with the handlers and the backend built of it is not among them.
        """
        return [
            *super().problems(),
            *self._port_problems(),
            *self._route_problems(),
            *self._model_problems(),
            *self._benchmark_problems(),
            *(f"{self.label(h)}: {problem}" for h in self.all_handlers() for problem in h.problems()),
            *self._log_problems(),
            *self._lifecycle_problems(),
            *self._middleware_problems(),
        ]

    def all_handlers(self) -> list[HandlerConfig]:
        """The handlers, leaving out items of a wrong type; without any, the one at `/`."""
        given = cast(Any, self.handlers)
        listed = cast("list[Any]", given if isinstance(given, (list, tuple)) else [])
        return [h for h in listed if isinstance(h, HandlerConfig)] or ([] if given else [_ONLY])

    def label(self, handler: HandlerConfig) -> str:
        """The name of `handler` in messages."""
        if handler.has("route"):
            return f"handler {handler.route!r}"
        return next(f"handlers[{i}]" for i, h in enumerate(self.handlers) if h is handler)

    def url(self) -> str | None:
        """The model server's URL, with `model_server_port` if it names no port; None without a model server.

        A URL that is not an http(s) URL is returned unchanged.
        """
        url: str | None = self.valid("model_server_url") or None
        port = _port(self.model_server_port)
        if url is None or port is None or not is_http_url(url):
            return url
        parts = urlsplit(url)
        if parts.port is not None:
            return url
        return parts._replace(netloc=f"{parts.netloc.rstrip(':')}:{port}").geturl()

    def benchmark_of(self, handler: HandlerConfig) -> BenchmarkConfig | None:
        """The benchmark of `handler`, or None if it is not the handler to benchmark."""
        return next((benchmark for h, benchmark in self._benchmarks() if h is handler), None)

    def _port_problems(self) -> Iterator[str]:
        if not self.has("model_server_port"):
            return
        url: str | None = self.valid("model_server_url")
        port = _port(self.model_server_port)
        if port is None:
            yield f"model_server_port {self.model_server_port!r} is not a port, 1 to 65535"
        elif not self.model_server_url:
            yield "model_server_port is given without model_server_url"
        elif url and is_http_url(url) and urlsplit(url).port not in (None, port):
            yield f"model_server_port is {port}, but model_server_url says {urlsplit(url).port}"

    def _route_problems(self) -> Iterator[str]:
        known = (h for h in self.all_handlers() if h.has("route") and h.has("method"))
        taken = Counter((h.method, h.route) for h in known)
        for (method, route), count in taken.items():
            if count > 1:
                yield f"{count} handlers have the route {method} {route}"

    def _model_problems(self) -> Iterator[str]:
        """Yield fields that need a model server, if there is none, and contradictory health checks."""
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
            elif accepts_only_uploads(handler.payload_class):
                what = "dataset" if benchmark.generator is None else "generator"
                problem = f"its benchmark has a {what}, but an upload has no JSON: use its class's for_test"
                yield f"{self.label(handler)}: {problem}"
        for handler in self.all_handlers():
            if handler.benchmark_concurrency is not None and self.benchmark_of(handler) is None:
                yield f"{self.label(handler)}: benchmark_concurrency is given, but it has no benchmark"

    def _benchmarks(self) -> list[tuple[HandlerConfig, BenchmarkConfig]]:
        """Every declared benchmark, with its handler; more than one is a problem."""
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
        yield from (f"log_action_config: {problem}" for problem in self.log_action_config.problems())

    def _lifecycle_problems(self) -> Iterator[str]:
        lifecycle = self.lifecycle
        if isinstance(lifecycle, AbstractAsyncContextManager) or not self.has("lifecycle"):
            return
        assert lifecycle is not None
        if is_async(lifecycle):
            yield "lifecycle is an async function: make it a contextlib.asynccontextmanager"
        elif isinstance(lifecycle, AbstractContextManager):
            yield "lifecycle is a context manager, but not an async one"
        elif not accepts(lifecycle, 0):
            yield "lifecycle must be callable without arguments"

    def _middleware_problems(self) -> Iterator[str]:
        for i, middleware in enumerate(self.valid("middlewares")):
            if not is_coroutine_function(middleware):
                yield f"middlewares[{i}] is not an async function: async def middleware(request, handler)"
            elif not accepts(middleware, 2):
                yield f"middlewares[{i}] can't be called with 2 arguments: request and handler"


_ONLY = HandlerConfig("/")


def _port(given: Any) -> int | None:
    """The TCP port that `given`, an integer or a string of digits, is; None if it is not one."""
    text = str(given)
    port = int(text) if text.isascii() and text.isdigit() else 0
    return port if 1 <= port <= 65535 else None
