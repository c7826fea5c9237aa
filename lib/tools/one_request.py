"""One request to a worker, for `pyworker request`: the answer is printed as it arrives."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import aiohttp

from lib.client import CLOUD_ENGINES, RouteClient, Target, describe_workers
from lib.runtime.clock import SystemClock, time_limit
from lib.tools.joined import check_joined
from lib.tools.late_error import LateErrorWatch
from lib.tools.request_style import PLAIN, RequestStyle

# Seconds to wait for a ready worker, unless a limit is given.
WORKER_LIMIT_S = 600.0
# Of an answer, for a hint: more than a refusal of a route that takes a file.
MAX_HEAD_BYTES = 1000


class ErrorAnswer(Exception):
    """The worker answered with an error: a `status` of 400 or above, or one after a heartbeat.

    The body, of which `head` is the beginning, has been printed.
    """

    def __init__(self, message: str, status: int, head: str) -> None:
        super().__init__(message)
        self.status = status
        self.head = head


class NoAnswer(Exception):
    """There was no complete answer in time."""


async def send(
    target: Target,
    route: str,
    payload: Mapping[str, Any],
    cost: float,
    style: RequestStyle = PLAIN,
    limit_s: float | None = None,
) -> None:
    """Send `payload` to `route`, and print the answer's body to standard output as it arrives.

    `cost` is the request's workload in the worker's unit. `limit_s` is the time for all of it, in seconds,
    and the wait for a worker to join the endpoint. Without it, a ready worker is awaited for 600 s, and the
    answer for any time.

    Raises `NobodyJoined`, `ErrorAnswer`, `NoAnswer`, `OSError` for a file that can't be read, and the errors
    of `RouteClient.route` and `RouteClient.call`.
    """
    with time_limit(SystemClock(), math.inf if limit_s is None else limit_s):
        async with aiohttp.ClientSession() as http:
            if limit_s is None:
                await check_joined(http, target)
            engine, waiting = RouteClient(http, target), _WaitingPrinter(target)
            wait_s = WORKER_LIMIT_S if limit_s is None else limit_s
            worker = await engine.route(cost, limit_s=wait_s, on_wait=waiting.show)
            async with style.call(engine, worker, route, payload) as answer:
                head, late_error = await _print_body(answer)
                said = f"{worker.url}{route} answered {answer.status} {answer.reason}"
                if late_error is not None and answer.status < 400:
                    said += ", then an error: the body after the heartbeat's newlines"
                if late_error is not None or answer.status >= 400:
                    raise ErrorAnswer(said, answer.status, head.decode(errors="replace"))
        return
    raise NoAnswer(f"no complete answer within {limit_s:g} s")


async def _print_body(answer: aiohttp.ClientResponse) -> tuple[bytes, Any]:
    """Print the body as it arrives.

    Return its beginning, of at most MAX_HEAD_BYTES, and the error in it, if a heartbeat has begun it.
    """
    last, head, late = b"\n", b"", LateErrorWatch()
    async for part in answer.content.iter_any():
        late.add(part)
        head += part[: MAX_HEAD_BYTES - len(head)]
        sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
        last = part
    if not last.endswith(b"\n"):
        print(flush=True)
    return head, late.error()


class _WaitingPrinter:
    """Prints that no worker is ready, once for each change of the workers' states."""

    def __init__(self, target: Target) -> None:
        self._last: Any = None
        is_local = target.engine_url not in CLOUD_ENGINES
        self._hint = f"; {target.engine_url.rstrip('/')}/ shows them" if is_local else ""

    def show(self, workers: Any) -> None:
        if workers != self._last:
            self._last = workers
            print(f"no worker is ready yet: {describe_workers(workers)}{self._hint}", file=sys.stderr)
