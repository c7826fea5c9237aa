"""One request to a worker, for `pyworker request`: the answer is printed as it arrives."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import aiohttp

from lib.client import RouteClient, Target, describe_workers


class ErrorAnswer(Exception):
    """The worker answered with a status of 400 or above; the body has been printed."""


async def send(target: Target, route: str, payload: Mapping[str, Any], cost: float) -> None:
    """Send `payload` to `route`, and print the answer's body to standard output as it arrives.

    `cost` is the request's workload in the worker's unit. Raises `ErrorAnswer`, and the errors of
    `RouteClient.route` and `RouteClient.call`.
    """
    async with aiohttp.ClientSession() as http:
        engine = RouteClient(http, target)
        worker = await engine.route(cost, on_wait=_WaitingPrinter().show)
        async with engine.call(worker, route, payload) as answer:
            last = b"\n"
            async for part in answer.content.iter_any():
                sys.stdout.buffer.write(part)
                sys.stdout.buffer.flush()
                last = part
            if not last.endswith(b"\n"):
                print(flush=True)
            if answer.status >= 400:
                raise ErrorAnswer(f"{worker.url}{route} answered {answer.status} {answer.reason}")


class _WaitingPrinter:
    """Prints that no worker is ready, once for each change of the workers' states."""

    def __init__(self) -> None:
        self._last: Any = None

    def show(self, workers: Any) -> None:
        if workers != self._last:
            self._last = workers
            print(
                f"no worker is ready yet: {describe_workers(workers)}; `pyworker status` shows why",
                file=sys.stderr,
            )
