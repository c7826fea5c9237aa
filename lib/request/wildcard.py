"""Wildcard routes: in `/v1/{path}`, the last parameter is the rest of the path, with its slashes.

Owns which paths such a route has. A path is decoded once, and compared then; what a model server could take
for another path after that is in no wildcard (docs/writing-a-worker.md, "Wildcards"). The model server gets
the path encoded anew from what was compared (lib/model/messages.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from aiohttp.web_urldispatcher import AbstractRoute, DynamicResource, UrlDispatcher

# The parameter that is the rest of the path, at the end of a route.
REST = "path"
_ENDING = f"/{{{REST}}}"
# A segment of a decoded path. Not in it: "." and "..", also before a ";", where some servers begin
# parameters; a backslash; "%", which is left of an encoded slash or of what is encoded twice or wrongly; what
# has no form in UTF-8, and control characters.
_SEGMENT = r"(?!\.\.?(?:[/;]|$))[^/\\%\x00-\x1f\x7f-\x9f\ud800-\udfff]+"
_PATTERN = rf"{_SEGMENT}(?:/{_SEGMENT})*"
_REST = re.compile(_PATTERN)


def is_wildcard(route: str) -> bool:
    """Whether `route`, as it is declared, ends in the parameter that is the rest of a path."""
    return route.endswith(_ENDING)


def is_rest(path: str) -> bool:
    """Whether `path`, decoded and without a slash at its beginning, can be the rest of a wildcard's path."""
    return _REST.fullmatch(path) is not None


def wildcard(methods: Sequence[str], route: str, handler: Handler) -> list[web.RouteDef]:
    """Routes of `handler` for each of `methods` at every path below `route`, which ends in `/{path}`.

    For a handler of `Backend.create_handler` with the same `endpoint`, the model server gets the same path:
    `/v1/{path}` has `/v1/audio/speech`, but not `/v1`, `/v1/`, `/v1/a//b` or `/v1/../b`, in whatever way they
    are encoded. Raises `ValueError` for a route without `/{path}` at its end.
    """
    if not is_wildcard(route):
        raise ValueError(f"the route {route!r} has no {_ENDING} at its end")
    return [_WildcardRoute(method, route, handler, {}) for method in methods]


def rest_of(request: Any) -> str | None:
    """The rest of the path of a request to a wildcard, decoded; None for any other request."""
    match: Any = getattr(request, "match_info", None)
    route = getattr(match, "route", None)
    return match[REST] if route is not None and isinstance(route.resource, _WildcardResource) else None


class _WildcardResource(DynamicResource):
    """The paths below `route`."""

    def __init__(self, route: str) -> None:
        super().__init__(f"{route.removesuffix(_ENDING)}/{{{REST}:{_PATTERN}}}")


class _WildcardRoute(web.RouteDef):
    """One method of a wildcard; its `path` is the route as it was declared."""

    __slots__ = ()

    def register(self, router: UrlDispatcher) -> list[AbstractRoute]:
        resource = _WildcardResource(self.path)
        router.register_resource(resource)
        return [resource.add_route(self.method, self.handler, **self.kwargs)]
