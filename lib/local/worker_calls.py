"""Requests that the local engine sends to workers in the place of a client.

Owns the choice of another worker if one can't be reached, and what a failed connection means. Does not own:
which worker is chosen and what is signed (engine.py), what is sent and what becomes of the answer
(openai_gateway.py, tried_requests.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from lib.client import RouteAnswer, describe_workers
from lib.errors import ModelUnreachable, Unavailable, describe_error
from lib.local.engine import LocalEngine
from lib.local.messages import BadMessage, RouteQuery

log = logging.getLogger(__name__)

T = TypeVar("T")

# Workers are on this machine or nearby; without a connection after this many seconds, the next is tried.
CONNECT_TIMEOUT_S = 5.0
# A longer path is cut where the engine's page shows it.
MAX_ROUTE_CHARS = 100
# Seconds until a client should try again. A loading worker takes minutes, but clients wait only seconds.
RETRY_AFTER_S = 5.0
# Failures to connect: nothing was sent, so another worker may be tried.
_CONNECT_ERRORS = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL)


class NotConnected(ModelUnreachable):
    """502: no connection to the worker; it has received nothing of the request."""


async def worker_http(
    engine: LocalEngine, *, auto_decompress: bool = True, skip_auto_headers: Sequence[str] = ()
) -> aiohttp.ClientSession:
    """An HTTP client for workers, also for those with certificates of the engine's authority."""
    tls = await asyncio.to_thread(engine.authority.trusting_context)
    return aiohttp.ClientSession(
        # No keep-alive: a reused connection may be closed already, and a request can't be sent twice, as
        # its signature is valid only once. On one machine, a new connection is cheap.
        connector=aiohttp.TCPConnector(limit=0, force_close=True, ssl=tls),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        auto_decompress=auto_decompress,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=skip_auto_headers,
    )


async def call_worker(
    engine: LocalEngine, endpoint: str, cost: float, call: Callable[[RouteAnswer], Awaitable[T]]
) -> T:
    """Return what `call` does for a ready worker of `endpoint`.

    If it raises `NotConnected`, another worker is tried. Raises what `call` does, and `Unavailable` (503) if
    no worker is ready.
    """
    unreachable: dict[str, NotConnected] = {}
    request_idx = 0
    try:
        while True:
            answer = engine.route(RouteQuery(endpoint, cost, request_idx), avoid=unreachable)
            request_idx = answer["request_idx"]
            url = answer.get("url")
            if url is None:
                raise unreachable.popitem()[1] if unreachable else _no_worker_ready(answer)
            try:
                return await call(RouteAnswer(url, request_idx, answer))
            except NotConnected as e:
                log.warning("request %d: %s", request_idx, e)
                unreachable[url] = e
    finally:
        engine.close(request_idx)  # the worker reports its end too, unless it never received it


async def send(
    engine: LocalEngine,
    http: aiohttp.ClientSession,
    worker: RouteAnswer,
    method: str,
    target: str,
    **options: Any,
) -> aiohttp.ClientResponse:
    """Send one request to `worker`, and return its response, which is to be closed.

    `target` is path and query, encoded already, `options` are those of aiohttp's client. Raises `BadMessage`
    (400) if the target leads to another host, `NotConnected`, and `ModelUnreachable` if the worker accepted
    the connection and then failed: the request may have caused that, or may have been processed in part, so
    no other worker is to be tried.
    """
    url = _url_at(worker, target)
    try:
        response = await http.request(
            method,
            url,
            allow_redirects=False,  # a redirect would hand the signature to another server
            **options,
        )
    except _CONNECT_ERRORS as e:
        raise NotConnected(f"the worker at {worker.url} could not be reached: {e}") from e
    except aiohttp.ServerDisconnectedError as e:  # its message may be the part of an answer that came
        raise ModelUnreachable(f"the worker at {worker.url} closed the connection before it answered") from e
    except (aiohttp.ClientError, OSError) as e:
        why = describe_error(e)
        raise ModelUnreachable(f"the worker at {worker.url} gave no valid answer: {why}") from e
    if routing := engine.open_requests.routing(worker.request_idx):
        routing.route = f"{method} {response.url.path}"[:MAX_ROUTE_CHARS]
        routing.status = response.status
    return response


def _url_at(worker: RouteAnswer, target: str) -> URL:
    """The URL of `target` at `worker`. Raises `NotConnected`, or `BadMessage` for another host's target."""
    try:
        base = URL(worker.url)
        (base.raw_host or "").encode("idna")  # as the look-up of the name does, which may fail for a label
    except ValueError as e:
        raise NotConnected(f"the worker at {worker.url} could not be reached: {e}") from e
    try:
        url = URL(str(base).rstrip("/") + target, encoded=True)
        if (url.scheme, url.raw_host, url.port) == (base.scheme, base.raw_host, base.port):
            return url
    except ValueError as e:
        raise BadMessage(f"the path {target!r} makes no URL: {e}") from e
    raise BadMessage(f"the path {target!r} leads to another host")


def _no_worker_ready(answer: Mapping[str, Any]) -> Unavailable:
    text = describe_workers(answer["status"])
    return Unavailable("none", f"no worker of {answer['endpoint']!r} is ready: {text}", RETRY_AFTER_S)
