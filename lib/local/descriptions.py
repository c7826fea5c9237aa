"""The descriptions of workers' routes, which the engine asks their loopback ports for.

Owns which worker of an endpoint is asked, what makes an answer a description, and the reason if there is
none. Does not own what a description says (lib/routes/openapi.py) or how it is shown (docs_page.py).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import aiohttp
import anyio

from lib.errors import WorkerError, describe_error
from lib.local.engine import LocalEngine
from lib.local.fleet import WorkerRecord
from lib.local.messages import BadMessage, parse_object
from lib.routes.api_page import DescribedRoute, has_envelope, routes_in

# For all workers together. Making the examples in a description calls author code, which may take long.
ANSWER_TIMEOUT_S = 20.0
# After so long without an answer, the next worker is asked too.
PATIENCE_S = 2.0
MAX_DESCRIPTION_BYTES = 1024 * 1024
# A deeper document can't be shown: what writes it is recursive.
MAX_DEPTH = 100
# The routes of a document can share types, so that what they show is much more than the document.
MAX_SHOWN_CHARS = 4 * 1024 * 1024
_ROW_CHARS = 100
# What a URL's path may have, without escapes, before it ends (RFC 3986, section 3.3).
_PATH = re.compile(r"/[^\x00-\x20\x7f-\U0010ffff?#\\]*")
# In the engine's own questions: an engine does not pass them on, so that they can't go round in a circle.
ASKED_BY_ENGINE = "X-PyWorker-Asked-By-Engine"
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
    """Asks the workers of `engine` over `http`, and keeps the latest answer of each endpoint.

    A description of more than `max_bytes` is none. Together, the workers have `timeout_s` to give one; after
    `patience_s` without an answer, the next one is asked too.
    """

    def __init__(
        self,
        engine: LocalEngine,
        http: aiohttp.ClientSession,
        *,
        max_bytes: int = MAX_DESCRIPTION_BYTES,
        timeout_s: float = ANSWER_TIMEOUT_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._engine = engine
        self._http = http
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._latest: dict[str, Description | NotDescribed] = {}
        self._asking: dict[str, asyncio.Lock] = {}

    async def ask(self, endpoint: str) -> Description:
        """Return the description of the first worker that gives one; ready workers are asked first.

        The workers of an endpoint are asked once at a time: who asks meanwhile gets the same answer. Raises
        `NotDescribed` (503).
        """
        workers = self._engine.fleet.members(endpoint)
        if not workers:
            self._latest.pop(endpoint, None)
            self._asking.pop(endpoint, None)
            raise NotDescribed(f"No worker has joined the endpoint {endpoint!r} yet.")
        before = self._latest.get(endpoint)
        async with self._asking.setdefault(endpoint, asyncio.Lock()):
            answer = self._latest.get(endpoint)
            if answer is None or answer is before:
                answer = self._latest[endpoint] = await self._ask_in_turn(workers)
        if isinstance(answer, NotDescribed):
            raise NotDescribed(answer.message)
        return answer

    async def latest(self, endpoint: str) -> Description:
        """Return the description that was shown last; ask only if there is none. Raises `NotDescribed`."""
        latest = self._latest.get(endpoint)
        return latest if isinstance(latest, Description) else await self.ask(endpoint)

    async def _ask_in_turn(self, workers: Sequence[WorkerRecord]) -> Description | NotDescribed:
        """Ask one worker after the other; one that takes long does not hold up the next."""
        found: list[Description] = []
        problems: dict[int, str] = {}

        async def ask(worker: WorkerRecord, answered: anyio.Event) -> None:
            answer = await self._ask(worker)
            if isinstance(answer, Description):
                found.append(answer)
                group.cancel_scope.cancel()
            else:
                problems[worker.id] = answer
            answered.set()

        with anyio.move_on_after(self._timeout_s):
            async with anyio.create_task_group() as group:
                for worker in sorted(workers, key=lambda w: (w.state != "ready", w.id)):
                    answered = anyio.Event()
                    problems[worker.id] = f"Worker {worker.id} did not answer within {self._timeout_s:g} s."
                    group.start_soon(ask, worker, answered)
                    with anyio.move_on_after(self._patience_s):
                        await answered.wait()
        return found[0] if found else NotDescribed(" ".join([*problems.values()][:MAX_TOLD]))

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
        return await asyncio.to_thread(described_by, worker.id, worker.last.url, body) or (
            f"Worker {worker.id} answers at {url} with no description of its routes."
        )

    async def _read(self, url: str) -> bytes:
        """The start of what is at `url`, as much as a description may have."""
        body, headers = bytearray(), {ASKED_BY_ENGINE: "1"}
        async with self._http.get(url, headers=headers, allow_redirects=False) as answer:
            async for part in answer.content.iter_any():
                body += part
                if len(body) > self._max_bytes:
                    break
        return bytes(body[: self._max_bytes])


def described_by(worker_id: int, worker_url: str, body: bytes) -> Description | None:
    """The description in `body`; None if it is malformed, or that of a worker with another URL.

    The port may be another program's meanwhile, so `body` may be anything. A large one takes a while: call it
    in a thread.
    """
    try:
        document = cast("Mapping[str, Any]", parse_object(body))
        if document["servers"][0]["url"] != worker_url or _is_deeper(document, MAX_DEPTH):
            return None
        has_envelope(document)  # the page asks this
        routes = _shown_routes(document)
        return Description(worker_id, worker_url, document, routes) if routes is not None else None
    except (BadMessage, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _shown_routes(document: Mapping[str, Any]) -> Sequence[DescribedRoute] | None:
    """The routes; None if a path could lead elsewhere, or if a page of them would be too large."""
    routes: list[DescribedRoute] = []
    shown = 0
    for route in routes_in(document):
        shown += sum(_ROW_CHARS + len(f"{each.name}{each.words}{each.initial}") for each in route.fields)
        if shown > MAX_SHOWN_CHARS or not _PATH.fullmatch(route.path):
            return None
        routes.append(route)
    return routes


def _is_deeper(value: object, levels: int) -> bool:
    """Whether objects and lists in `value` are nested in more than so many levels."""
    level: list[object] = [value]
    for _ in range(levels):
        level = [child for each in level for child in _children(each)]
        if not level:
            return False
    return True


def _children(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return cast("dict[str, object]", value).values()
    return cast("list[object]", value) if isinstance(value, list) else ()
