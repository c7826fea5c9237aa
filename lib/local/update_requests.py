"""Asks workers to update themselves, with `POST /pyworker/update` (docs/protocol.md, "Management routes").

Owns the request and the description of its result. Does not own the update itself (start_server.sh).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence

import aiohttp

from lib.local.authority import Authority
from lib.local.fleet import WorkerRecord

# Seconds to wait for a worker's answer; the route only writes a file.
UPDATE_LIMIT_S = 10.0


async def request_updates(workers: Sequence[WorkerRecord], authority: Authority) -> dict[str, str]:
    """Ask all workers at once; return the result by worker id: "asked", or why not."""
    context = await asyncio.to_thread(authority.trusting_context)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=UPDATE_LIMIT_S)) as http:
        results = await asyncio.gather(*(_ask(http, worker, context) for worker in workers))
    return {str(worker.id): result for worker, result in zip(workers, results, strict=True)}


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
        return f"not reached: no answer within {UPDATE_LIMIT_S:g} s"
    except aiohttp.ClientError as e:
        return f"not reached: {e}"
