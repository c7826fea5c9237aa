"""An author's async contexts: entered when the worker starts, left when it stops.

Owns entering and leaving the lifecycle of a worker and the `running` contexts of its handlers. It does not
decide when the worker stops: that is lib/server.py.
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
    """One context, which `keep` enters; it calls `on_entered` then.

    The context is left when `leave` is called or `keep` is cancelled. Leaving is never cancelled. Entering
    is cancelled with `keep` while `is_loaded` returns false, since it may wait without end.
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
        """Enter the context, and stay inside until the worker stops. Raises what the context raises.

        The context runs in a task of its own, out of reach of anyio's cancel scopes: these would cancel the
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
        """Leave the context and return once it is left; return immediately if it has not been entered."""
        self._leaving.set()
        if self._is_entered:
            await self._left.wait()

    async def _stay_inside(self) -> None:
        given = (
            self._context
        )  # the result of an @asynccontextmanager function is callable too, as a decorator
        async with given if isinstance(given, AbstractAsyncContextManager) else given():
            self._is_entered = True
            self._on_entered()
            await self._leaving.wait()


def context_of_handlers(handlers: Sequence[EndpointHandler[Any]]) -> Context | None:
    """Combine the `running` contexts of `handlers` into one; None if no handler overrides `running`."""
    base = cast(Any, EndpointHandler).running
    running = [handler for handler in handlers if cast(Any, type(handler)).running is not base]
    return partial(_all_running, running) if running else None


@asynccontextmanager
async def _all_running(handlers: Sequence[EndpointHandler[Any]]) -> AsyncGenerator[None, None]:
    async with AsyncExitStack() as stack:
        for handler in handlers:
            await stack.enter_async_context(handler.running())
        yield
