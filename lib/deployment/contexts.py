"""The contexts of a deployment, as one lifecycle of the worker.

Owns that all are entered at the same time, as the SDK does, and that each one that was entered is left, also
if another one fails or the worker stops meanwhile: a context may have started a process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

from lib.deployment.sdk import Deployment
from lib.life.author_context import AuthorContext


@asynccontextmanager
async def contexts_entered(deployment: Deployment) -> AsyncGenerator[None, None]:
    """Enter the contexts of `deployment`, each in a task of its own, and leave them after the block.

    Meanwhile, `Deployment.get_context` returns what each context's `__aenter__` has returned. Raises what the
    first context raises that fails.
    """
    entering = {kind: asyncio.Event() for kind in deployment.context_managers}
    kept = [
        asyncio.create_task(
            AuthorContext(
                kind.__name__, partial(_published, deployment, kind, context), entering[kind].set
            ).keep()
        )
        for kind, context in deployment.context_managers.items()
    ]
    all_entered = asyncio.create_task(_wait_for_all(list(entering.values())))
    try:
        # Before they are cancelled below, only one that fails ends.
        await asyncio.wait({all_entered, *kept}, return_when=asyncio.FIRST_COMPLETED)
        if all_entered.done():
            yield
    finally:
        for task in (all_entered, *kept):
            task.cancel()
        results = await asyncio.gather(all_entered, *kept, return_exceptions=True)
        errors = [result for result in results if isinstance(result, Exception)]
        if errors:
            raise errors[0]


@asynccontextmanager
async def _published(
    deployment: Deployment, kind: type[Any], context: AbstractAsyncContextManager[Any]
) -> AsyncGenerator[None, None]:
    """Enter `context`, and make its value known as that of the class `kind` while it is entered."""
    async with context as value:
        deployment.contexts[kind] = value
        try:
            yield
        finally:
            del deployment.contexts[kind]


async def _wait_for_all(events: list[asyncio.Event]) -> None:
    for event in events:
        await event.wait()
