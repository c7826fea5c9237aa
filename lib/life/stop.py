"""The request to stop a worker: first to drain, then to stop immediately.

Owns this request and what it interrupts. lib/server.py makes it on SIGTERM and SIGINT, and carries it out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio


class Stop:
    """A request to stop the worker. `ask` once to drain, a second time to stop immediately.

    `failed` is set when the stop is due to an error and not to a signal. `on_immediate` is called when an
    immediate stop is asked for.
    """

    def __init__(self) -> None:
        self.on_immediate: Callable[[], None] = _nothing
        self.asked = anyio.Event()
        self.immediate = anyio.Event()
        self.failed = False

    def ask(self) -> None:
        """Ask for a drain or, if one was already asked for, for an immediate stop."""
        if not self.asked.is_set():
            self.asked.set()
            return
        self.immediate.set()
        self.on_immediate()

    def fail(self) -> None:
        """Ask for a drain after an unexpected error; the exit status will report the error."""
        self.failed = True
        self.asked.set()

    async def run_unless_immediate(self, work: Callable[[], Awaitable[object]]) -> None:
        """Run `work`; cancel it if an immediate stop is asked for meanwhile."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._cancel_when_immediate, group.cancel_scope)
            await work()
            group.cancel_scope.cancel()

    async def _cancel_when_immediate(self, scope: anyio.CancelScope) -> None:
        await self.immediate.wait()
        scope.cancel()


def _nothing() -> None:
    return None
