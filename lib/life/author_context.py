"""An author's async contexts: entered when the worker starts, left when it stops.

Owns entering and leaving the lifecycle of a worker and the `running` contexts of its handlers. It does not
decide when the worker stops: that is lib/server.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, cast

import anyio

from lib.data_types import EndpointHandler

log = logging.getLogger(__name__)

# How long an abandoned context may take to end once it is cancelled.
ABANDON_LIMIT_S = 2.0

Context = AbstractAsyncContextManager[Any] | Callable[[], AbstractAsyncContextManager[Any]]


class AuthorContext:
    """One context. `keep` enters it, calls `on_entered`, and stays inside.

    `leave`, or cancelling `keep`, leaves the context. If it is still being entered then, entering is
    cancelled, because it may wait without end. Leaving is cancelled only by `abandon`.
    """

    def __init__(self, name: str, context: Context, on_entered: Callable[[], None]) -> None:
        self._name = name
        self._context = context
        self._on_entered = on_entered
        self._leaving = asyncio.Event()
        self._left = asyncio.Event()
        self._abandoned = asyncio.Event()
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
            if not self._is_entered:
                inside.cancel()
            with anyio.CancelScope(shield=True):
                await self._wait_until_left(inside)
            self._left.set()
            if inside.done() and not inside.cancelled():
                inside.result()

    async def leave(self) -> None:
        """Leave the context and return once it is left; return immediately if it has not been entered."""
        self._leaving.set()
        if self._is_entered:
            await self._left.wait()

    def abandon(self) -> None:
        """Wait for the context no longer than `ABANDON_LIMIT_S`: an immediate stop was asked for."""
        self._abandoned.set()

    async def _wait_until_left(self, inside: asyncio.Task[None]) -> None:
        abandoned = asyncio.create_task(self._abandoned.wait())
        await asyncio.wait({inside, abandoned}, return_when=asyncio.FIRST_COMPLETED)
        abandoned.cancel()
        if inside.done():
            return
        inside.cancel()
        await asyncio.wait({inside}, timeout=ABANDON_LIMIT_S)
        if not inside.done():
            log.warning("%s does not end: the worker stops without it", self._name)

    async def _stay_inside(self) -> None:
        # The result of an @asynccontextmanager function is callable too, as a decorator.
        given = self._context
        async with given if isinstance(given, AbstractAsyncContextManager) else _checked(given()):
            self._is_entered = True
            self._on_entered()
            await self._leaving.wait()


def context_of_handlers(handlers: Sequence[EndpointHandler[Any]]) -> Context | None:
    """Combine the `running` contexts of `handlers` into one; None if no handler overrides `running`."""
    base = cast(Any, EndpointHandler).running
    # A handler that was written before `running` existed may have a field of that name.
    own = [handler for handler in handlers if cast(Any, type(handler)).running is not base]
    running = [handler for handler in own if callable(handler.running)]
    return partial(_all_running, running) if running else None


@asynccontextmanager
async def _all_running(handlers: Sequence[EndpointHandler[Any]]) -> AsyncGenerator[None, None]:
    async with AsyncExitStack() as stack:
        for handler in handlers:
            try:
                await stack.enter_async_context(_checked(handler.running()))
            except Exception:
                log.error("running() of %s failed", type(handler).__name__)
                raise
        yield


def _checked(context: AbstractAsyncContextManager[Any]) -> AbstractAsyncContextManager[Any]:
    """Return `context`. Raises `TypeError` if an author's function returned something else."""
    given: Any = context
    if isinstance(given, AbstractAsyncContextManager):
        return context
    if isinstance(given, Coroutine):
        given.close()
    raise TypeError(f"{given!r} is not an async context manager: is @asynccontextmanager missing?")
