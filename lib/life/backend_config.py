"""The arguments of `Backend` that concern the model server and the worker's life, and their checks.

Owns the checks of these arguments, which authors give to `Backend` or declare. It does not check handlers
(`EndpointHandler.problems` does) or declarations (lib/declare/worker_config.py does).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp.typedefs import Middleware

from lib.access.authenticator import Authenticator
from lib.data_types import EndpointHandler, LogAction
from lib.engine.engine import Engine
from lib.fields.limits import below_minimum, invalid_durations
from lib.life.author_context import Context, context_of_handlers
from lib.model.readiness import ReadySignal
from lib.request.middlewares import middleware_problems
from lib.request.observers import Observer, observer_problems
from lib.runtime.urls import is_http_url

Lifecycle = Context

# In workload/s, for a worker whose author has given neither a benchmark nor a throughput.
DEFAULT_MAX_PERF = 100.0


@dataclass(frozen=True, kw_only=True)
class ArgumentNames:
    """The names under which an author gave the arguments, so that messages use the author's words."""

    log_rules: str
    log_texts: Mapping[LogAction, str]
    ready_signals: str


BACKEND_NAMES = ArgumentNames(
    log_rules="log_actions",
    log_texts={action: f"log_actions: LogAction.{action.name}" for action in LogAction},
    ready_signals=(
        "a LogAction.ModelLoaded line with model_log_file, a health check (healthcheck_endpoint or "
        "healthcheck_url), or a lifecycle"
    ),
)


@dataclass(frozen=True, kw_only=True)
class BackendConfig:
    """The arguments of one `Backend`, and its handlers.

    `url` is "" without a model server. `max_perf` is in workload/s, and used if there is no
    `benchmark_handler`. `benchmark_cap` is the highest concurrency of the benchmark, None for no limit.
    `model_stall_timeout_s` holds where the environment sets none. `unsecured`, `engine` and `authenticator`,
    if not None, override the environment.
    """

    url: str
    log_file: Path | None
    log_actions: Sequence[tuple[LogAction, str]]
    healthcheck_url: str | Sequence[str] | None
    lifecycle: Lifecycle | None
    benchmark_handler: EndpointHandler[Any] | None
    benchmark_cap: int | None
    max_perf: float
    max_sessions: int | None
    model_stall_timeout_s: float | None = None
    unsecured: bool | None = None
    handlers: Sequence[EndpointHandler[Any]] = ()
    observers: Sequence[Observer] = ()
    middlewares: Sequence[Middleware] = ()
    engine: Engine | None = None
    authenticator: Authenticator | None = None

    def problems(self) -> list[str]:
        """One line for each problem of these arguments and of the handlers, observers and middlewares."""
        return [
            *self.argument_problems(BACKEND_NAMES),
            *self.ready_signal_problems(BACKEND_NAMES),
            *observer_problems(self.observers),
            *middleware_problems(self.middlewares),
            *(f"{type(h).__name__}: {problem}" for h in self.handlers for problem in problems_of(h)),
        ]

    def argument_problems(self, names: ArgumentNames) -> Iterator[str]:
        """Yield a line for each wrong argument, with the names in `names`."""
        if self.url and not is_http_url(self.url):
            yield f"model_server_url {self.url!r} is not an http(s) URL"
        yield from below_minimum(self, 0, "max_sessions")
        yield from invalid_durations(self, "model_stall_timeout_s")
        if self.log_actions and self.log_file is None:
            yield f"{names.log_rules} has lines to look for, but there is no model_log_file"
        for action in dict.fromkeys(action for action, text in self.log_actions if not text):
            yield f"{names.log_texts[action]} has an empty text"
        if not 0 <= self.max_perf < math.inf:
            yield f"max_perf is {self.max_perf}, not a finite number of workload/s ≥ 0"

    def ready_signal_problems(self, names: ArgumentNames) -> Iterator[str]:
        """Yield a line if the worker could never become ready, with the names in `names`.

        A rule for loaded lines counts even without a log file, which `argument_problems` reports.
        """
        if self.url and not self._signals_of_model and not self.has_load_rule:
            yield f"nothing shows when the model is loaded: give {names.ready_signals}"

    @property
    def ready_signals(self) -> tuple[ReadySignal, ...]:
        """The signals that must all have been seen before the worker counts as loaded."""
        handlers = () if self.context_of_handlers is None else (ReadySignal.HANDLERS,)
        return (*handlers, *self._signals_of_model)

    @property
    def health_checks(self) -> tuple[str, ...]:
        """The paths or URLs of the health checks, all to be watched: the worker's, or else its handlers'."""
        given = self.healthcheck_url
        if given:
            return (given,) if isinstance(given, str) else tuple(given)
        return tuple(dict.fromkeys(filter(None, (handler.healthcheck_endpoint for handler in self.handlers))))

    @property
    def context_of_handlers(self) -> Context | None:
        """The `running` contexts of the handlers as one; None if no handler has one."""
        return context_of_handlers(self.handlers)

    @property
    def _signals_of_model(self) -> tuple[ReadySignal, ...]:
        """The signals of the model itself; a lifecycle replaces all others."""
        if self.lifecycle is not None:
            return (ReadySignal.LIFECYCLE,)
        if not self.url:
            return ()
        has_log = self.log_file is not None and self.has_load_rule
        return (
            *((ReadySignal.LOG,) if has_log else ()),
            *((ReadySignal.HEALTH,) if self.health_checks else ()),
        )

    @property
    def has_load_rule(self) -> bool:
        """Whether a log rule has the action `ModelLoaded`."""
        return any(action is LogAction.ModelLoaded for action, _ in self.log_actions)


def problems_of(handler: EndpointHandler[Any]) -> list[str]:
    """The problems that `handler` finds with itself.

    A handler that was written before `EndpointHandler.problems` existed may have a field of that name: it is
    ignored.
    """
    return handler.problems() if callable(handler.problems) else []
