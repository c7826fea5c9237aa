"""One request to a worker, its answer printed as it comes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import aiohttp

from lib.client import RouteClient, Target, describe_workers


class Refused(Exception):
    """The answer's status is an error's; its body was printed."""


async def send(target: Target, route: str, payload: Mapping[str, Any], cost: float) -> None:
    """Print the answer to `payload` on standard output, each part when it is there.

    Raises `Refused`, and what `RouteClient` raises.
    """
    async with aiohttp.ClientSession() as http:
        engine = RouteClient(http, target)
        worker = await engine.route(cost, on_wait=_Waiting().say)
        async with engine.call(worker, route, payload) as answer:
            last = b"\n"
            async for part in answer.content.iter_any():
                sys.stdout.buffer.write(part)
                sys.stdout.buffer.flush()
                last = part
            if not last.endswith(b"\n"):
                print(flush=True)
            if answer.status >= 400:
                raise Refused(f"{worker.url}{route} answered {answer.status} {answer.reason}")


class _Waiting:
    """Says that no worker is ready, once for each change of what the engine tells of them."""

    def __init__(self) -> None:
        self._said: Any = None

    def say(self, workers: Any) -> None:
        if workers != self._said:
            self._said = workers
            print(
                f"no worker is ready yet: {describe_workers(workers)}; `pyworker status` tells why",
                file=sys.stderr,
            )
