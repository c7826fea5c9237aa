"""The checks of an author's async contexts in `pyworker check`: the lifecycle, and `running` of each handler.

Owns entering them around the request of the check, and the report of those that fail. How a worker keeps
them is in lib/life/author_context.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager

from lib.errors import async_result_or_error
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
    """Enter the lifecycle and each handler's `running` at the same time, as a worker does; leave them after.

    Yields whether all are entered. Each context that raises, or that takes longer than `limit_s` seconds to
    be entered or left, is added to `found` as a problem.
    """
    contexts = [CheckedContext(*context, clock, found, limit_s) for context in _contexts(config)]
    for context in contexts:
        context.begin()
    try:
        yield all([await context.is_entered() for context in contexts])
    finally:
        for context in reversed(contexts):
            await context.leave()


def has_contexts(config: BackendConfig) -> bool:
    """Whether there is a lifecycle, or a handler with a `running` of its own."""
    return any(_contexts(config))


def _contexts(config: BackendConfig) -> Iterator[tuple[str, str, Context]]:
    """Yield each context with the part of the worker that it belongs to, and its name in messages."""
    if config.lifecycle is not None:
        yield "lifecycle", "the lifecycle", config.lifecycle
    for handler in config.handlers:
        context = context_of_handlers([handler])
        if context is not None:
            yield "handlers", f"running() of {type(handler).__name__}", context


class CheckedContext:
    """One context, in a task of its own, and its problem: at most one, when it is known."""

    def __init__(
        self, about: str, name: str, context: Context, clock: Clock, found: Findings, limit_s: float
    ) -> None:
        self._about = about
        self._name = name
        self._clock = clock
        self._found = found
        self._limit_s = limit_s
        self._entered_or_ended = asyncio.Event()
        self._context = AuthorContext(name, context, self._entered_or_ended.set)
        self._kept: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begin to enter the context."""
        self._kept = asyncio.create_task(self._keep())

    async def is_entered(self) -> bool:
        """Wait until the context is entered; return False if it fails, or hangs."""
        assert self._kept is not None
        if not await wait_for(self._clock, self._entered_or_ended, self._limit_s):
            await self._abandon("entering")
        return not self._kept.done()

    async def leave(self) -> None:
        """Leave the context, or stop to enter it: the check was interrupted."""
        assert self._kept is not None
        if not self._entered_or_ended.is_set():
            self._kept.cancel()
        elif not self._kept.done():
            with time_limit(self._clock, self._limit_s) as leaving:
                await self._context.leave()
            if leaving.cancelled_caught:
                await self._abandon("leaving")
        await asyncio.wait({self._kept})

    async def _keep(self) -> None:
        error = await async_result_or_error(self._context.keep())
        self._entered_or_ended.set()
        if error is not None:
            self._found.problem(self._about, f"{self._name} raised {error!r}")

    async def _abandon(self, step: str) -> None:
        """Cancel the context, which hangs, and wait until it has ended or is given up."""
        assert self._kept is not None
        self._found.problem(self._about, f"{self._name} did not finish {step} in {self._limit_s:g} s")
        self._context.abandon()
        self._kept.cancel()
        await asyncio.wait({self._kept})
