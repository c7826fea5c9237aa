"""ModelCaller: the model server as the handler of one request calls it.

Owns the documented ways to call (`send`, `post_json`, `get`, …). Paths, queries and forms are built in
messages.py; the connections are in connection.py.
"""

from __future__ import annotations

import asyncio
import copy
import io
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, cast

import aiohttp
from aiohttp import web
from aiohttp.payload import AsyncIterablePayload
from aiohttp.typedefs import StrOrURL

from lib.errors import ClientGone, response_from
from lib.fields.json_values import json_text
from lib.model.connection import ModelServer
from lib.model.messages import (
    LARGE_BODY_BYTES,
    check_form,
    fill_path,
    make_form,
    placeholders,
    with_query,
    with_raw_query,
)
from lib.model.relay import broken_answer, drain
from lib.request.exchange import Exchange
from lib.request.wildcard import rest_of
from lib.uploads import Upload

MAX_MESSAGE_BYTES = 4 * 1024 * 1024  # the default limit of one WebSocket message
# Methods whose parameters are in the URL.
_WITHOUT_BODY = frozenset({"GET", "HEAD", "DELETE"})

PendingAnswer = AbstractAsyncContextManager[aiohttp.ClientResponse]


class ModelCaller:
    """Calls the model server for one request, with headers that the request's client sent.

    `client_request` is the client's request, None in the benchmark; `method` is its method. `request_id` is
    the request's id in the log, "" in the benchmark. `idempotent` is the handler's. Every call is an async
    context manager that yields the model server's answer; leaving it before the answer's end closes the
    connection. Calls raise `ModelUnreachable` (502) and `ModelTimedOut` (504).
    """

    def __init__(
        self,
        server: ModelServer,
        headers: Mapping[str, str],
        client_request: web.Request | None = None,
        method: str = "POST",
        *,
        request_id: str = "",
        idempotent: bool = False,
    ) -> None:
        self.server = server
        self.headers = headers
        self.client_request = client_request
        self.request_id = request_id
        self.idempotent = idempotent
        self.method = method if client_request is None else client_request.method

    @property
    def timeout_s(self) -> float | None:
        """`MODEL_TIMEOUT_S`, the limit of a whole call in seconds; None for no limit."""
        return self.server.timeout_s

    def with_headers(self, *names: str) -> ModelCaller:
        """Return a caller that forwards only the client's headers in `names`, which are case-insensitive."""
        wanted = {name.lower() for name in names}
        caller = copy.copy(self)
        caller.headers = {name: value for name, value in self.headers.items() if name.lower() in wanted}
        return caller

    def note_progress(self, units: float = 1.0) -> None:
        """Note that a part of the request is done, in any unit, such as one for each event of a stream.

        In the benchmark, throughput is known before the request ends. Elsewhere it does nothing.
        """

    def note_workload(self, workload: float) -> None:
        """Note the workload that the request really took, in place of what its payload counts.

        For the benchmark, whose answers may end early. Elsewhere it does nothing.
        """

    def send(self, endpoint: str | None, message: Any) -> PendingAnswer:
        """Send `message` by the client's method: in the query of a GET, HEAD or DELETE, else as JSON.

        With JSON, the query is that of the client's URL, without `api_key`.
        A `{name}` in `endpoint` becomes the parameter of that name in the client's path or, where the path
        has none, in `message`, which is then sent without it. Raises `Invalid` (422) for a parameter that is
        missing, and for one with "." or ".." as a part of a path.
        """
        fields = cast("dict[str, Any]", message) if isinstance(message, dict) else None
        target, rest = self._fill(endpoint, fields or {})
        if self.method in _WITHOUT_BODY:
            return self.request(self.method, with_query(target, rest))
        make_body, headers = _make_json(message if fields is None else rest)
        return self.request(self.method, self._with_query(target), make_body, headers)

    def send_upload(self, endpoint: str | None, upload: Upload) -> PendingAnswer:
        """Send `upload` unchanged, by the client's method and with its query. `endpoint` is as in `send`."""
        headers = {"Content-Type": upload.content_type, "Content-Length": str(upload.size_bytes)}
        target, _ = self._fill(endpoint, {})
        return self.request(self.method, self._with_query(target), partial(upload.path.open, "rb"), headers)

    def send_form(self, endpoint: str | None, fields: Mapping[str, Any]) -> PendingAnswer:
        """Send `fields` as `post_form` does, but as `send` does: by the client's method, with its query."""
        target, _ = self._fill(endpoint, {})
        return self._send_form(self.method, self._with_query(target), fields)

    def post_json(self, endpoint: str | None, message: Any) -> PendingAnswer:
        """POST `message` as JSON."""
        return self.request("POST", endpoint, *_make_json(message))

    def post_form(self, endpoint: str | None, fields: Mapping[str, Any]) -> PendingAnswer:
        """POST `fields` as multipart/form-data (`ApiPayload.generate_payload_multipart`).

        Raises `TypeError` for bare bytes.
        """
        return self._send_form("POST", endpoint, fields)

    def get(self, endpoint: str | None) -> PendingAnswer:
        """GET `endpoint`."""
        return self.request("GET", endpoint)

    def request(
        self,
        method: str,
        endpoint: str | None,
        make_body: Callable[[], Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> PendingAnswer:
        """Send `method` to `endpoint`, a path on the model server or an absolute URL.

        `make_body` is called for each attempt: a request is sent once more if the model server can't have
        executed it, or if the handler is `idempotent` and no byte of an answer came. Redirects are passed on,
        not followed.
        """
        sent = {**self.headers, **(headers or {})}
        return self.server.request(method, endpoint, sent, make_body, self.idempotent)

    async def websocket(
        self, url: StrOrURL, max_message_bytes: int = MAX_MESSAGE_BYTES
    ) -> aiohttp.ClientWebSocketResponse[bool]:
        """Open a WebSocket at `url`, a path on the model server or an absolute URL; the caller closes it.

        The handshake carries none of the client's headers. Raises `ModelUnreachable` (502) and
        `ModelTimedOut` (504).
        """
        return await self.server.websocket(url, max_message_bytes)

    def _send_form(self, method: str, target: str | None, fields: Mapping[str, Any]) -> PendingAnswer:
        check_form(fields)  # so that a wrong field raises here, before anything is sent
        return self.request(method, target, lambda: make_form(fields))

    def _with_query(self, target: str | None) -> str | None:
        """Add the query of the client's URL to `target`. `api_key` was removed from it before."""
        query = "" if self.client_request is None else self.client_request.rel_url.raw_query_string
        return with_raw_query(target, query) if query else target

    def _fill(self, endpoint: str | None, fields: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Return `endpoint` with its placeholders filled in, and the `fields` that remain to be sent."""
        if endpoint is None or "{" not in endpoint or not (names := placeholders(endpoint)):
            return endpoint, fields
        request = self.client_request
        in_path: Mapping[str, str] = {} if request is None else request.match_info
        # Only a wildcard's path may have slashes: elsewhere they would lead a client to other endpoints.
        has_rest = request is None or rest_of(request) is not None
        filled = fill_path(endpoint, {**fields, **in_path}, has_rest=has_rest)
        # A body field with the name of a path parameter may mean something else: it is sent too. In a query,
        # it would be the same parameter twice, and without a body it is the one of the path.
        is_of_url = self.method in _WITHOUT_BODY or (request is not None and not request.body_exists)
        used = [name for name in names if name not in in_path or is_of_url]
        return filled, {name: value for name, value in fields.items() if name not in used}


def _make_json(message: Any) -> tuple[Callable[[], Any], dict[str, str]]:
    """Return a function that makes the JSON body of `message`, and the body's headers."""
    body = json_text(message).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    if len(body) > LARGE_BODY_BYTES:
        return lambda: io.BytesIO(body), headers
    return lambda: body, headers


async def ask(exchange: Exchange, server: ModelServer) -> web.StreamResponse:
    """Call the model by the handler's `call_model`, and make the client's answer from its answer.

    The call is closed when the client leaves, unless the handler lets it finish. Raises `ClientGone`, what
    `broken_answer` returns, and what the handler's code raises.
    """
    try:
        return await _answer(exchange, server)
    except BaseException as e:
        server.failures.note_error(e)
        raise


class _Reader:
    """Takes a body in place of a client, and calls `note` with each chunk."""

    def __init__(self, note: Callable[[bytes], object]) -> None:
        self._note = note

    async def write(self, chunk: bytes) -> None:
        self._note(chunk)


async def _write_stream(exchange: Exchange, response: web.StreamResponse) -> None:
    """Write `response` if its body is a stream: it may read the model's answer, which is closed next.

    Raises `ClientGone`, and what reading the body raises.
    """
    if _stream_of(response) is not None:
        await exchange.write(response)


async def _finish_stream(exchange: Exchange, response: web.StreamResponse, answer: Any = None) -> None:
    """Read the rest of a streamed body and of `answer` if the client has left and the handler finishes.

    Raises what reading the body raises: here, a lost connection is not the client's.
    """
    body = _stream_of(response)
    if body is not None and exchange.finishes and exchange.client_left:
        await run_to_end(body, len)  # which keeps nothing
        if isinstance(answer, aiohttp.ClientResponse):
            await drain(answer)


def _stream_of(response: web.StreamResponse) -> AsyncIterablePayload | aiohttp.MultipartWriter | None:
    body = response.body if isinstance(response, web.Response) else None
    return body if isinstance(body, (AsyncIterablePayload, aiohttp.MultipartWriter)) else None


async def run_to_end(body: Any, note: Callable[[bytes], object]) -> None:
    """Read what is left of the author's generators in `body`; call `note` with each chunk.

    Raises what they raise.
    """
    if isinstance(body, aiohttp.MultipartWriter):
        for part, *_ in body:
            await run_to_end(part, note)
    elif isinstance(body, AsyncIterablePayload):
        reader: Any = _Reader(note)
        await body.write(reader)


async def _answer(exchange: Exchange, server: ModelServer) -> web.StreamResponse:
    handler, request = exchange.lane.handler, exchange.request
    caller = ModelCaller(
        server,
        exchange.forwarded_headers(),
        request,
        request_id=exchange.id,
        idempotent=handler.idempotent,
    )
    try:
        async with handler.call_model(caller, exchange.payload) as answer:
            if isinstance(answer, web.StreamResponse):
                # Of the statuses that author code chooses, only 504 is clearly about the model server.
                if answer.status == 504 or server.failures.count:
                    server.failures.note_status(504 if answer.status == 504 else 0)
                await _write_stream(exchange, answer)
                await _finish_stream(exchange, answer)
                return answer
            try:
                make = handler.generate_client_response
                response = response_from(make, await make(request, answer))
                await _write_stream(exchange, response)
            except (ClientGone, ConnectionError) as e:
                if not exchange.client_left:
                    raise
                if not exchange.finishes:
                    raise ClientGone from e
                await drain(answer)
                return web.Response(status=answer.status)  # nobody reads it; the status counts
            await _finish_stream(exchange, response, answer)
            # An author's `call_model` may yield an object of its own.
            status = answer.status if isinstance(answer, aiohttp.ClientResponse) else 0
            if status >= 500 or server.failures.count:
                server.failures.note_status(status)
            return response
    except (aiohttp.ClientError, TimeoutError, asyncio.TimeoutError) as e:
        if isinstance(e, ConnectionError) and exchange.client_left:
            raise ClientGone from e
        raise broken_answer(e, exchange.answer_out) from e
