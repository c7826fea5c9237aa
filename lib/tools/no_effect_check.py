"""The check of what is valid, and has not the effect that its author expects, for `pyworker check`.

Owns the fields of handlers without effect, and the worker's own routes that an author's replace. What is
invalid is found where the worker is declared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aiohttp import web

from lib.backend import Backend
from lib.declare.bare_route import BareRouteHandler
from lib.declare.declared_handler import DeclaredHandler
from lib.request.handler import Handler
from lib.request.lanes import lane_of
from lib.routes.management import public_routes, without
from lib.routes.sessions import session_routes
from lib.tools.findings import Findings

# Workers have had a route of their own for it since before there was one, and its answer says nothing.
_OFTEN_REPLACED = "/ping"


def check_effects(backend: Backend, routes: Sequence[web.AbstractRouteDef], found: Findings) -> None:
    """Warn of each field without effect, and of each of the worker's own routes that `routes` replace."""
    for route in routes:
        lane = lane_of(backend.served, route) if isinstance(route, web.RouteDef) else None
        if isinstance(route, web.RouteDef) and lane is not None:
            for problem in _fields_without_effect(lane.handler):
                found.warning("worker", f"{route.method} {route.path}: {problem}")
    own = [*public_routes(backend), *session_routes(backend)]
    kept = without(own, routes)
    for route in own:
        if route not in kept and route.path != _OFTEN_REPLACED:
            who = "probes get" if route.method == "GET" else "its clients get"
            found.warning(
                "worker", f"{route.method} {route.path} replaces the worker's own route: {who} your answer"
            )


def _fields_without_effect(handler: Handler) -> Iterator[str]:
    # A function that a declared worker's handler class calls is its instance's `call_model`.
    computes = isinstance(handler, DeclaredHandler) and handler.function is not None
    if handler.idempotent and (
        computes or isinstance(handler, BareRouteHandler) or "call_model" in vars(handler)
    ):
        yield "idempotent has no effect: a function's requests aren't sent to the model server, or sent again"
