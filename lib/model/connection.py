"""The connection to the model server: kept-alive, uncapped, resent once when a kept one had been closed.

Owns the two HTTP clients towards the model server and the way a URL below it is made. Passing answers
on is in answers.py. Failures become `ModelUnreachable` (502) and `ModelTimedOut` (504).
"""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from types import SimpleNamespace, TracebackType
from typing import Any, cast
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import anyio
from aiohttp import web
from aiohttp.typedefs import StrOrURL
from yarl import URL

from lib.errors import Invalid, ModelTimedOut, ModelUnreachable, describe_error
from lib.uploads import Upload

# Servers close idle connections after 5 to 15 s (protocol.md §2): ours go before.
KEEP_ALIVE_S = 4.0
CONNECT_TIMEOUT_S = 10.0
# aiohttp writes larger bodies piece by piece, and warns of those it is given in one.
LARGE_BODY_BYTES = 1024 * 1024
MAX_MESSAGE_BYTES = 4 * 1024 * 1024  # of a WebSocket, unless the caller says otherwise
# What aiohttp would add of its own accord: the model server gets what the client sent, and no more.
_ADDED_BY_AIOHTTP = ("Accept", "Accept-Encoding", "User-Agent")
# Methods whose parameters are in the URL.
_WITHOUT_BODY = frozenset({"GET", "HEAD", "DELETE"})
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class ModelServer:
    """The model server at `url`, in an `async with`. `timeout_s` bounds a whole call; None: nothing does."""

    def __init__(self, url: str, timeout_s: float | None = None) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        self._pooled: aiohttp.ClientSession | None = None
        self._unpooled: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> ModelServer:
        trace = aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(_note_reuse)
        self._pooled = self._client(aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S), [trace])
        self._unpooled = self._client(aiohttp.TCPConnector(limit=0, force_close=True))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):  # a cancelled worker closes both as well
            await self.pooled.close()
            await self.unpooled.close()

    @property
    def pooled(self) -> aiohttp.ClientSession:
        """The client whose connections are kept and reused."""
        return _opened(self._pooled)

    @property
    def unpooled(self) -> aiohttp.ClientSession:
        """The client that makes a new connection for every request."""
        return _opened(self._unpooled)

    def resolve(self, target: StrOrURL | None) -> URL:
        """The URL of `target`: a path below the model server's URL, or an absolute URL as it is."""
        if target is None:
            raise ValueError("the handler's endpoint is None")
        text = str(target)
        if urlsplit(text).scheme in ("http", "https", "ws", "wss"):
            return URL(text)
        return URL(f"{self.url}/{text.lstrip('/')}")

    def caller(
        self, headers: Mapping[str, str], client_request: web.Request | None = None, method: str = "POST"
    ) -> ModelCaller:
        """What a handler's `call_model` gets: this server as one request sees it."""
        return ModelCaller(self, headers, client_request, method)

    async def accepts_connections(self, limit_s: float = 2.0) -> bool:
        """Whether something listens at the model server's address."""
        parts = URL(self.url)
        try:
            with anyio.fail_after(limit_s):
                _, writer = await asyncio.open_connection(parts.host, parts.port)
        except (OSError, TimeoutError, asyncio.TimeoutError):
            return False
        writer.close()
        return True

    def _client(
        self, connector: aiohttp.TCPConnector, traces: list[aiohttp.TraceConfig] | None = None
    ) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            timeout=self._timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_ADDED_BY_AIOHTTP,
            trace_configs=traces,
        )


class ModelCaller:
    """The model server as one request sees it: calls carry the headers that its client sent.

    `client_request` is that client's, None in the benchmark; `method` is its method.
    """

    def __init__(
        self,
        server: ModelServer,
        headers: Mapping[str, str],
        client_request: web.Request | None = None,
        method: str = "POST",
    ) -> None:
        self.server = server
        self.headers = headers
        self.client_request = client_request
        self.method = method if client_request is None else client_request.method

    @property
    def timeout_s(self) -> float | None:
        """`MODEL_TIMEOUT_S`, the limit of a whole call in seconds; None: no limit."""
        return self.server.timeout_s

    def with_headers(self, *names: str) -> ModelCaller:
        """The same caller, forwarding only those of the client's headers that `names` lists, in any case."""
        wanted = {name.lower() for name in names}
        headers = {name: value for name, value in self.headers.items() if name.lower() in wanted}
        return ModelCaller(self.server, headers, self.client_request, self.method)

    def send(self, endpoint: str | None, message: Any) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Send `message` by the client's method: in the query of a GET, HEAD or DELETE, else as JSON.

        A `{name}` in `endpoint` is the parameter of that name in the client's path, or else in `message`,
        which then goes without it. Raises `Invalid` (422) for one that is missing or has a "." or ".." as a
        part, which would lead elsewhere, `ModelUnreachable` (502), `ModelTimedOut` (504).
        """
        fields = cast("dict[str, Any]", message) if isinstance(message, dict) else None
        target, rest = self._filled(endpoint, fields or {})
        if self.method in _WITHOUT_BODY:
            return self.request(self.method, _with_query(target, rest))
        return self._send_json(self.method, target, message if fields is None else rest)

    def send_upload(
        self, endpoint: str | None, upload: Upload
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Send `upload` on as it came, by the client's method; `endpoint` may have names as for `send`."""
        headers = {"Content-Type": upload.content_type, "Content-Length": str(upload.size_bytes)}
        return self.request(
            self.method, self._filled(endpoint, {})[0], partial(upload.path.open, "rb"), headers
        )

    def post_json(
        self, endpoint: str | None, message: Any
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """POST `message` as JSON. Raises `ModelUnreachable` (502), `ModelTimedOut` (504)."""
        return self._send_json("POST", endpoint, message)

    def post_form(
        self, endpoint: str | None, fields: Mapping[str, Any]
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """POST `fields` as multipart/form-data (`ApiPayload.generate_payload_multipart`).

        Raises `TypeError` for bare bytes, `ModelUnreachable` (502), `ModelTimedOut` (504).
        """
        make_form(fields)  # what is wrong with the fields is found before anything is sent
        return self.request("POST", endpoint, lambda: make_form(fields))

    def send_form(
        self, endpoint: str | None, fields: Mapping[str, Any]
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Send `fields` as `post_form` does, by the client's method, to an `endpoint` as `send` takes it."""
        make_form(fields)
        return self.request(self.method, self._filled(endpoint, {})[0], lambda: make_form(fields))

    def get(self, endpoint: str | None) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """GET `endpoint`. Raises `ModelUnreachable` (502), `ModelTimedOut` (504)."""
        return self.request("GET", endpoint)

    @asynccontextmanager
    async def request(
        self,
        method: str,
        endpoint: str | None,
        make_body: Callable[[], Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """The answer to `method` at `endpoint`; leaving the block before its end closes the connection.

        `make_body` makes the body, again when the request is sent once more because a kept connection
        turned out closed before any byte of an answer. Redirects are passed on, not followed.
        """
        url = self.server.resolve(endpoint)
        all_headers = {**self.headers, **(headers or {})}
        attempt = SimpleNamespace(reused=False)
        try:
            response = await self._send(self.server.pooled, method, url, all_headers, make_body, attempt)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as e:
            if not (attempt.reused and _nothing_came(e)):
                raise _unreachable(e) from e
            try:
                response = await self._send(self.server.unpooled, method, url, all_headers, make_body)
            except (aiohttp.ClientError, TimeoutError, asyncio.TimeoutError) as again:
                raise _failure(again) from again
        except (aiohttp.ClientError, TimeoutError, asyncio.TimeoutError) as e:
            raise _failure(e) from e
        async with response:
            yield response

    async def websocket(
        self, url: StrOrURL, max_message_bytes: int = MAX_MESSAGE_BYTES
    ) -> aiohttp.ClientWebSocketResponse[bool]:
        """Open a WebSocket at `url`, a path or an absolute URL; the caller closes it.

        The handshake carries none of the client's headers. Raises `ModelUnreachable` (502) and
        `ModelTimedOut` (504).
        """
        try:
            return await self.server.pooled.ws_connect(
                self.server.resolve(url), max_msg_size=max_message_bytes
            )
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as e:
            raise _failure(e) from e

    def _send_json(
        self, method: str, endpoint: str | None, message: Any
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        body = json.dumps(message).encode()
        large = len(body) > LARGE_BODY_BYTES
        return self.request(
            method,
            endpoint,
            (lambda: io.BytesIO(body)) if large else (lambda: body),
            {"Content-Type": "application/json", "Content-Length": str(len(body))},
        )

    def _filled(self, endpoint: str | None, fields: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """`endpoint` with its names filled in, and those of `fields` that are not in it."""
        if endpoint is None or not (names := _PLACEHOLDER.findall(endpoint)):
            return endpoint, fields
        request = self.client_request
        in_path: Mapping[str, str] = {} if request is None else request.match_info
        given = {name: in_path[name] if name in in_path else fields.get(name) for name in names}
        values = {name: "" if value is None else _text(value) for name, value in given.items()}
        problems = {name: "missing parameter" for name in names if not values[name]}
        for name, value in values.items():
            if {".", ".."} & set(value.split("/")):
                problems[name] = "can't be part of a path"
        if problems:
            raise Invalid({"payload": problems})
        filled = _PLACEHOLDER.sub(lambda found: quote(values[found[1]], safe=""), endpoint)
        # A body is the client's own, whatever its fields are called; a URL's parameters are all one.
        taken = [name for name in names if name not in in_path or self.method in _WITHOUT_BODY]
        return filled, {name: value for name, value in fields.items() if name not in taken}

    async def _send(
        self,
        http: aiohttp.ClientSession,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        make_body: Callable[[], Any] | None,
        attempt: SimpleNamespace | None = None,
    ) -> aiohttp.ClientResponse:
        return await http.request(
            method,
            url,
            data=make_body() if make_body else None,
            headers=headers,
            allow_redirects=False,
            trace_request_ctx=attempt,
        )


class ModelSession:
    """The model server's HTTP client for routes of the author's own (`backend.session`).

    It has an `aiohttp.ClientSession`'s methods; relative paths go below the model server's URL, also when
    that has a path, which the client's own `base_url` can't do.
    """

    def __init__(self, server: ModelServer) -> None:
        self._server = server

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server.pooled, name)

    def request(self, method: str, url: StrOrURL, **kwargs: Any) -> Any:
        return self._server.pooled.request(method, self._server.resolve(url), **kwargs)

    def get(self, url: StrOrURL, **kwargs: Any) -> Any:
        return self.request("GET", url, **kwargs)

    def head(self, url: StrOrURL, **kwargs: Any) -> Any:
        return self.request("HEAD", url, **kwargs)

    def options(self, url: StrOrURL, **kwargs: Any) -> Any:
        return self.request("OPTIONS", url, **kwargs)

    def post(self, url: StrOrURL, **kwargs: Any) -> Any:
        return self.request("POST", url, **kwargs)

    def put(self, url: StrOrURL, **kwargs: Any) -> Any:
        return self.request("PUT", url, **kwargs)

    def patch(self, url: StrOrURL, **kwargs: Any) -> Any:
        return self.request("PATCH", url, **kwargs)

    def delete(self, url: StrOrURL, **kwargs: Any) -> Any:
        return self.request("DELETE", url, **kwargs)

    def ws_connect(self, url: StrOrURL, **kwargs: Any) -> Any:
        return self._server.pooled.ws_connect(self._server.resolve(url), **kwargs)


def _with_query(target: str | None, fields: Mapping[str, Any]) -> str | None:
    """`target` with `fields` in its query: lists repeat, None is left out, objects are JSON."""
    pairs: list[tuple[str, str]] = []
    for name, value in fields.items():
        items = cast("list[Any]", value) if isinstance(value, list) else [value]
        pairs += [(name, _text(item)) for item in items if item is not None]
    if target is None or not pairs:
        return target
    return f"{target}{'&' if '?' in target else '?'}{urlencode(pairs)}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def make_form(fields: Mapping[str, Any]) -> aiohttp.FormData:
    """`fields` as multipart/form-data; the rules are `ApiPayload.generate_payload_multipart`'s."""
    form = aiohttp.FormData(default_to_multipart=True)
    for name, value in fields.items():
        for item in cast("list[Any]", value) if isinstance(value, list) else [value]:
            _add_field(form, name, item)
    return form


def _add_field(form: aiohttp.FormData, name: str, item: Any) -> None:
    if item is None:
        return
    if isinstance(item, tuple):
        filename, content, content_type = cast("tuple[str, bytes, str]", item)
        large = len(content) > LARGE_BODY_BYTES
        form.add_field(
            name, io.BytesIO(content) if large else content, filename=filename, content_type=content_type
        )
    elif isinstance(item, (bytes, bytearray, memoryview)):
        raise TypeError(f"form field {name!r} is bare bytes: give (filename, bytes, content_type)")
    elif isinstance(item, (dict, list)):
        form.add_field(name, json.dumps(item), content_type="application/json")
    elif isinstance(item, bool):
        form.add_field(name, "true" if item else "false")
    else:
        form.add_field(name, str(item))


async def _note_reuse(
    session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceConnectionReuseconnParams
) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.reused = True


def _nothing_came(error: aiohttp.ClientError) -> bool:
    """Whether the connection broke before any byte of an answer (its message holds what was parsed)."""
    return not isinstance(error, aiohttp.ServerDisconnectedError) or isinstance(error.message, str)


def _failure(error: BaseException) -> ModelUnreachable | ModelTimedOut:
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)) and not isinstance(
        error, aiohttp.ConnectionTimeoutError
    ):
        return ModelTimedOut("the model server took too long")
    return _unreachable(error)


def _unreachable(error: BaseException) -> ModelUnreachable:
    return ModelUnreachable(f"the model server could not be reached: {describe_error(error)}")


def _opened(http: aiohttp.ClientSession | None) -> aiohttp.ClientSession:
    if http is None:
        raise RuntimeError("the model server's connection opens when the worker starts")
    return http
