"""The OpenAI gateway: forwards `/openai/ENDPOINT/v1/…` to `/v1/…` of a ready worker.

Owns the forwarding of requests: key, cost, headers. Does not own: the choice of the worker and the signature
(engine.py), retries (worker_calls.py), the format of errors (openai_errors.py), the relay of answers
(lib/model/relay.py).
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import TypeGuard, cast

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from lib.access.body import content_coding
from lib.access.envelope import PARSED_WHOLE_BYTES
from lib.access.payload import is_json
from lib.client import RouteAnswer, auth_headers
from lib.errors import (
    AnswerCut,
    BodyTooLarge,
    ClientGone,
    CodingNotUnderstood,
    ModelUnreachable,
    WorkerError,
    aborted,
)
from lib.local.engine import LocalEngine
from lib.local.messages import BadMessage, NotFound, parse_object
from lib.local.openai_errors import gateway_error, openai_error, worker_error
from lib.local.request_reading import api_key_of
from lib.local.worker_calls import call_worker, send, worker_http
from lib.model.relay import end_to_end_headers, pass_on
from lib.runtime.settings import Settings
from lib.runtime.urls import without_api_key

log = logging.getLogger(__name__)

# A worker's default limit for JSON bodies (docs/protocol.md, "Bodies"). They are buffered here to read
# the cost from them.
MAX_JSON_BYTES = Settings.max_json_bytes
# A worker's own errors are short. Longer errors come from the model server and are relayed unchanged.
MAX_ERROR_BYTES = 64 * 1024

# The cost is counted like in the ready-made OpenAI workers: answer tokens x `n` x prompts.
TOKEN_FIELDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
DEFAULT_COST = 256.0
# A request without a body, such as a list of models, does no work on the model.
MIN_COST = 1.0
# Workers refuse requests above these limits.
MAX_TOKENS = 1_048_576
MAX_N = 128

# Request headers not forwarded: they belong to this connection, are set again, or hold the client's secrets.
# `Authorization` has the engine's API key.
_NOT_FORWARDED = ("Authorization", "Content-Length", "Cookie", "Expect", "Host", "X-Vast-Auth")
_ADDED_BY_AIOHTTP = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
# Content codings that aiohttp decodes before a handler reads the body.
_DECODED_BY_AIOHTTP = ("gzip", "deflate")


class OpenAIGateway:
    """The OpenAI gateway of one engine; `add_to` adds it to the engine's application."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine
        self._http: aiohttp.ClientSession | None = None

    def add_to(self, app: web.Application) -> None:
        """Add the routes, and an HTTP client that lives as long as `app`.

        The server must cancel the handlers of clients that disconnect, which also ends their calls to
        workers.
        """
        app.cleanup_ctx.append(self._open)
        app.router.add_route("*", "/openai/{endpoint}/v1/{path:.*}", self._answer)
        app.router.add_route("*", "/openai/{path:.*}", _not_found)

    async def _open(self, _: web.Application) -> AsyncGenerator[None, None]:
        async with await worker_http(
            self._engine, auto_decompress=False, skip_auto_headers=_ADDED_BY_AIOHTTP
        ) as self._http:
            yield

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        """Answer with a worker's answer or with an error in OpenAI's format."""
        try:
            return await self._respond(request)
        except WorkerError as e:
            return gateway_error(e)
        except AnswerCut as e:
            log.warning("%s: %s", request.rel_url.raw_path, e)
            return aborted(request)
        except ClientGone:
            return aborted(request)

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        """Route the request and forward it, to another worker if one can't be reached.

        Raises `WorkerError` before an answer has begun, `AnswerCut` if a worker's answer ends early, and
        `ClientGone` if the client disconnects.
        """
        self._engine.authenticate(api_key_of(request, {}))
        endpoint = self._engine.groups.joined(request.match_info["endpoint"])
        body = await _read_body(request)
        return await call_worker(
            self._engine, endpoint.name, body.cost, partial(self._forward, request, body)
        )

    async def _forward(
        self, request: web.Request, body: _RequestBody, worker: RouteAnswer
    ) -> web.StreamResponse:
        """Relay the answer of `worker`. Raises what `_respond` and `send` do."""
        assert self._http is not None
        headers = _forwarded_headers(request)
        headers.update(body.headers)
        headers.update(auth_headers(worker))
        try:
            response = await send(
                *(self._engine, self._http, worker, request.method, _target(request)),
                headers=headers,
                data=body.data(),
            )
        except ModelUnreachable as e:
            if body.failure is not None:
                raise body.failure from e
            raise
        async with response:
            return await _relay(request, response)


class _RequestBody:
    """The client's body as it is forwarded: `buffered` in memory, or streamed, which is possible only once.

    `failure` is the error on the client's side that ended a streamed body, if any.
    """

    def __init__(self, request: web.Request, buffered: bytes | None, cost: float) -> None:
        self.cost = cost
        self.failure: BadMessage | ClientGone | None = None
        self._request = request
        self._buffered = buffered

    @property
    def headers(self) -> Mapping[str, str]:
        """The client's `Content-Length` for a streamed body whose length stays the same."""
        length = self._request.headers.get("Content-Length")
        if (
            self._buffered is None
            and length is not None
            and content_coding(self._request) not in _DECODED_BY_AIOHTTP
        ):
            return {"Content-Length": length}
        return {}

    def data(self) -> io.BytesIO | AsyncGenerator[bytes, None] | None:
        """The body for one call of aiohttp's client; None if there is no body."""
        if self._buffered is not None:
            return io.BytesIO(self._buffered)
        return self._parts() if self._request.body_exists else None

    async def _parts(self) -> AsyncGenerator[bytes, None]:
        try:
            async for part in self._request.content.iter_any():
                yield part
        except web.RequestPayloadError as e:
            self.failure = _unreadable_body(e)
            raise
        except OSError:
            self.failure = ClientGone()
            raise


async def _read_body(request: web.Request) -> _RequestBody:
    """Return the body; JSON is buffered and sets the cost. Raises `WorkerError` (400, 413, 415)."""
    coding = content_coding(request)
    if coding not in ("", "identity", *_DECODED_BY_AIOHTTP):
        raise CodingNotUnderstood(f"the content coding {coding!r} is not supported: send identity or gzip")
    if not request.body_exists:
        return _RequestBody(request, None, MIN_COST)
    if not is_json(request.content_type):
        return _RequestBody(request, None, DEFAULT_COST)
    try:
        buffered = await request.clone(client_max_size=MAX_JSON_BYTES).read()
    except web.HTTPRequestEntityTooLarge as e:
        raise BodyTooLarge(f"the JSON body is larger than {MAX_JSON_BYTES} bytes") from e
    except web.RequestPayloadError as e:
        raise _unreadable_body(e) from e
    if not buffered:
        return _RequestBody(request, buffered, MIN_COST)
    if len(buffered) <= PARSED_WHOLE_BYTES:
        message = parse_object(buffered)
    else:
        message = await asyncio.to_thread(parse_object, buffered)  # parsing here would block the event loop
    return _RequestBody(request, buffered, cost_of(message))


def cost_of(message: Mapping[str, object]) -> float:
    """The cost of a request with the body `message`, in workload units.

    Values that a worker would refuse count as missing.
    """
    limits = [message.get(name) for name in TOKEN_FIELDS]
    tokens = max((n for n in limits if _is_count(n, MAX_TOKENS)), default=DEFAULT_COST)
    n = message.get("n")
    prompt = message.get("prompt")
    batch = cast("list[object]", prompt) if isinstance(prompt, list) else []
    prompts = len(batch) if batch and isinstance(batch[0], (str, list)) else 1
    return float(tokens * (n if _is_count(n, MAX_N) else 1) * prompts)


async def _relay(request: web.Request, response: aiohttp.ClientResponse) -> web.StreamResponse:
    """Relay the worker's answer; translate the worker's own errors into OpenAI's format."""
    if not _may_be_worker_error(request, response):
        return await pass_on(request, response)
    try:
        body = await response.read()
    except aiohttp.ClientError as e:
        raise AnswerCut(f"the worker's answer ended early: {e}") from e
    headers = end_to_end_headers(response.headers)
    headers.popall("Content-Length", None)
    if (own := worker_error(response.status, body)) is not None:
        headers.popall("Content-Type", None)
        return openai_error(response.status, *own, headers)
    return web.Response(status=response.status, reason=response.reason, headers=headers, body=body)


def _may_be_worker_error(request: web.Request, response: aiohttp.ClientResponse) -> bool:
    length = response.content_length
    return (
        response.status >= 400
        and request.method != "HEAD"
        and is_json(response.content_type)
        and length is not None
        and length <= MAX_ERROR_BYTES
        and "Content-Encoding" not in response.headers
    )


async def _not_found(request: web.Request) -> web.Response:
    text = "the base URL for OpenAI clients ends in /openai/ENDPOINT/v1"
    return gateway_error(NotFound(f"no route at {request.path}: {text}"))


def _unreadable_body(error: web.RequestPayloadError) -> BadMessage:
    return BadMessage(f"the body can't be read: {error}")


def _target(request: web.Request) -> str:
    """Path and query at the worker: from `/v1` on, and unchanged except for `api_key`."""
    path = request.rel_url.raw_path.split("/", 3)[3]
    query = without_api_key(request.rel_url.raw_query_string)
    return f"/{path}" + (f"?{query}" if query else "")


def _forwarded_headers(request: web.Request) -> CIMultiDict[str]:
    headers = end_to_end_headers(request.headers)
    for name in _NOT_FORWARDED:
        headers.popall(name, None)
    if content_coding(request) in _DECODED_BY_AIOHTTP:
        headers.popall("Content-Encoding")
    return headers


def _is_count(value: object, most: int) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= most
