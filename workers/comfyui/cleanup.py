"""Cleaning up in ComfyUI after a request: it is done to its end, also if the request is cancelled again.

Owns the time that it may take, and the log of its failure. What is removed is in jobs.py and inputs.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import anyio

from lib.errors import WorkerError, async_result_or_error

log = logging.getLogger(__name__)

# Seconds that removing a prompt or files may take after a request.
CLEANUP_LIMIT_S = 10.0


async def clean_up(work: Coroutine[Any, Any, None], what: str, limit_s: float = CLEANUP_LIMIT_S) -> None:
    """Run `work`, for at most `limit_s` seconds, and delay cancellations until it has ended.

    Its failure is logged: `what` could not be removed.
    """
    removal = asyncio.ensure_future(_run_in_time(work, what, limit_s))
    with anyio.CancelScope(shield=True):
        try:
            await asyncio.wait({removal})
        except asyncio.CancelledError:
            await asyncio.wait({removal})
            raise


async def _run_in_time(work: Coroutine[Any, Any, None], what: str, limit_s: float) -> None:
    with anyio.move_on_after(limit_s) as scope:
        failure = await async_result_or_error(work)
        if failure is not None:
            level = logging.WARNING if isinstance(failure, WorkerError) else logging.ERROR
            log.log(level, "%s could not be removed from ComfyUI: %s", what, failure)
    if scope.cancelled_caught:
        log.warning("%s could not be removed from ComfyUI within %g s", what, limit_s)
