"""The checks of an author's async contexts in `pyworker check`: the lifecycle, and `running` of each handler.

Owns entering them around the request of the check, and the report of those that fail. How a worker keeps
them is in lib/life/author_context.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

from lib.life.author_context import AuthorContext, Context, context_of_handlers
from lib.life.backend_config import BackendConfig
from lib.runtime.clock import Clock, time_limit, wait_for
from lib.tools.findings import Findings

# Seconds that one context may take to be entered, and to be left.
CONTEXT_LIMIT_S = 60.0


@asynccontextmanager
async def contexts_entered(
    config: BackendConfig, clock: Clock, found: Findings, limit_s: float = CONTEXT_LIMIT_S
) -> AsyncGenerator[bool, None]:
    """Enter the lifecycle and then each handler's `running`; leave them in reverse order after the block.

    Yields whether all are entered. Each context that raises, or that takes longer than `limit_s` seconds to
    be entered or left, is added to `found` as a problem.
    """
    async with AsyncExitStack() as stack:
        entered = [
            await stack.enter_async_context(_entered(about, name, context, clock, found, limit_s))
            for about, name, context in _contexts(config)
        ]
        yield all(entered)


def _contexts(config: BackendConfig) -> Iterator[tuple[str, str, Context]]:
    """Yield each context with the part of the worker that it belongs to, and its name in messages."""
    if config.lifecycle is not None:
        yield "lifecycle", "the lifecycle", config.lifecycle
    for handler in config.handlers:
        context = context_of_handlers([handler])
        if context is not None:
            yield "handlers", f"running() of {type(handler).__name__}", context


@asynccontextmanager
async def _entered(
    about: str, name: str, context: Context, clock: Clock, found: Findings, limit_s: float
) -> AsyncGenerator[bool, None]:
    """Enter `context` in a task of its own, which `AuthorContext` needs; yield whether it is entered."""
    entered_or_ended = asyncio.Event()
    author_context = AuthorContext(name, context, entered_or_ended.set)
    kept = asyncio.create_task(author_context.keep())
    kept.add_done_callback(lambda _: entered_or_ended.set())
    late = ""
    if not await wait_for(clock, entered_or_ended, limit_s):
        late = "entering"
        await _abandon(author_context, kept)
    try:
        yield not kept.done()
    finally:
        if not kept.done():
            with time_limit(clock, limit_s) as leaving:
                await author_context.leave()
            if leaving.cancelled_caught:
                late = "leaving"
                await _abandon(author_context, kept)
        (error,) = await asyncio.gather(kept, return_exceptions=True)
        if late:
            found.problem(about, f"{name} did not finish {late} in {limit_s:g} s")
        elif error is not None:
            found.problem(about, f"{name} raised {error!r}")


async def _abandon(author_context: AuthorContext, kept: asyncio.Task[None]) -> None:
    """Cancel a context that hangs, and wait until it has ended or is given up."""
    author_context.abandon()
    kept.cancel()
    await asyncio.wait({kept})
