"""The declarative way: a worker said in one page (authoring.md §2).

Owns `Worker`, which makes ordinary handlers and a `Backend` out of a declaration and refuses one that
can't work. What may be declared is in lib/declare/declaration.py, and importable from here.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from aiohttp import web

from lib.backend import Backend
from lib.data_types import EndpointHandler
from lib.declare.config_fields import refuse
from lib.declare.declaration import BenchmarkConfig, HandlerConfig, LogActionConfig, WorkerConfig
from lib.errors import result_or_error
from lib.server import run_server, start_server

__all__ = ["BenchmarkConfig", "HandlerConfig", "LogActionConfig", "Worker", "WorkerConfig"]


class Worker:
    """A worker as declared: `run` serves it until SIGTERM or SIGINT.

    Constructing one remembers and checks: no network, no file, no environment, no event loop. `routes` may
    be appended to before it runs. Raises `DeclarationRefused`, which names all that is wrong in its
    `problems` and ends the process with status 2 where nobody catches it.
    """

    def __init__(self, config: WorkerConfig) -> None:
        if not isinstance(cast(Any, config), WorkerConfig):
            refuse([f"Worker takes a WorkerConfig, not a {type(config).__name__}"])
        problems = config.check()
        made = {id(h): (h, _made(h, config)) for h in config.all_handlers() if not h.check()}
        problems += [
            f"{config.label(h)}: handler_class {_name(h)} can't be used: {e!r}"
            for h, e in made.values()
            if isinstance(e, Exception)
        ]
        handlers = [(h, handler) for h, handler in made.values() if not isinstance(handler, Exception)]
        health = _health_check(config, handlers)
        if config.needs_sign() and not health and len(handlers) == len(config.all_handlers()):
            problems.append(
                "nothing tells when the model is loaded: give model_healthcheck_url, a lifecycle, or "
                "log_action_config=LogActionConfig(on_load=[…]) with model_log_file"
            )
        refuse(problems)
        self.backend = Backend(
            config.url(),
            config.model_log_file,
            benchmark_handler=next((h for c, h in handlers if config.benchmark_of(c)), None),
            log_actions=config.log_action_config.actions(),
            healthcheck_url=health,
            max_sessions=config.max_sessions or None,
            lifecycle=config.lifecycle,
        )
        self.routes: list[web.AbstractRouteDef] = [
            web.route(h.method, h.route, self.backend.create_handler(handler)) for h, handler in handlers
        ]

    def run(self, **site_kwargs: Any) -> None:
        """Serve until SIGTERM or SIGINT (`lib.server.start_server`)."""
        start_server(self.backend, self.routes, **site_kwargs)

    async def run_async(self, **site_kwargs: Any) -> None:
        """`run` on the running event loop. Raises `SystemExit` for any exit status but 0."""
        status = await run_server(self.backend, self.routes, **site_kwargs)
        if status:
            raise SystemExit(status)


def _made(declared: HandlerConfig, config: WorkerConfig) -> EndpointHandler[Any] | Exception:
    return result_or_error(partial(declared.build, config.benchmark_of(declared)))


def _name(declared: HandlerConfig) -> str:
    return getattr(declared.handler_class, "__name__", "")


def _health_check(
    config: WorkerConfig, handlers: list[tuple[HandlerConfig, EndpointHandler[Any]]]
) -> str | None:
    """The worker's health check, or else the first that one of its handlers has."""
    of_handlers = (declared.healthcheck or handler.healthcheck_endpoint for declared, handler in handlers)
    return config.model_healthcheck_url or next(filter(None, of_handlers), None)
