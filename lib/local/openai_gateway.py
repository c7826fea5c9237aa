"""The local engine's door for OpenAI clients: `/openai/ENDPOINT/v1/…` is any ready worker's `/v1/…`.

Owns the way from such a client to a worker and back: the key, the cost, the worker and the signature. Which
worker it is and what is signed is engine.py's; what an error looks like openai_errors.py's; how an answer is
passed on lib/model/relay.py's.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import ssl
from collections.abc import AsyncGenerator, Mapping
from typing import Any, TypeGuard, cast
from urllib.parse import unquote_plus

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from lib.errors import (
    AnswerCut,
    BodyTooLarge,
    ClientGone,
    CodingNotUnderstood,
    ModelUnreachable,
    Unavailable,
    WorkerError,
)
from lib.local.engine import LocalEngine
from lib.local.incoming import api_key_of
from lib.local.messages import BadMessage, NotFound, RouteQuery, parse_object
from lib.local.openai_errors import error_answer, own_error, refusal
from lib.model.relay import aborted, end_to_end_headers, pass_on

log = logging.getLogger(__name__)

# What a worker takes of JSON by default (protocol.md §2, Bodies): held here, too, as its cost is in it.
MAX_JSON_BYTES = 64 * 1024 * 1024
# Parsing more than this takes longer than the loop should stand still.
PARSED_AT_ONCE_BYTES = 1024 * 1024
# A worker's own errors are a line; a longer answer is a model server's, and passed on as it comes.
MAX_ERROR_BYTES = 64 * 1024
# Workers are on this machine or near: one that doesn't take a connection for so long, in seconds, won't.
CONNECT_TIMEOUT_S = 5.0
# A worker that loads takes minutes, and clients wait for a few seconds at most.
RETRY_AFTER_S = 5.0

# Workload, as the ready-made OpenAI workers count it: the tokens of the answer x `n` x the prompts.
TOKEN_FIELDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
DEFAULT_COST = 256.0
# A request without a body only asks what there is.
LEAST_COST = 1.0
# Beyond these, workers refuse a request.
MAX_TOKENS = 1_048_576
MAX_N = 128

# Concern this hop, are made anew for the next, or are nobody's business there. `Authorization` is the key.
_NOT_PASSED = ("Authorization", "Content-Length", "Cookie", "Expect", "Host", "X-Vast-Auth")
_ADDED_BY_AIOHTTP = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
# What aiohttp has undone before a handler reads the body.
_UNPACKED = ("gzip", "deflate")
# The connection did not come about: nothing was sent, and another worker may be asked.
# `UnicodeError` is what Python 3.10 says of a host's name that can't be one.
_NOT_CONNECTED = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.InvalidURL,
    UnicodeError,
)


class NotConnected(ModelUnreachable):
    """502: no connection to the worker came about; it knows nothing of the request."""


class OpenAIGateway:
    """The door of one engine; `add_to` gives it to the engine's application."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine
        self._http: aiohttp.ClientSession | None = None
        self._tls: ssl.SSLContext | None = None

    def add_to(self, app: web.Application) -> None:
        """Add the routes, and the HTTP client that is there as long as `app` runs.

        The server must cancel handlers whose client has left: the call to the worker ends with them.
        """
        app.cleanup_ctx.append(self._open)
        app.router.add_route("*", "/openai/{endpoint}/v1/{path:.*}", self._answer)
        app.router.add_route("*", "/openai/{path:.*}", _elsewhere)

    async def _open(self, _: web.Application) -> AsyncGenerator[None, None]:
        self._tls = await asyncio.to_thread(self._engine.authority.trusting_context)
        async with aiohttp.ClientSession(
            # A kept connection may turn out closed once a request is on it, and that request can't be sent
            # again as it is: its signature is good for once. A new one costs little on one machine.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_ADDED_BY_AIOHTTP,
        ) as self._http:
            yield

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        """A worker's answer, or why there is none."""
        try:
            return await self._served(request)
        except WorkerError as e:
            return refusal(e)
        except AnswerCut as e:
            log.warning("%s: %s", request.rel_url.raw_path, e)
            return aborted(request)
        except ClientGone:
            return aborted(request)

    async def _served(self, request: web.Request) -> web.StreamResponse:
        """Raises `WorkerError` while the client has seen nothing of an answer, `AnswerCut`, `ClientGone`."""
        endpoint = request.match_info["endpoint"]
        self._engine.authenticate(api_key_of(request, {}))
        if self._engine.groups.named(endpoint) is None:
            raise NotFound(f"no worker has joined the endpoint {endpoint!r}")
        body = await _read(request)
        unreached: dict[str, NotConnected] = {}
        request_idx = 0
        try:
            while True:
                query = RouteQuery(endpoint, body.cost, request_idx)
                auth_data = self._engine.route(query, avoid=unreached)
                request_idx = auth_data["request_idx"]
                url = auth_data.get("url")
                if url is None:
                    raise unreached.popitem()[1] if unreached else _none_ready(auth_data)
                try:
                    return await self._forward(request, body, url, auth_data)
                except NotConnected as e:
                    log.warning("request %d: %s", request_idx, e)
                    unreached[url] = e
        finally:
            self._engine.close(request_idx)  # its worker tells, too, unless it never heard of it

    async def _forward(
        self, request: web.Request, body: _Body, url: str, auth_data: Mapping[str, Any]
    ) -> web.StreamResponse:
        """The answer of the worker at `url`. Raises `NotConnected`, and what `_served` raises.

        A worker that took the connection and then failed is not replaced by another: the request may be what
        it failed of, and may have been served in part.
        """
        assert self._http is not None
        assert self._tls is not None
        headers = _forwarded_headers(request)
        headers.update(body.headers)
        headers["X-Vast-Auth"] = base64.urlsafe_b64encode(json.dumps(auth_data).encode()).decode()
        try:
            response = await self._http.request(
                request.method,
                _target(request, url),
                headers=headers,
                data=body.data(),
                allow_redirects=False,
                ssl=self._tls,
            )
        except _NOT_CONNECTED as e:
            raise NotConnected(f"the worker at {url} could not be reached: {e}") from e
        except (aiohttp.ClientError, OSError) as e:
            if body.failure is not None:
                raise body.failure from e
            raise ModelUnreachable(f"the worker at {url} hung up before it answered") from e
        async with response:
            return await _passed_on(request, response)


class _Body:
    """The client's body as a worker gets it: `held` in memory, or as it comes, which can be had only once.

    `failure` is what went wrong with one that comes, if anything has: the worker's fault it was not.
    """

    def __init__(self, request: web.Request, held: bytes | None, cost: float) -> None:
        self.cost = cost
        self.failure: BadMessage | ClientGone | None = None
        self._request = request
        self._held = held

    @property
    def headers(self) -> Mapping[str, str]:
        length = self._request.headers.get("Content-Length")
        if self._held is None and length is not None and _coding(self._request) not in _UNPACKED:
            return {"Content-Length": length}
        return {}

    def data(self) -> io.BytesIO | AsyncGenerator[bytes, None] | None:
        """For aiohttp's client, each time that it is sent."""
        if self._held is not None:
            return io.BytesIO(self._held)
        return self._parts() if self._request.body_exists else None

    async def _parts(self) -> AsyncGenerator[bytes, None]:
        try:
            async for part in self._request.content.iter_any():
                yield part
        except web.RequestPayloadError as e:
            self.failure = _unreadable(e)
            raise
        except OSError:
            self.failure = ClientGone()
            raise


async def _read(request: web.Request) -> _Body:
    """The body; JSON is held, and told the cost by. Raises `WorkerError` (400, 413, 415)."""
    coding = _coding(request)
    if coding not in ("", "identity", *_UNPACKED):
        raise CodingNotUnderstood(f"request bodies in {coding!r} are not understood: send identity or gzip")
    if not request.body_exists:
        return _Body(request, None, LEAST_COST)
    if not _is_json(request.content_type):
        return _Body(request, None, DEFAULT_COST)
    try:
        held = await request.clone(client_max_size=MAX_JSON_BYTES).read()
    except web.HTTPRequestEntityTooLarge as e:
        raise BodyTooLarge(f"a JSON body may have {MAX_JSON_BYTES} bytes") from e
    except web.RequestPayloadError as e:
        raise _unreadable(e) from e
    if not held:
        return _Body(request, held, LEAST_COST)
    if len(held) <= PARSED_AT_ONCE_BYTES:
        message = parse_object(held)
    else:
        message = await asyncio.to_thread(parse_object, held)
    return _Body(request, held, cost_of(message))


def cost_of(message: Mapping[str, object]) -> float:
    """The workload of a request whose body is `message`; what a worker will refuse counts as left out."""
    limits = [message.get(name) for name in TOKEN_FIELDS]
    tokens = max((n for n in limits if _is_count(n, MAX_TOKENS)), default=DEFAULT_COST)
    n = message.get("n")
    prompt = message.get("prompt")
    batch = cast("list[object]", prompt) if isinstance(prompt, list) else []
    prompts = len(batch) if batch and isinstance(batch[0], (str, list)) else 1
    return float(tokens * (n if _is_count(n, MAX_N) else 1) * prompts)


async def _passed_on(request: web.Request, response: aiohttp.ClientResponse) -> web.StreamResponse:
    """The worker's answer; one of its own errors in OpenAI's shape."""
    if not _may_beown_error(request, response):
        return await pass_on(request, response)
    try:
        body = await response.read()
    except aiohttp.ClientError as e:
        raise AnswerCut(f"the worker's answer broke off: {e}") from e
    headers = end_to_end_headers(response.headers)
    headers.popall("Content-Length", None)
    if (own := own_error(response.status, body)) is not None:
        headers.popall("Content-Type", None)
        return error_answer(response.status, *own, headers)
    return web.Response(status=response.status, reason=response.reason, headers=headers, body=body)


def _may_beown_error(request: web.Request, response: aiohttp.ClientResponse) -> bool:
    length = response.content_length
    return (
        response.status >= 400
        and request.method != "HEAD"
        and _is_json(response.content_type)
        and length is not None
        and length <= MAX_ERROR_BYTES
        and "Content-Encoding" not in response.headers
    )


async def _elsewhere(request: web.Request) -> web.Response:
    told = "the base URL for OpenAI clients ends in /openai/ENDPOINT/v1"
    return refusal(NotFound(f"there is no {request.path}: {told}"))


def _none_ready(answer: Mapping[str, Any]) -> Unavailable:
    states = [f"{count} {state}" for state, count in answer["status"].items() if count]
    told = ", ".join(states) or "none has joined it"
    return Unavailable("none", f"no worker of {answer['endpoint']!r} is ready: {told}", RETRY_AFTER_S)


def _unreadable(error: web.RequestPayloadError) -> BadMessage:
    return BadMessage(f"the body can't be read: {error}")


def _target(request: web.Request, worker_url: str) -> URL:
    """The path from `/v1` on and the query, as they came, less `api_key`, at the worker."""
    path = request.rel_url.raw_path.split("/", 3)[3]
    pairs = request.rel_url.raw_query_string.split("&")
    query = "&".join(pair for pair in pairs if unquote_plus(pair.partition("=")[0]) != "api_key")
    target = f"{worker_url.rstrip('/')}/{path}" + (f"?{query}" if query else "")
    return URL(target, encoded=True)


def _forwarded_headers(request: web.Request) -> CIMultiDict[str]:
    headers = end_to_end_headers(request.headers)
    for name in _NOT_PASSED:
        headers.popall(name, None)
    if _coding(request) in _UNPACKED:
        headers.popall("Content-Encoding")
    return headers


def _coding(request: web.Request) -> str:
    return request.headers.get("Content-Encoding", "").strip().lower()


def _is_count(value: object, most: int) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= most


def _is_json(content_type: str) -> bool:
    return content_type == "application/json" or content_type.endswith("+json")
