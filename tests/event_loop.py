"""Waiting for other tasks of the test's event loop, without a clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio

from tests.guard import GUARD_S

# More turns than the tasks of a unit test need for all effects of one step.
_TURNS = 12


async def run_event_loop_turns(turns: int = _TURNS) -> None:
    """Let the other tasks run for this number of turns of the event loop."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Return once `condition` holds; checks it again after each turn, since no event announces it."""
    with anyio.fail_after(GUARD_S):
        while not condition():
            await anyio.lowlevel.checkpoint()
