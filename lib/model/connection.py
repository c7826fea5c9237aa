"""The connection to the model server: two HTTP clients, one pooled and one not.

Owns the clients, the URL of a path on the model server, and the rule of which requests are sent again. Owns
the errors that failures become: `ModelUnreachable` (502), `ModelTimedOut` (504) and `AnswerCut`. The state of
a single connection is in checked_connector.py; calls by handlers are in caller.py; passing answers on is in
relay.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import anyio
from aiohttp import hdrs
from aiohttp.typedefs import StrOrURL
from yarl import URL

from lib.errors import (
    AnswerCut,
    AnswerStalled,
    ModelDown,
    ModelTimedOut,
    ModelUnreachable,
    NoFiles,
    describe_error,
    is_out_of_files,
)
from lib.model.answer import answer_fault
from lib.model.checked_connector import CheckedConnector, FaultyAnswer, Unanswered
from lib.model.failure_row import FailureRow
from lib.model.reach import Reach, reason_of
from lib.model.stall import Stall, StallWatch

# Common servers close idle connections after 5 to 15 s. Ours are closed earlier, so that few requests use a
# connection that the server is just closing.
KEEP_ALIVE_S = 4.0
CONNECT_TIMEOUT_S = 10.0
# Headers that aiohttp would add. The model server gets the client's headers and no others.
_ADDED_BY_AIOHTTP = ("Accept", "Accept-Encoding", "User-Agent")


class ModelServer:
    """The model server at `url`. Use it in an `async with`, which opens and closes its HTTP clients.

    `timeout_s` limits a whole call, None: no limit; `stalls` breaks off answers that stall. The number of
    concurrent calls is not limited. `reach` is told which calls reach the server's address, `failures` which
    clients' requests have failed there. Requests to the server's own origin carry `api_key`, unless that is
    "" or they have an `Authorization` of their own.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float | None = None,
        stalls: StallWatch | None = None,
        api_key: str = "",
    ) -> None:
        self.url = url.rstrip("/")
        self.api_key = api_key
        self.timeout_s = timeout_s
        self.reach = Reach(self.url)
        self.failures = FailureRow()
        self._stalls = stalls
        self._pooled: aiohttp.ClientSession | None = None
        self._unpooled: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> ModelServer:
        pooled = CheckedConnector(self._stalls, keepalive_timeout=KEEP_ALIVE_S)
        self._pooled = self._client(pooled, self._noted, *self._keyed)
        self._unpooled = self._client(CheckedConnector(self._stalls, force_close=True), *self._keyed)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):  # both are closed also when the worker is cancelled
            await self.pooled.close()
            await self.unpooled.close()

    @property
    def pooled(self) -> aiohttp.ClientSession:
        """The HTTP client whose connections are kept for `KEEP_ALIVE_S` and reused.

        Calls that authors make themselves have `reach` noted and wait for their turn, as those of `request`.
        """
        return _opened(self._pooled)

    def move_to(self, url: str) -> None:
        """Make `url` the model server's from now on."""
        self.url = url.rstrip("/")
        self.reach.move_to(self.url)

    @property
    def unpooled(self) -> aiohttp.ClientSession:
        """The HTTP client that makes a new connection for every request."""
        return _opened(self._unpooled)

    def resolve(self, target: StrOrURL | None) -> URL:
        """The URL of `target`: a path below the model server's URL, or an absolute URL, which stays as it is.

        Raises `ValueError` for None.
        """
        return resolved(self.url, target)

    @asynccontextmanager
    async def request(
        self,
        method: str,
        endpoint: str | None,
        headers: Mapping[str, str],
        make_body: Callable[[], Any] | None = None,
        idempotent: bool = False,
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """The answer to `method` at `endpoint`; leaving the block before its end closes the connection.

        The request is sent once more, on a new connection, if the server cannot have executed it: a reused
        connection ended before the server had taken a byte of it. With `idempotent`, it is sent once more
        whenever its connection ended before any byte of an answer came. `make_body` makes the body for each
        attempt. Redirects are not followed. Raises `ModelUnreachable` (502), also for an answer that can't be
        passed on, `ModelTimedOut` (504), and `ModelDown` (503) for one that was not tried.
        """
        url = self.resolve(endpoint)
        send = partial(_send, method, url, headers, make_body, (*self._keyed, _once))
        if self.reach.is_down:
            with self.reach.attempt(url.host, url.port):
                response = await self._answer(url, send, idempotent)
        else:
            response = await self._answer(url, send, idempotent)
        try:
            if fault := answer_fault(response.reason, response.headers):
                raise _unusable(fault)
            yield response
        except (AnswerCut, aiohttp.ClientPayloadError) as e:
            self._note_failure(url, e)
            raise
        finally:
            # aiohttp's own exit would wait for the rest of an upload, which the server may never read.
            response.close()

    async def _answer(
        self, url: URL, send: Callable[..., Awaitable[aiohttp.ClientResponse]], idempotent: bool
    ) -> aiohttp.ClientResponse:
        """Send a request, once more if that is safe, and return its answer. Raises what `request` does."""
        began_s = asyncio.get_running_loop().time()
        try:
            try:
                response = await send(self.pooled)
            except _Failed as e:
                if not isinstance(e.error, Unanswered) or not (e.error.untaken or idempotent):
                    raise
                response = await send(self.unpooled, self._limits(began_s))
        except (aiohttp.ClientError, TimeoutError, asyncio.TimeoutError) as e:
            self._note_failure(url, e)
            raise model_failure(e) from e
        if self.reach.is_suspect:
            self.reach.note_success(url.host, url.port)
        return response

    def _note_failure(self, url: URL, error: BaseException) -> None:
        """Note a failed call in `reach`, with the error that has caused `error`."""
        if isinstance(error, _Failed):
            error = error.error
        elif isinstance(error, AnswerCut):
            error = aiohttp.ClientPayloadError()
        self.reach.note_failure(url.host, url.port, error)

    async def websocket(self, url: StrOrURL, max_message_bytes: int) -> aiohttp.ClientWebSocketResponse[bool]:
        """Open a WebSocket. Raises `ModelUnreachable` (502), `ModelTimedOut` (504) and `ModelDown` (503)."""
        try:
            return await self.pooled.ws_connect(self.resolve(url), max_msg_size=max_message_bytes)
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as e:
            raise model_failure(e) from e

    async def _noted(
        self, request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send `request`, and note in `reach` whether that succeeded. Raises `OwnCallFailed`."""
        url, was_down = request.url, self.reach.is_down
        try:
            with self.reach.attempt(url.host, url.port) if was_down else nullcontext():
                response = await send(request)
        except ModelDown as e:
            raise OwnCallFailed(self.reach.address) from e
        except (aiohttp.ClientError, OSError) as e:
            self._note_failure(url, e)
            if was_down and self.reach.is_own(url.host, url.port) and (reason := reason_of(e)):
                raise OwnCallFailed(self.reach.address, reason) from e
            raise
        if self.reach.is_suspect:
            self.reach.note_success(url.host, url.port)
        return response

    @property
    def _keyed(self) -> tuple[aiohttp.ClientMiddlewareType, ...]:
        return (self._with_key,) if self.api_key else ()

    async def _with_key(
        self, request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send `request`, with the key if it goes to the model server: a redirect may lead elsewhere."""
        if is_same_origin(URL(self.url), request.url):
            request.headers.setdefault(hdrs.AUTHORIZATION, f"Bearer {self.api_key}")
        return await send(request)

    async def accepts_connections(self, limit_s: float = 2.0) -> bool:
        """Whether the model server's address accepts a TCP connection within `limit_s` seconds."""
        try:
            with anyio.fail_after(limit_s):
                await self.connect_once()
        except (OSError, TimeoutError, asyncio.TimeoutError):
            return False
        return True

    async def connect_once(self) -> None:
        """Open a TCP connection to the model server's address, and close it. Raises `OSError`."""
        parts = URL(self.url)
        _, writer = await asyncio.open_connection(parts.host, parts.port)
        writer.close()

    def _client(
        self, connector: aiohttp.TCPConnector, *middlewares: aiohttp.ClientMiddlewareType
    ) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            middlewares=middlewares,
            timeout=self._limits(),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_ADDED_BY_AIOHTTP,
        )

    def _limits(self, began_s: float | None = None) -> aiohttp.ClientTimeout:
        """The limits of a call, or of the rest of one that began at `began_s` (the event loop's clock)."""
        total_s = self.timeout_s
        if total_s is not None and began_s is not None:
            # aiohttp takes 0 for no limit.
            total_s = max(total_s - (asyncio.get_running_loop().time() - began_s), 0.001)
        return aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_TIMEOUT_S)


class ModelSession:
    """The model server's HTTP client for the author's own routes (`backend.session`).

    It has the methods of an `aiohttp.ClientSession`. Relative paths go below the model server's URL, also
    if that URL has a path, which `ClientSession`'s own `base_url` doesn't support.
    """

    def __init__(self, server: ModelServer) -> None:
        self._server = server

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server.pooled, name)

    def set_server_url(self, url: str) -> None:
        """Make `url` the model server's, for a `lifecycle` that learns it at run time.

        `/status` and the saved benchmark name it, and paths go below it.
        """
        self._server.move_to(url)

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


def resolved(server_url: str, target: StrOrURL | None) -> URL:
    """The URL of `target`: a path below `server_url`, or an absolute URL. Raises `ValueError` for None."""
    if target is None:
        raise ValueError("the handler's endpoint is None")
    text = str(target)
    if urlsplit(text).scheme in ("http", "https", "ws", "wss"):
        return URL(text)
    return URL(f"{server_url}/{text.lstrip('/')}")


def is_same_origin(one: URL, other: URL) -> bool:
    """Whether two URLs lead to the same port of the same host, both with TLS or both without."""
    return _origin(one) == _origin(other)


def _origin(url: URL) -> tuple[str | None, int | None, bool]:
    return url.host, url.port, url.scheme in ("https", "wss")


class OwnCallFailed(ModelDown, aiohttp.ClientConnectionError):
    """503: an author's own call was not tried, or tried in vain, while the model server is down.

    It is one of aiohttp's errors too, as authors catch these.
    """


class _Failed(aiohttp.ClientError):
    """Carries the `error` of an attempt past aiohttp's own resending."""

    def __init__(self, error: aiohttp.ClientError) -> None:
        super().__init__()
        self.error = error


async def _send(
    method: str,
    url: URL,
    headers: Mapping[str, str],
    make_body: Callable[[], Any] | None,
    middlewares: Sequence[aiohttp.ClientMiddlewareType],
    http: aiohttp.ClientSession,
    limits: aiohttp.ClientTimeout | None = None,
) -> aiohttp.ClientResponse:
    return await http.request(
        method,
        url,
        data=make_body() if make_body else None,
        headers=headers,
        allow_redirects=False,
        middlewares=middlewares,
        **({"timeout": limits} if limits else {}),
    )


async def _once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Send `request` once: aiohttp would send a GET again that may have been executed."""
    try:
        return await send(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as e:
        raise _Failed(e) from e


def model_failure(
    error: BaseException, answer_begun: bool = False
) -> ModelTimedOut | ModelUnreachable | NoFiles | AnswerCut:
    """The error to raise for an exception of an HTTP client that called the model server.

    Returns `ModelTimedOut` (504) for a timeout, except one of connecting. For other exceptions it returns
    `AnswerCut` if `answer_begun`, that is, while the answer's body is read; else `ModelUnreachable` (502), or
    `NoFiles` (503) if this process could not open a connection. An `OwnCallFailed` (503) stays as it is.
    """
    if isinstance(error, OwnCallFailed):
        return error
    if isinstance(error, _Failed):
        error = error.error
    is_timeout = isinstance(error, (TimeoutError, asyncio.TimeoutError))
    if is_timeout and not isinstance(error, aiohttp.ConnectionTimeoutError):
        return timed_out()
    if answer_begun:
        return answer_cut(error)
    if is_out_of_files(error):
        return NoFiles()
    if isinstance(error, aiohttp.ClientResponseError):
        return _unusable("it is not valid HTTP")  # the error's own text has the server's bytes in it
    if isinstance(error, FaultyAnswer):
        return _unusable(describe_error(error))
    return unreachable(describe_error(error))


def timed_out() -> ModelTimedOut:
    """The error of a call that has passed its time limit."""
    return ModelTimedOut("the model server took too long")


def unreachable(reason: str) -> ModelUnreachable:
    """The error of a call without an answer, for `reason`."""
    return ModelUnreachable(f"the model server could not be reached: {reason}")


def answer_cut(error: BaseException) -> AnswerCut:
    """The error of an answer that broke off with `error`: `AnswerStalled` if that is a stall."""
    has_stalled = isinstance(error, Stall) or isinstance(error.__cause__, Stall)
    kind = AnswerStalled if has_stalled else AnswerCut
    return kind(f"the model server's answer broke off: {describe_error(error)}")


def _unusable(fault: str) -> ModelUnreachable:
    return ModelUnreachable(f"the model server's answer can't be used: {fault}")


def _opened(http: aiohttp.ClientSession | None) -> aiohttp.ClientSession:
    if http is None:
        raise RuntimeError("the model server's connection opens when the worker starts")
    return http
