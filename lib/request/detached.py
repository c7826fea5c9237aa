"""Work that continues when its caller is cancelled, for handlers with `on_disconnect="finish"`.

Owns handing such work to the server's task group, and its result back. The task group belongs to
lib/server.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import anyio

T = TypeVar("T")

# Starts a call in the server's task group, where it outlives its caller.
Spawn = Callable[[Callable[[], Coroutine[Any, Any, None]]], object]


async def run_detached(spawn: Spawn, work: Callable[[], Awaitable[T]], has_started: Callable[[], bool]) -> T:
    """Run `work` through `spawn` and return its result.

    If the caller is cancelled, `work` continues if `has_started` returns true, and is cancelled otherwise.
    `work` must handle its own errors: an exception is raised in the task of `spawn`, where it is not lost if
    the caller has gone, and the caller is cancelled.
    """
    done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    scope = anyio.CancelScope()
    spawn(partial(_run, work, scope, done))
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        if not has_started():
            scope.cancel()
        raise


async def _run(work: Callable[[], Awaitable[T]], scope: anyio.CancelScope, done: asyncio.Future[T]) -> None:
    try:
        with scope:
            done.set_result(await work())
    finally:
        done.cancel()
