"""An author's middlewares: functions that wrap the handling of every authenticated request.

Owns their checks and the order in which they are applied. They have the signature of aiohttp's middlewares.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from inspect import isawaitable
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from lib.errors import response_from
from lib.fields.callables import call_problems


def middleware_problems(middlewares: Sequence[Middleware]) -> Iterator[str]:
    """Yield a line for each reason why one of `middlewares` can't be called with a request and a handler."""
    for index, middleware in enumerate(middlewares):
        name = f"middlewares[{index}]"
        if isinstance(middleware, type):
            yield f"{name} is a class: give an object, {middleware.__name__}()"
        elif not callable(middleware):
            yield f"{name} is {middleware!r}, not a function"
        else:
            yield from call_problems(name, middleware, 2, may_be_async=True)


def wrapped(answer: Callable[[web.Request], Awaitable[Any]], middlewares: Sequence[Middleware]) -> Handler:
    """Wrap `answer` in `middlewares`, the first of which is the outermost; an `await` calls it."""
    handler: Handler = partial(_awaited, answer)
    for middleware in reversed(middlewares):
        handler = partial(_call, middleware, handler)
    return handler


async def _awaited(answer: Callable[[web.Request], Awaitable[Any]], request: web.Request) -> Any:
    return await answer(request)


async def _call(middleware: Middleware, handler: Handler, request: web.Request) -> web.StreamResponse:
    result: object = middleware(request, handler)
    return response_from(middleware, await result if isawaitable(result) else result)
