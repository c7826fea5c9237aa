"""Work that goes on when its caller is cancelled: for handlers with `on_disconnect="finish"`.

Owns the hand-over of such work to the server's task group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import anyio

T = TypeVar("T")

# Runs a call that outlives its caller, in the server's task group.
Spawn = Callable[[Callable[[], Coroutine[Any, Any, None]]], object]


async def run_detached(spawn: Spawn, work: Callable[[], Awaitable[T]], has_started: Callable[[], bool]) -> T:
    """Run `work` by `spawn` and return its result.

    Where the caller is cancelled, `work` goes on if it `has_started`, and is cancelled too if it has not.
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
