"""The first of several routes that a model server answers; for the benchmarks of embeddings and whisper.

Owns the choice, which is remembered. Servers of one kind have different routes for the same work.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager

from aiohttp import ClientResponse, web


class RouteChoice:
    """Tries routes in order. An answer with a status in `refusals` means: try the next route."""

    def __init__(self, refusals: Collection[int]) -> None:
        self._refusals = refusals
        self._chosen: str | None = None

    async def ask(
        self, calls: Mapping[str, Callable[[], AbstractAsyncContextManager[ClientResponse]]]
    ) -> tuple[str, web.Response]:
        """Return the path and the answer of the chosen route, or of the first one if all refuse.

        `calls` has a call for each path. Once a route has answered with 2xx, only that one is called, until
        it refuses.
        """
        first: tuple[str, web.Response] | None = None
        for path, call in calls.items():
            if self._chosen not in (None, path):
                continue
            async with call() as answer:
                found = path, web.Response(status=answer.status, body=await answer.read())
            if answer.status not in self._refusals:
                if answer.status < 300:
                    self._chosen = path
                return found
            first = first or found
        self._chosen = None
        assert first is not None, "there is no route to call"
        return first
