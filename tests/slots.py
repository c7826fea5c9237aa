"""Holding a slot of a queue, as requests do."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from lib.request.lanes import SlotQueue


@asynccontextmanager
async def holding(queue: SlotQueue, max_wait_s: float | None = None) -> AsyncGenerator[None, None]:
    """Take a slot, waiting at most `max_wait_s` for it, and hold it inside the block."""
    if not queue.try_acquire():
        await queue.wait(max_wait_s)
    try:
        yield
    finally:
        queue.release()
