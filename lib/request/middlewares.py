"""An author's middlewares: functions that wrap the handling of every authenticated request.

Owns the order in which they are applied. They have the signature of aiohttp's middlewares.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware


def wrapped(handler: Handler, middlewares: Sequence[Middleware]) -> Handler:
    """Wrap `handler` in `middlewares`, the first of which is the outermost."""
    for middleware in reversed(middlewares):
        handler = partial(_call, middleware, handler)
    return handler


async def _call(middleware: Middleware, handler: Handler, request: web.Request) -> web.StreamResponse:
    return await middleware(request, handler)
