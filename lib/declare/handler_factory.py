"""The handlers of a declaration, by route, and which of them the benchmark measures.

Owns the making of handlers and the choice of the benchmark's one. What is wrong with the declaration itself
is found in worker_config.py; lib/worker.py makes one message of all problems.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from lib.data_types import EndpointHandler
from lib.declare.declared_handler import defines_for_test
from lib.declare.dispatch import dispatch_problems, is_stub, overrides
from lib.declare.handler_config import HandlerConfig
from lib.declare.worker_config import WorkerConfig
from lib.errors import result_or_error
from lib.life.backend_config import problems_of

_Handlers = Sequence[tuple[HandlerConfig, EndpointHandler[Any]]]


class EndpointHandlerFactory:
    """The handlers of `config`; one whose class raises an exception is left out, and among the `problems`.

    `Worker` makes its handlers with it. `handlers` has each of them with its declaration, in order.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self._attempts = [
            (declared, result_or_error(partial(declared.build, config.benchmark_of(declared))))
            for declared in config.all_handlers()
        ]
        self.handlers: _Handlers = [
            (declared, built) for declared, built in self._attempts if not isinstance(built, Exception)
        ]
        self._measured = self._benchmarked()

    def get_handler(self, route: str) -> EndpointHandler[Any] | None:
        """The handler at `route`, or None."""
        return self.get_all_handlers().get(route)

    def get_all_handlers(self) -> dict[str, EndpointHandler[Any]]:
        """All handlers, by route."""
        return {declared.route: handler for declared, handler in self.handlers}

    def get_benchmark_handler(self) -> EndpointHandler[Any] | None:
        """The handler that the benchmark measures; None without a benchmark."""
        return next((handler for _, handler in self._measured), None)

    def has_handlers(self) -> bool:
        """Whether there is a handler."""
        return bool(self.handlers)

    @property
    def model_server_base_url(self) -> str | None:
        """The model server's URL, with its port; None without a model server."""
        return self.config.url()

    @property
    def all_built(self) -> bool:
        """Whether no handler class has raised an exception."""
        return len(self.handlers) == len(self._attempts)

    def problems(self) -> Iterator[str]:
        """Yield a line for everything that is wrong with the handlers."""
        label = self.config.label
        for declared, built in self._attempts:
            if isinstance(built, Exception):
                name = getattr(declared.handler_class, "__name__", "")
                yield f"{label(declared)}: handler_class {name} can't be used: {built!r}"
                continue
            found = [*problems_of(built), *dispatch_problems(built)]
            yield from (f"{label(declared)}: {problem}" for problem in found)
            if declared.benchmark_concurrency is not None and all(h is not built for _, h in self._measured):
                yield f"{label(declared)}: benchmark_concurrency is given, but it has no benchmark"
        yield from self._benchmark_problems()

    def _benchmarked(self) -> _Handlers:
        """The handlers with a benchmark: more than one is a problem.

        They are those that the declaration names or whose class says `has_benchmark = True`. Without any,
        they are those of classes that leave this default and can make a payload, unless their method is not
        the benchmark's.
        """
        classes = [(d, h) for d, h in self.handlers if d.handler_class and h.has_benchmark is True]
        named = [
            (declared, handler)
            for declared, handler in self.handlers
            if self.config.benchmark_of(declared) or ((declared, handler) in classes and _says_so(handler))
        ]
        return named or [
            (declared, handler)
            for declared, handler in classes
            if handler.benchmark_method in declared.all_methods and _makes_payloads(handler)
        ]

    def _benchmark_problems(self) -> Iterator[str]:
        own = [(d, h) for d, h in self._measured if not self.config.benchmark_of(d)]
        for declared, handler in own:
            if not _makes_payloads(handler):
                yield (
                    f"{self.config.label(declared)}: has_benchmark is True, but the class has no "
                    "make_benchmark_payload and its payload class no for_test"
                )
        if own and len(self._measured) > 1:
            routes = ", ".join(repr(declared.route) for declared, _ in self._measured)
            yield f"handlers {routes} have a benchmark: set has_benchmark = False in all classes but one"


def _says_so(handler: EndpointHandler[Any]) -> bool:
    """Whether the class of `handler` sets `has_benchmark` itself."""
    return any("has_benchmark" in vars(cls) for cls in type(handler).__mro__ if cls is not EndpointHandler)


def _makes_payloads(handler: EndpointHandler[Any]) -> bool:
    """Whether the class of `handler` can make a payload for the benchmark."""
    payload_class: Any = handler.payload_cls()
    if overrides(type(handler), "make_benchmark_payload"):
        return not is_stub(handler.make_benchmark_payload)
    return defines_for_test(payload_class) and not is_stub(payload_class.for_test)
