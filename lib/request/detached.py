"""Work that continues when its caller is cancelled, for handlers with `on_disconnect="finish"`.

Owns handing such work to the server's task group, and its result back. The task group belongs to
lib/server.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import anyio

log = logging.getLogger(__name__)

T = TypeVar("T")

# Starts a call in the server's task group, where it outlives its caller.
Spawn = Callable[[Callable[[], Coroutine[Any, Any, None]]], object]


async def run_detached(spawn: Spawn, work: Callable[[], Awaitable[T]], has_started: Callable[[], bool]) -> T:
    """Run `work` through `spawn` and return its result.

    If the caller is cancelled, `work` continues if `has_started` returns true, and is cancelled otherwise.
    Raises what `work` raises; without a caller, an exception is logged.
    """
    done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    scope = anyio.CancelScope()
    spawn(partial(_run, work, scope, done))
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        done.add_done_callback(_log_error)
        if not has_started():
            scope.cancel()
        raise


async def _run(work: Callable[[], Awaitable[T]], scope: anyio.CancelScope, done: asyncio.Future[T]) -> None:
    """Run `work`. Its exception belongs to the caller: in the server's task group it would end the worker."""
    try:
        with scope:
            done.set_result(await work())
    except Exception as e:  # noqa: BLE001 - the caller gets it
        done.set_exception(e)
    finally:
        done.cancel()


def _log_error(done: asyncio.Future[Any]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        log.error("an error after the client had left", exc_info=error)
