"""The connection to the model server: two HTTP clients, one pooled and one not.

Owns the clients, the URL of a path on the model server, and the resending of a request whose reused
connection was already closed. Owns the errors that failures become: `ModelUnreachable` (502), `ModelTimedOut`
(504) and `AnswerCut`. Calls by handlers are in caller.py; passing answers on is in relay.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace, TracebackType
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import anyio
from aiohttp.typedefs import StrOrURL
from yarl import URL

from lib.errors import AnswerCut, ModelTimedOut, ModelUnreachable, describe_error

# Common servers close idle connections after 5 to 15 s. Ours are closed earlier, so that few requests use a
# connection that the server is just closing.
KEEP_ALIVE_S = 4.0
CONNECT_TIMEOUT_S = 10.0
# Headers that aiohttp would add. The model server gets the client's headers and no others.
_ADDED_BY_AIOHTTP = ("Accept", "Accept-Encoding", "User-Agent")


class ModelServer:
    """The model server at `url`. Use it in an `async with`, which opens and closes its HTTP clients.

    `timeout_s` limits a whole call, None: no limit. The number of concurrent calls is not limited.
    """

    def __init__(self, url: str, timeout_s: float | None = None) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
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
        with anyio.CancelScope(shield=True):  # both are closed also when the worker is cancelled
            await self.pooled.close()
            await self.unpooled.close()

    @property
    def pooled(self) -> aiohttp.ClientSession:
        """The HTTP client whose connections are kept for `KEEP_ALIVE_S` and reused."""
        return _opened(self._pooled)

    @property
    def unpooled(self) -> aiohttp.ClientSession:
        """The HTTP client that makes a new connection for every request."""
        return _opened(self._unpooled)

    def resolve(self, target: StrOrURL | None) -> URL:
        """The URL of `target`: a path below the model server's URL, or an absolute URL, which stays as it is.

        Raises `ValueError` for None.
        """
        if target is None:
            raise ValueError("the handler's endpoint is None")
        text = str(target)
        if urlsplit(text).scheme in ("http", "https", "ws", "wss"):
            return URL(text)
        return URL(f"{self.url}/{text.lstrip('/')}")

    @asynccontextmanager
    async def request(
        self,
        method: str,
        endpoint: str | None,
        headers: Mapping[str, str],
        make_body: Callable[[], Any] | None = None,
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """The answer to `method` at `endpoint`; leaving the block before its end closes the connection.

        The request is sent once more, on a new connection, if a reused one was closed before any byte of an
        answer came. `make_body` makes the body for each attempt. Redirects are not followed. Raises
        `ModelUnreachable` (502) and `ModelTimedOut` (504).
        """
        url = self.resolve(endpoint)
        reuse = SimpleNamespace(happened=False)
        try:
            response = await _send(self.pooled, method, url, headers, make_body, reuse)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as e:
            if not (reuse.happened and _no_answer_begun(e)):
                raise model_failure(e) from e
            try:
                response = await _send(self.unpooled, method, url, headers, make_body)
            except (aiohttp.ClientError, TimeoutError, asyncio.TimeoutError) as again:
                raise model_failure(again) from again
        except (aiohttp.ClientError, TimeoutError, asyncio.TimeoutError) as e:
            raise model_failure(e) from e
        async with response:
            yield response

    async def websocket(self, url: StrOrURL, max_message_bytes: int) -> aiohttp.ClientWebSocketResponse[bool]:
        """Open a WebSocket. Raises `ModelUnreachable` (502) and `ModelTimedOut` (504)."""
        try:
            return await self.pooled.ws_connect(self.resolve(url), max_msg_size=max_message_bytes)
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as e:
            raise model_failure(e) from e

    async def accepts_connections(self, limit_s: float = 2.0) -> bool:
        """Whether the model server's address accepts a TCP connection within `limit_s` seconds."""
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
            timeout=aiohttp.ClientTimeout(total=self.timeout_s, sock_connect=CONNECT_TIMEOUT_S),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_ADDED_BY_AIOHTTP,
            trace_configs=traces,
        )


class ModelSession:
    """The model server's HTTP client for the author's own routes (`backend.session`).

    It has the methods of an `aiohttp.ClientSession`. Relative paths go below the model server's URL, also
    if that URL has a path, which `ClientSession`'s own `base_url` doesn't support.
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


async def _send(
    http: aiohttp.ClientSession,
    method: str,
    url: URL,
    headers: Mapping[str, str],
    make_body: Callable[[], Any] | None,
    reuse: SimpleNamespace | None = None,
) -> aiohttp.ClientResponse:
    return await http.request(
        method,
        url,
        data=make_body() if make_body else None,
        headers=headers,
        allow_redirects=False,
        trace_request_ctx=reuse,
    )


async def _note_reuse(
    session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceConnectionReuseconnParams
) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.happened = True


def _no_answer_begun(error: aiohttp.ClientError) -> bool:
    """Whether the connection broke before any byte of an answer.

    The message of aiohttp's `ServerDisconnectedError` is a text, or the answer's parsed head if there is one.
    """
    return not isinstance(error, aiohttp.ServerDisconnectedError) or isinstance(error.message, str)


def model_failure(
    error: BaseException, answer_begun: bool = False
) -> ModelTimedOut | ModelUnreachable | AnswerCut:
    """The error to raise for an exception of an HTTP client that called the model server.

    Returns `ModelTimedOut` (504) for a timeout, except one of connecting. For other exceptions it returns
    `AnswerCut` if `answer_begun`, that is, while the answer's body is read; else `ModelUnreachable` (502).
    """
    is_timeout = isinstance(error, (TimeoutError, asyncio.TimeoutError))
    if is_timeout and not isinstance(error, aiohttp.ConnectionTimeoutError):
        return ModelTimedOut("the model server took too long")
    if answer_begun:
        return answer_cut(error)
    return ModelUnreachable(f"the model server could not be reached: {describe_error(error)}")


def answer_cut(error: BaseException) -> AnswerCut:
    """The error of an answer that broke off with `error`."""
    return AnswerCut(f"the model server's answer broke off: {describe_error(error)}")


def _opened(http: aiohttp.ClientSession | None) -> aiohttp.ClientSession:
    if http is None:
        raise RuntimeError("the model server's connection opens when the worker starts")
    return http
