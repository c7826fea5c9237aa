"""The declarative way: a worker described in one page (docs/writing-a-worker.md, "The declared way").

Owns `Worker`, which makes handlers and a `Backend` of a declaration and refuses one that can't work. The
configurations are in lib/declare, and can be imported from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

from aiohttp import web

from lib.backend import Backend
from lib.data_types import EndpointHandler
from lib.declare.config_fields import refuse
from lib.declare.handler_config import BenchmarkConfig, HandlerConfig
from lib.declare.worker_config import DECLARED_NAMES, LogActionConfig, WorkerConfig
from lib.errors import result_or_error
from lib.life.backend_config import problems_of
from lib.server import run_server, start_server

__all__ = ["BenchmarkConfig", "HandlerConfig", "LogActionConfig", "Worker", "WorkerConfig"]

# Each declared handler, with the handler made of it or the exception that its author's class raised.
_Attempts = Sequence[tuple[HandlerConfig, EndpointHandler[Any] | Exception]]
_Handlers = Sequence[tuple[HandlerConfig, EndpointHandler[Any]]]


class Worker:
    """A worker as declared: `run` serves it until SIGTERM or SIGINT.

    The constructor stores and checks: no network, no file, no environment, no event loop. `routes` may be
    appended to before the worker runs. Raises `DeclarationRefused` with a line in `problems` for everything
    that is wrong; if nobody catches it, the process ends with status 2.
    """

    def __init__(self, config: WorkerConfig) -> None:
        if not isinstance(cast(Any, config), WorkerConfig):
            refuse([f"Worker takes a WorkerConfig, not a {type(config).__name__}"])
        attempts = [(declared, _built(declared, config)) for declared in config.all_handlers()]
        handlers = [(d, handler) for d, handler in attempts if not isinstance(handler, Exception)]
        self.backend = _backend(config, handlers)
        refuse(list(dict.fromkeys(_problems(config, self.backend, attempts))))
        self.middlewares = tuple(config.middlewares)
        self.routes: list[web.AbstractRouteDef] = [
            web.route(d.method, d.route, self.backend.create_handler(handler)) for d, handler in handlers
        ]

    def run(self, **site_kwargs: Any) -> None:
        """Serve until SIGTERM or SIGINT; `site_kwargs` are those of `lib.server.start_server`."""
        start_server(self.backend, self.routes, middlewares=self.middlewares, **site_kwargs)

    async def run_async(self, **site_kwargs: Any) -> None:
        """Serve on the running event loop, like `run`. Raises `SystemExit` for any exit status but 0."""
        status = await run_server(self.backend, self.routes, middlewares=self.middlewares, **site_kwargs)
        if status:
            raise SystemExit(status)


def _built(declared: HandlerConfig, config: WorkerConfig) -> EndpointHandler[Any] | Exception:
    return result_or_error(partial(declared.build, config.benchmark_of(declared)))


def _backend(config: WorkerConfig, handlers: _Handlers) -> Backend:
    """Make the backend, without routes; in place of fields of a wrong type it gets their defaults."""
    return Backend(
        config.url(),
        config.valid("model_log_file"),
        benchmark_handler=next((h for declared, h in handlers if config.benchmark_of(declared)), None),
        log_actions=config.valid("log_action_config").actions(),
        healthcheck_url=_health_check(config, handlers),
        max_sessions=config.valid("max_sessions") or None,
        lifecycle=config.lifecycle,
    )


def _health_check(config: WorkerConfig, handlers: _Handlers) -> str | None:
    """The worker's health check, or else the first one among its handlers'."""
    of_handlers = (declared.healthcheck or handler.healthcheck_endpoint for declared, handler in handlers)
    return config.model_healthcheck_url or next(filter(None, of_handlers), None)


def _problems(config: WorkerConfig, backend: Backend, attempts: _Attempts) -> Iterator[str]:
    """Yield a line for everything that is wrong: with the declaration, the backend and the handlers."""
    arguments = backend.config()
    yield from config.problems()
    yield from arguments.argument_problems(DECLARED_NAMES)
    all_built = True
    for declared, handler in attempts:
        label = config.label(declared)
        if isinstance(handler, Exception):
            all_built = False
            name = getattr(declared.handler_class, "__name__", "")
            yield f"{label}: handler_class {name} can't be used: {handler!r}"
        else:
            yield from (f"{label}: {problem}" for problem in problems_of(handler))
    if all_built:  # else the health check may be that of a handler that could not be built
        yield from arguments.ready_signal_problems(DECLARED_NAMES)
