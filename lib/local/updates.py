"""Asking workers to update themselves, as the engine does: `POST /pyworker/update` (protocol.md §4).

Owns the request and what is told of its answer. What a worker does about it is start_server.sh's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence

import aiohttp

from lib.local.authority import Authority
from lib.local.fleet import WorkerRecord

# It only writes a file.
LIMIT_S = 10.0


async def ask_for_updates(workers: Sequence[WorkerRecord], authority: Authority) -> dict[str, str]:
    """What became of it with each worker, by its id: "asked", or why not."""
    context = await asyncio.to_thread(authority.trusting_context)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT_S)) as http:
        told = await asyncio.gather(*(_ask(http, worker, context) for worker in workers))
    return {str(worker.id): what for worker, what in zip(workers, told, strict=True)}


async def _ask(http: aiohttp.ClientSession, worker: WorkerRecord, context: ssl.SSLContext) -> str:
    if worker.state == "stopped" or worker.last is None or not worker.last.url:
        return "not asked: it is stopped"
    headers = {"Authorization": f"Bearer {worker.last.mtoken}"}
    url = worker.last.url.rstrip("/") + "/pyworker/update"
    try:
        async with http.post(url, headers=headers, ssl=context, allow_redirects=False) as answer:
            if answer.status == 401 and not worker.last.mtoken:
                return "refused: it has no MASTER_TOKEN"
            return "asked" if answer.status == 200 else f"refused: HTTP {answer.status}"
    except asyncio.TimeoutError:
        return f"not reached: no answer within {LIMIT_S:g} s"
    except aiohttp.ClientError as e:
        return f"not reached: {e}"
