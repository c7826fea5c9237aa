"""Async contexts of an author's that are entered when the worker starts, and left when it stops.

Owns how they are entered and left: the lifecycle of a worker, and what its handlers run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, cast

import anyio

from lib.data_types import EndpointHandler

Context = AbstractAsyncContextManager[Any] | Callable[[], AbstractAsyncContextManager[Any]]


class AuthorContext:
    """One context, entered by `keep`. `on_entered` is called once it is.

    It is left when `leave` is called or `keep` is cancelled; leaving it is never cut short. Entering it is,
    as long as `is_loaded` is false: it may wait in there for ever.
    """

    def __init__(
        self, context: Context, on_entered: Callable[[], None], is_loaded: Callable[[], bool]
    ) -> None:
        self._context = context
        self._on_entered = on_entered
        self._is_loaded = is_loaded
        self._leaving = asyncio.Event()
        self._left = asyncio.Event()
        self._is_entered = False

    async def keep(self) -> None:
        """Stay inside the context until the worker stops.

        The context runs in a task of its own, which anyio's scopes don't reach: they would cancel the
        author's clean-up too.
        """
        inside = asyncio.create_task(self._stay_inside(), name="an author's context")
        try:
            await asyncio.shield(inside)
        finally:
            self._leaving.set()
            if not self._is_loaded():
                inside.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({inside})
            self._left.set()
            if not inside.cancelled():
                inside.result()

    async def leave(self) -> None:
        """Leave the context, and return once it is left; at once where it has not been entered."""
        self._leaving.set()
        if self._is_entered:
            await self._left.wait()

    async def _stay_inside(self) -> None:
        given = self._context  # one made by @asynccontextmanager is callable too, as a decorator
        async with given if isinstance(given, AbstractAsyncContextManager) else given():
            self._is_entered = True
            self._on_entered()
            await self._leaving.wait()


def context_of_handlers(handlers: Sequence[EndpointHandler[Any]]) -> Context | None:
    """What `handlers` run as long as the worker serves, as one context; None where they run nothing."""
    base = cast(Any, EndpointHandler).running
    running = [handler for handler in handlers if cast(Any, type(handler)).running is not base]
    return partial(_all_running, running) if running else None


@asynccontextmanager
async def _all_running(handlers: Sequence[EndpointHandler[Any]]) -> AsyncGenerator[None, None]:
    async with AsyncExitStack() as stack:
        for handler in handlers:
            await stack.enter_async_context(handler.running())
        yield
