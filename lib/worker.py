"""The declarative way: a worker described in one page (docs/writing-a-worker.md, "The declared way").

Owns `Worker`, which makes handlers and a `Backend` of a declaration and refuses one that can't work. The
configurations are in lib/declare, and can be imported from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from aiohttp import web
from aiohttp.typedefs import Handler

from lib.backend import Backend
from lib.declare.config_fields import refuse
from lib.declare.handler_config import BenchmarkConfig, HandlerConfig
from lib.declare.handler_factory import EndpointHandlerFactory
from lib.declare.worker_config import DECLARED_NAMES, LogActionConfig, WorkerConfig
from lib.request.wildcard import is_wildcard, wildcard
from lib.server import start_server, start_server_async

__all__ = [
    "BenchmarkConfig",
    "EndpointHandlerFactory",
    "HandlerConfig",
    "LogActionConfig",
    "Worker",
    "WorkerConfig",
]

# The name of the route of a worker that declares no handlers, by which `pyworker check` recognizes it.
ROUTE_WITHOUT_HANDLERS = "without-handlers"


class Worker:
    """A worker as declared: `run` serves it until SIGTERM or SIGINT.

    The constructor stores and checks: no network, no file, no environment, no event loop. `routes` may be
    appended to before the worker runs. Raises `DeclarationRefused` with a line in `problems` for everything
    that is wrong; if nobody catches it, the process ends with status 2.
    """

    def __init__(self, config: WorkerConfig) -> None:
        if not isinstance(cast(Any, config), WorkerConfig):
            refuse([f"Worker takes a WorkerConfig, not a {type(config).__name__}"])
        factory = EndpointHandlerFactory(config)
        self.backend = _backend(factory)
        refuse(list(dict.fromkeys(_problems(factory, self.backend))))
        self.middlewares = tuple(config.middlewares)
        name = None if config.handlers else ROUTE_WITHOUT_HANDLERS
        self.routes: list[web.AbstractRouteDef] = [
            route
            for declared, handler in factory.handlers
            for route in _routes(declared, self.backend.create_handler(handler), name)
        ]

    def run(self, **site_kwargs: Any) -> None:
        """Serve until SIGTERM or SIGINT; `site_kwargs` are those of `lib.server.start_server`."""
        start_server(self.backend, self.routes, middlewares=self.middlewares, **site_kwargs)

    async def run_async(self, **site_kwargs: Any) -> None:
        """Serve on the running event loop, like `run`. Raises `SystemExit` for any exit status but 0."""
        await start_server_async(self.backend, self.routes, middlewares=self.middlewares, **site_kwargs)


def _routes(declared: HandlerConfig, handler: Handler, name: str | None) -> list[web.RouteDef]:
    """The routes of `handler` for each of its methods."""
    if is_wildcard(declared.route):
        return wildcard(declared.all_methods, declared.route, handler)
    return [web.route(method, declared.route, handler, name=name) for method in declared.all_methods]


def _backend(factory: EndpointHandlerFactory) -> Backend:
    """Make the backend, without routes; in place of fields of a wrong type it gets their defaults."""
    config = factory.config
    return Backend(
        config.url(),
        config.valid("model_log_file"),
        benchmark_handler=factory.get_benchmark_handler(),
        log_actions=config.valid("log_action_config").actions(),
        healthcheck_url=_health_checks(factory),
        max_sessions=config.valid("max_sessions") or None,
        lifecycle=config.lifecycle,
    )


def _health_checks(factory: EndpointHandlerFactory) -> Sequence[str] | None:
    """The worker's health check, or else all those of its handlers; None without one."""
    if factory.config.model_healthcheck_url:
        return (factory.config.model_healthcheck_url,)
    handlers = factory.handlers
    of_handlers = (declared.healthcheck or handler.healthcheck_endpoint for declared, handler in handlers)
    return tuple(dict.fromkeys(filter(None, of_handlers))) or None


def _problems(factory: EndpointHandlerFactory, backend: Backend) -> Iterator[str]:
    """Yield a line for everything that is wrong: with the declaration, the backend and the handlers."""
    arguments = backend.config()
    yield from factory.config.problems()
    yield from arguments.argument_problems(DECLARED_NAMES)
    yield from factory.problems()
    if factory.all_built:  # else the health check may be that of a handler that could not be built
        yield from arguments.ready_signal_problems(DECLARED_NAMES)
