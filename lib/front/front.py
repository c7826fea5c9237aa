"""The clients' connections of one port: how many there may be, how long they may take, and who carries them.

Owns the limits on connections and heads (docs/protocol.md, "Connections"), and aiohttp's server behind them.
What happens on one connection is in connection.py.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, Protocol, TypeVar, cast

import anyio
from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.web_runner import AppRunner  # not web.AppRunner, which an author may have replaced

from lib.errors import NoFiles
from lib.front.connection import MAX_HEAD_BYTES, FrontConnection, address_of
from lib.http.deadlines import Deadlines
from lib.http.heads import RequestHead
from lib.http.outbox import Outbox
from lib.http.shares import STRANGERS_BYTES, Holder, Shares
from lib.request.answer_counts import AnswerCounts
from lib.request.exchange import NO_ROUTE, had_exchange, route_of
from lib.request.incoming import Serve
from lib.request.log_lines import ACCESS_LOG, UNROUTED
from lib.runtime.addresses import Proxies, group_of
from lib.runtime.clock import Clock
from lib.runtime.excerpt import excerpt
from lib.runtime.tcp import bytes_acked

log = logging.getLogger(__name__)

# Seconds from the first byte of a head to its end.
HEAD_LIMIT_S = 10.0
# Seconds that a connection without a request is kept.
IDLE_LIMIT_S = 75.0
# Seconds after which a request is looked at although its short body is not whole.
BODY_AWAIT_S = 0.25
# Seconds that a client has to send the rest of a body that nobody wants, or to read a refusal.
LINGER_LIMIT_S = 10.0
# The most connections on which no request is being served, and the most of them with a part of a head.
MAX_WAITING = 4096
MAX_HEADS = 512
# The most connections whose clients have yet to read a refusal.
MAX_LINGERING = 512
# What a connection counts with: more than the memory that was measured (tests/endurance/strangers.py).
CONNECTION_BYTES = 8 * 1024
TLS_BYTES = 48 * 1024
HTTP_BYTES = 32 * 1024  # more, once aiohttp's server had a request on it
# Seconds that open connections have for their last bytes when the port is closed.
CLOSE_LIMIT_S = 2.0
# aiohttp's own limit of idleness, which can't be turned off, and must not end what is carried beside it.
NEVER_S = 1e9
# Connections that are kept open for a moment so that their clients can read why they are refused.
MAX_REFUSED = 8
# Seconds between two log lines about refused connections.
REFUSAL_LOG_S = 60.0
# How often a client is looked at within the stall limit.
STALL_LOOKS = 4
# What the router refuses, and the characters of a path that are logged of it.
_UNROUTED = {404: "no such route", 405: "the route has other methods"}
MAX_LOGGED_PATH = 200


class Client(Holder, Protocol):
    """A client's connection, whose memory is counted unless it `is_proxied`."""

    is_proxied: bool


C = TypeVar("C", bound=Client)


class Front:
    """Makes the protocol of each connection of one port.

    `direct` has the functions for the requests that are carried here: POST requests, by their path. `app`
    serves all others, with aiohttp's server. A client that takes none of the bytes that wait for it for
    `stall_limit_s` seconds is dropped, after at most a quarter of that more. `max_waiting` and `max_heads`
    limit the numbers of connections, `shares` the memory of those of strangers. If there are more than
    `max_connections`, a stranger's is closed, or else an idle one. If all have verified requests, the new one
    is refused with 503. Of requests that come from `proxies`, their `X-Forwarded-For` names the client.
    `answers` counts the answers that no exchange counts.
    """

    def __init__(
        self,
        app: web.Application,
        direct: Mapping[str, Serve],
        clock: Clock,
        stall_limit_s: float,
        max_waiting: int = MAX_WAITING,
        max_heads: int = MAX_HEADS,
        max_connections: int = sys.maxsize,
        shares: Shares | None = None,
        proxies: Proxies | None = None,
        answers: AnswerCounts | None = None,
    ) -> None:
        self.is_closing = False
        self.shares = shares or Shares(STRANGERS_BYTES)
        self._proxies = proxies or Proxies()
        self._answers = answers or AnswerCounts()
        self.direct = direct
        self.stall_limit_s = stall_limit_s
        self._max_waiting = max_waiting
        self._max_heads = max_heads
        self.max_connections = max_connections
        self.handshakes = 0  # connections with TLS that are not this object's yet
        self._refusal_logged_s = -math.inf
        self._clock = clock
        app.on_response_prepare.append(self._note_begun)
        self._runner = AppRunner(
            app,
            access_log=cast(Any, self),
            access_log_class=_HttpEnds,
            handler_cancellation=True,
            auto_decompress=False,
            keepalive_timeout=NEVER_S,
            # Heads were measured before: its own limits would be answered in plain text.
            max_line_size=MAX_HEAD_BYTES,
            max_field_size=MAX_HEAD_BYTES,
            max_headers=MAX_HEAD_BYTES,
            shutdown_timeout=CLOSE_LIMIT_S,
        )
        self._connections: set[FrontConnection] = set()
        self._by_http: dict[object, FrontConnection] = {}
        self._heads: Deadlines[FrontConnection] = Deadlines(clock, HEAD_LIMIT_S, _refuse_slow_head)
        self._idle: Deadlines[FrontConnection] = Deadlines(clock, IDLE_LIMIT_S, FrontConnection.close_idle)
        self.bodies: Deadlines[FrontConnection] = Deadlines(
            clock, BODY_AWAIT_S, FrontConnection.start_awaited
        )
        self.lingering: Deadlines[FrontConnection] = Deadlines(
            clock, LINGER_LIMIT_S, FrontConnection.close_idle
        )
        self.stalls: Deadlines[FrontConnection] = Deadlines(
            clock, stall_limit_s / STALL_LOOKS, self._look_at_stalled
        )
        self.outbox = Outbox(self._connections, self._idle.items)
        self._limits = (self._heads, self._idle, self.bodies, self.lingering, self.stalls)
        self._lost = asyncio.Event()

    def __call__(self) -> FrontConnection:
        """Make the protocol of a new connection; for `loop.create_server`."""
        return FrontConnection(self)

    def carrier(self, head: RequestHead) -> Serve | None:
        """The function that serves the request here; None if aiohttp's server has to."""
        if head.method != "POST" or head.is_http10:
            return None
        serve = self.direct.get(head.target.partition("?")[0])
        values = head.values
        if "x-vast-auth" in values or ("authorization" in values and "vast." in values["authorization"]):
            # With header authentication, the body may be an upload.
            return serve if _has_json(head) else None
        return serve

    def new_http(self, connection: FrontConnection) -> Any:
        """Make aiohttp's protocol for `connection`."""
        protocol = cast(web.Server, self._runner.server)()
        self._by_http[protocol] = connection
        self.charge(connection, HTTP_BYTES)
        return protocol

    def http_finished(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Note that aiohttp's server has written the answer to `request` whole."""
        if not had_exchange(request):  # the others are counted and logged by their observers
            self._note_answer(request, response.status)
        connection = self._by_http.get(request.protocol)
        if connection is not None:
            connection.http_finished(bool(response.keep_alive))

    def _note_answer(self, request: web.BaseRequest, status: int) -> None:
        route, reason = route_of(request), _UNROUTED.get(status)
        self._answers.add(route, status)
        if route == NO_ROUTE and reason is not None:
            path = excerpt(request.path, MAX_LOGGED_PATH)
            ACCESS_LOG.info(UNROUTED, request.method, path, status, reason, "refused")

    async def _note_begun(self, request: web.Request, response: web.StreamResponse) -> None:
        """Note that aiohttp's server is about to write the head of `response`."""
        connection = self._by_http.get(request.protocol)
        if connection is not None:
            if not connection.keep_alive:
                response.headers["Connection"] = "close"
            connection.http_begun(response.status)

    # The connections

    def add(self, connection: FrontConnection) -> None:
        """Note a new connection; close others if there are too many."""
        self._connections.add(connection)
        self.identify(connection, connection.transport)
        count = len(self._connections) + self.handshakes
        is_over = count > self.max_connections and not self._make_room()
        self.note_idle(connection)
        if is_over:
            self._refuse(connection)  # it is not charged: it may read its refusal
        else:
            self.charge(connection, CONNECTION_BYTES if connection.ssl_context is None else TLS_BYTES)

    def _make_room(self) -> bool:
        """Close a connection: a stranger's, one with a request last, or an idle one; False without any."""
        for waiting in (self._idle, self._heads):
            if any(not connection.is_known for connection in waiting.items):
                _end_one(waiting)
                return True
        if self.shares.evict_one():
            return True
        for waiting in (self._idle, self._heads):
            if waiting.items:
                _end_one(waiting)
                return True
        return False

    def _refuse(self, connection: FrontConnection) -> None:
        """Refuse a connection, since there are too many for the limit on open files."""
        now_s = self._clock.monotonic()
        if now_s - self._refusal_logged_s >= REFUSAL_LOG_S:
            self._refusal_logged_s = now_s
            log.warning(
                "%d connections are in use, the most for the limit on open files (ulimit -n): others get 503",
                self.max_connections,
            )
        if len(self._connections) > self.max_connections + MAX_REFUSED:
            connection.close_idle()
        else:
            connection.refuse_with(NoFiles())

    def remove(self, connection: FrontConnection) -> None:
        """Note that `connection` is lost."""
        self._connections.discard(connection)
        self.shares.release(connection)
        self._lost.set()
        for limits in self._limits:
            limits.remove(connection)

    def note_refused(self, status: int) -> None:
        """Note that a connection was answered with `status`, for no request or one that no route has seen."""
        self._answers.add(NO_ROUTE, status)

    def forget_http(self, protocol: object) -> None:
        """Note that aiohttp's `protocol` is not used any more."""
        self._by_http.pop(protocol, None)

    def note_idle(self, connection: FrontConnection) -> None:
        """Note that no request is being served on `connection`."""
        self._idle.add(connection)
        if len(self._connections) > self._max_waiting and (
            len(self._idle.items) + len(self._heads.items) > self._max_waiting
        ):
            strangers = (c for c in self._idle.items if not c.is_known)
            _end(self._idle, next(strangers, None) or next(iter(self._idle.items)))

    def identify(self, client: Client, transport: asyncio.BaseTransport | None) -> None:
        """Note the address that `client` comes from, and whether it is a trusted proxy's."""
        address = address_of(transport)
        client.is_proxied, client.group = self._proxies.has(address), group_of(address)

    def charge(self, client: Client, size_bytes: int) -> None:
        """Count what a stranger's connection holds; a proxy's own connections are no stranger's."""
        if not (client.is_known or client.is_proxied):
            self.shares.add(client, size_bytes)

    def note_head_begun(self, connection: FrontConnection) -> None:
        """Note that a part of a head has arrived on `connection`; its time limit runs from the first part."""
        self._idle.remove(connection)
        self._heads.add(connection)
        self.shares.add(connection, MAX_HEAD_BYTES)
        if len(self._heads.items) > self._max_heads:
            _end_one(self._heads)

    def note_head(self, connection: FrontConnection, is_late: bool) -> None:
        """Note that a whole head has arrived on `connection`, `is_late` after `note_head_begun`."""
        (self._heads if is_late else self._idle).remove(connection)
        if is_late:
            self.shares.add(connection, -MAX_HEAD_BYTES)

    def note_forwarded(self, connection: FrontConnection, head: RequestHead) -> None:
        """Note for which client a proxy sends the request with this `head`."""
        client = self._proxies.client_of(
            address_of(connection.transport), head.values.get("x-forwarded-for", "")
        )
        self.shares.release(connection)
        connection.group = group_of(client)

    def note_lingering(self, connection: FrontConnection) -> None:
        """Note that the client has to read a refusal, or to send the rest of a body that nobody wants."""
        self.lingering.add(connection)
        if len(self.lingering.items) > MAX_LINGERING:
            _end_one(self.lingering)

    def note_stalled(self, connection: FrontConnection) -> None:
        """Note that the client takes less than what is written to it."""
        connection.taken_bytes, connection.looks = _taken_bytes(connection), 0
        self.stalls.add(connection)

    def abort(self) -> None:
        """Abort every connection, and with it the request on it."""
        for connection in list(self._connections):
            if connection.transport is not None:
                connection.transport.abort()

    async def open(self) -> None:
        """Get ready to serve."""
        await self._runner.setup()

    async def close(self) -> None:
        """Close the connections; requests in progress have `CLOSE_LIMIT_S` for their last bytes."""
        self.is_closing = True
        for connection in list(self.bodies.items):
            connection.start_awaited()
        for connection in [*self._idle.items, *self._heads.items]:
            connection.close_when_sent()
        await self._until_lost()
        self.abort()
        await self._until_lost()
        await self._runner.cleanup()
        for limits in self._limits:
            limits.close()

    async def _until_lost(self) -> None:
        """Return once no connection is left, or after `CLOSE_LIMIT_S`."""
        with anyio.move_on_after(CLOSE_LIMIT_S):
            while self._connections:
                self._lost.clear()
                await self._lost.wait()

    def _look_at_stalled(self, connection: FrontConnection) -> None:
        """Drop a client that has taken nothing for the stall limit."""
        taken_bytes = _taken_bytes(connection)
        connection.looks = 0 if taken_bytes > connection.taken_bytes else connection.looks + 1
        connection.taken_bytes = taken_bytes
        if connection.looks < STALL_LOOKS:
            self.stalls.add(connection)
        elif connection.transport is not None:
            log.warning("a client has taken no byte of its answer for too long: it is dropped")
            connection.transport.abort()


class _HttpEnds(AbstractAccessLogger):
    """Tells a `Front`, given in place of a logger, of each answer that aiohttp's server has written."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        cast(Front, self.logger).http_finished(request, response)


def _refuse_slow_head(connection: FrontConnection) -> None:
    connection.refuse(408, f"the request's head took longer than {HEAD_LIMIT_S:g} s")


def _end_one(waiting: Deadlines[FrontConnection]) -> None:
    """Close the oldest of `waiting` that is from the address that has most of them; strangers come first."""
    _end(waiting, oldest_of_most([c for c in waiting.items if not c.is_known] or waiting.items))


def oldest_of_most(clients: Collection[C]) -> C:
    """The first of `clients` that is from the address that has most of them."""
    ((most, _),) = Counter(client.group for client in clients).most_common(1)
    return next(client for client in clients if client.group == most)


def _end(waiting: Deadlines[FrontConnection], connection: FrontConnection) -> None:
    """Close `connection`, one of `waiting`, and don't count it until it is lost: many may come meanwhile."""
    waiting.remove(connection)
    connection.close_idle()


def _taken_bytes(connection: FrontConnection) -> int:
    """A number that grows whenever the client takes bytes.

    What waits in this process is no measure: the answer may add to it, and the operating system takes of it
    only when a large part of its own buffer is free.
    """
    transport = connection.transport
    if transport is None:
        return 0
    acked = bytes_acked(transport.get_extra_info("socket").fileno())
    return -transport.get_write_buffer_size() if acked is None else acked


def _has_json(head: RequestHead) -> bool:
    """Whether the request has a body, and its media type is JSON."""
    content_type = head.values.get("content-type", "").partition(";")[0].strip().lower()
    return head.length != 0 and (content_type == "application/json" or content_type.endswith("+json"))
