"""The declaration of a worker (docs/writing-a-worker.md, "The declared way").

Owns the fields and defaults of `WorkerConfig` and `LogActionConfig`, and which of them can't be combined,
also with the fields of the handlers (handler_config.py). How arguments become fields is in config_fields.py.
What is wrong with the backend's arguments is found in lib/life/backend_config.py. lib/worker.py makes one
message of all problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from lib.data_types import LogAction
from lib.declare.config_fields import DeclaredConfig
from lib.declare.declared_handler import accepts_only_uploads
from lib.declare.handler_config import BenchmarkConfig, HandlerConfig
from lib.fields.callables import accepts, is_async, is_coroutine_function
from lib.life.backend_config import ArgumentNames, Lifecycle
from lib.runtime.urls import is_http_url

if TYPE_CHECKING:
    from aiohttp.typedefs import Middleware
else:  # aiohttp's is a Protocol, whose instances can't be recognized
    Middleware = Callable

LogRule = tuple[LogAction, str]

_LOG_FIELDS = {
    LogAction.ModelLoaded: "on_load",
    LogAction.ModelError: "on_error",
    LogAction.Info: "on_info",
}
DECLARED_NAMES = ArgumentNames(
    log_rules="log_action_config",
    log_texts={action: f"log_action_config: {name}" for action, name in _LOG_FIELDS.items()},
    ready_signals=(
        "model_healthcheck_url, a lifecycle, or log_action_config=LogActionConfig(on_load=[…]) with "
        "model_log_file"
    ),
)


class LogActionConfig(DeclaredConfig):
    """Lines of the model server's log that mean something: case-sensitive substrings.

    `log_actions` has further ones, as `Backend` takes them: `(LogAction.ModelLoaded, "…")`.
    """

    on_load: list[str] = field(default_factory=list[str])
    on_error: list[str] = field(default_factory=list[str])
    on_info: list[str] = field(default_factory=list[str])
    log_actions: list[LogRule] = field(default_factory=list[LogRule], kw_only=True)

    def problems(self) -> list[str]:
        rules: list[Any] = self.valid("log_actions")
        wrong = (rule for rule in rules if not _is_log_rule(rule))
        return [
            *super().problems(),
            *(f"log_actions has {rule!r}, not a LogAction and a string" for rule in wrong),
        ]

    def actions(self) -> list[LogRule]:
        """The log rules, as `Backend` takes them."""
        named = [(action, text) for action, name in _LOG_FIELDS.items() for text in self.valid(name)]
        return [*named, *filter(_is_log_rule, self.valid("log_actions"))]


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
        known = (h for h in self.all_handlers() if h.has("route"))
        taken = Counter((method, h.route) for h in known for method in h.all_methods)
        for (method, route), count in taken.items():
            if count > 1:
                yield f"{count} handlers have the route {method} {route}"

    def _model_problems(self) -> Iterator[str]:
        """Yield fields that need a model server, if there is none."""
        if self.model_server_url:
            return
        for handler in self.all_handlers():
            if handler.remote_function is None and handler.handler_class is None:
                yield f"{self.label(handler)}: there is neither a remote_function nor a model_server_url"
        if self.model_healthcheck_url:
            yield "model_healthcheck_url is given without model_server_url"
        checks = {h.healthcheck: h for h in self.all_handlers() if h.healthcheck and h.has("healthcheck")}
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
            yield self._several_benchmarks([handler for handler, _ in benchmarks])
        for handler, benchmark in benchmarks:
            if benchmark.dataset is None and benchmark.generator is None:
                if not handler.makes_samples():
                    yield f"{self.label(handler)}: its benchmark has neither a dataset nor a generator"
            elif accepts_only_uploads(handler.payload_type()):
                what = "dataset" if benchmark.generator is None else "generator"
                problem = f"its benchmark has a {what}, but an upload has no JSON: use its class's for_test"
                yield f"{self.label(handler)}: {problem}"

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

    def _several_benchmarks(self, handlers: Sequence[HandlerConfig]) -> str:
        """The problem that there is a benchmark for each of `handlers`, which may repeat one."""
        labels = list({id(h): self.label(h) for h in handlers}.values())
        if len(labels) == 1:
            return f"{labels[0]} has a benchmark_config, and benchmark_data is given too: keep one"
        *names, last = (label.removeprefix("handler ") for label in labels)
        together = "both" if len(labels) == 2 else "all"
        return f"handlers {', '.join(names)} and {last} {together} have a benchmark: keep one"

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


def _is_log_rule(rule: Any) -> bool:
    """Whether `rule` is a pair of a `LogAction` and a string."""
    return len(rule) == 2 and isinstance(rule[0], LogAction) and isinstance(rule[1], str)


def _port(given: Any) -> int | None:
    """The TCP port that `given`, an integer or a string of digits, is; None if it is not one."""
    text = str(given)
    port = int(text) if text.isascii() and text.isdigit() else 0
    return port if 1 <= port <= 65535 else None
