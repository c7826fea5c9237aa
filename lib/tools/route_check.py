"""The check of which routes are fast, for `pyworker check` (docs/writing-a-worker.md, "What is fast")."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from aiohttp import web

from lib.backend import Backend
from lib.request.lanes import lane_of, route_obstacle
from lib.tools.findings import Findings

ABOUT = "speed"


def check_speed(backend: Backend, routes: Sequence[web.AbstractRouteDef], found: Findings) -> None:
    """Note which routes are fast; for each reason why others are not, note these."""
    fast: list[str] = []
    slower: defaultdict[str, list[str]] = defaultdict(list)
    for route in routes:
        if isinstance(route, web.RouteDef):
            lane = lane_of(backend.served, route)
            obstacle = _worker_obstacle(backend) or route_obstacle(route, lane)
            (fast if obstacle is None else slower[obstacle]).append(f"{route.method} {route.path}")
    if fast:
        found.note(ABOUT, f"fast routes: {', '.join(fast)}")
    for obstacle, names in slower.items():
        found.note(ABOUT, f"slower routes, because {obstacle}: {', '.join(names)}")


def _worker_obstacle(backend: Backend) -> str | None:
    """The reason why no route is fast, or None."""
    if backend.middlewares:
        return "the worker has middlewares"
    return None if backend.authenticator is None else "the worker has an authenticator of its own"
