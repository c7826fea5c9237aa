"""An author's middlewares: functions around the answer to every authenticated request.

Owns their shape, which is that of aiohttp's own, and the order in which they wrap.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from aiohttp import web

AioHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]
# Called with a request and with what answers it otherwise.
Middleware = Callable[[web.Request, AioHandler], Awaitable[web.StreamResponse]]


def wrapped(handler: AioHandler, middlewares: Sequence[Middleware]) -> AioHandler:
    """`handler` inside `middlewares`, the first of which is the outermost."""
    for middleware in reversed(middlewares):
        handler = partial(_call, middleware, handler)
    return handler


async def _call(middleware: Middleware, handler: AioHandler, request: web.Request) -> web.StreamResponse:
    return await middleware(request, handler)
