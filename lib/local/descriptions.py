"""The descriptions of workers' routes, which the engine asks their loopback ports for.

Owns which worker of an endpoint is asked, what makes an answer a description, and the reason if there is
none. Does not own what a description says (lib/routes/openapi.py) or how it is shown (docs_page.py).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import aiohttp

from lib.errors import WorkerError, describe_error
from lib.local.engine import LocalEngine
from lib.local.fleet import WorkerRecord
from lib.routes.api_page import DescribedRoute, routes_in

# Making the examples in a description calls author code, which may take long.
ANSWER_TIMEOUT_S = 20.0
MAX_DESCRIPTION_BYTES = 8 * 1024 * 1024
# Of so many workers it is said why they can't be asked.
MAX_TOLD = 5
# The place of the page on a worker's own machine, for those that can't be asked.
OWN_PAGE = "http://127.0.0.1:3001/docs"


class NotDescribed(WorkerError):
    """503: no worker of the endpoint has described its routes; the message says why, and what to do."""

    status = 503


@dataclass(frozen=True)
class Description:
    """The routes of an endpoint as the worker `worker_id`, at `worker_url`, describes them."""

    worker_id: int
    worker_url: str
    document: Mapping[str, Any]
    routes: Sequence[DescribedRoute]


class Descriptions:
    """Asks the workers of `engine` over `http`, and keeps the latest description of each endpoint.

    A description of more than `max_bytes` is none.
    """

    def __init__(
        self, engine: LocalEngine, http: aiohttp.ClientSession, max_bytes: int = MAX_DESCRIPTION_BYTES
    ) -> None:
        self._engine = engine
        self._http = http
        self._max_bytes = max_bytes
        self._latest: dict[str, Description] = {}

    async def ask(self, endpoint: str) -> Description:
        """Return the description of the first worker that gives one; ready workers are asked first.

        Raises `NotDescribed` (503).
        """
        workers = self._engine.fleet.members(endpoint)
        problems: list[str] = []
        for worker in sorted(workers, key=lambda w: (w.state != "ready", w.id)):
            description = await self._ask(worker)
            if isinstance(description, Description):
                self._latest[endpoint] = description
                return description
            problems.append(description)
        self._latest.pop(endpoint, None)
        nobody = f"No worker has joined the endpoint {endpoint!r} yet."
        raise NotDescribed(" ".join(problems[:MAX_TOLD]) or nobody)

    async def latest(self, endpoint: str) -> Description:
        """Return the description that was shown last; ask only if there is none. Raises `NotDescribed`."""
        return self._latest.get(endpoint) or await self.ask(endpoint)

    async def _ask(self, worker: WorkerRecord) -> Description | str:
        """The description of `worker`, or the reason that there is none."""
        if worker.state == "stopped" or worker.last is None:
            return f"Worker {worker.id} is stopped: {worker.why}."
        if not worker.loopback_url:
            return (
                f"Worker {worker.id} can't be asked: its reports name no loopback port on this machine. It "
                "runs elsewhere, or in a container, or is older than this engine. Its own page is on its "
                f"machine, at {OWN_PAGE} by default."
            )
        url = f"{worker.loopback_url}/openapi.json"
        try:
            body = await self._read(url)
        except (aiohttp.ClientError, asyncio.TimeoutError, UnicodeError) as e:
            why = describe_error(e)
            return f"Worker {worker.id} does not answer at {url} ({why}). Is it still running?"
        return described_by(worker.id, worker.last.url, body) or (
            f"Worker {worker.id} answers at {url} with no description of its routes."
        )

    async def _read(self, url: str) -> bytes:
        """The start of what is at `url`, as much as a description may have."""
        timeout, body = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S), bytearray()
        async with self._http.get(url, timeout=timeout, allow_redirects=False) as answer:
            async for part in answer.content.iter_any():
                body += part
                if len(body) > self._max_bytes:
                    break
        return bytes(body[: self._max_bytes])


def described_by(worker_id: int, worker_url: str, body: bytes) -> Description | None:
    """The description in `body`; None if it is malformed, or that of a worker with another URL.

    The port may be another program's meanwhile, so `body` may be anything.
    """
    try:
        document: Any = json.loads(body)
        if document["servers"][0]["url"] != worker_url:
            return None
        routes = tuple(routes_in(document))
        return Description(worker_id, worker_url, cast("Mapping[str, Any]", document), routes)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
