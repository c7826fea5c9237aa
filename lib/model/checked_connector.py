"""aiohttp's connections, with the checks that it leaves out (docs/protocol.md, "Passing the answer on").

Owns what can be known only at the connection: whether a reused one is still good, whether the server can have
executed a request whose connection ended, and whether an answer's body came to its end. Whether a request is
then sent again is decided in connection.py.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.helpers import _EXC_SENTINEL as _NO_CAUSE  # pyright: ignore[reportPrivateUsage] - the default
from aiohttp.http import RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader

from lib.model.stall import Stall, StallWatch
from lib.runtime.excerpt import LOGGED_BYTES
from lib.runtime.tcp import bytes_acked, closed_untaken, unread_input

log = logging.getLogger(__name__)

# Servers send one or two interim answers (100, 102, 103). One that never stops would fill the memory.
MAX_INTERIM_ANSWERS = 32
_SWITCHING_PROTOCOLS = 101


class Unanswered(aiohttp.ServerDisconnectedError):
    """The connection of a request ended before any byte of an answer came.

    `untaken`: the connection was a reused one, and the server took no byte of the request from it. False also
    where that can't be known.
    """

    def __init__(self, message: str, untaken: bool) -> None:
        super().__init__(message)
        self.untaken = untaken


class FaultyAnswer(aiohttp.ClientConnectionError):
    """The server's answer breaks a rule of HTTP. The message has none of the server's bytes."""


class CheckedConnector(aiohttp.TCPConnector):
    """A connector without a limit of connections, whose connections are `CheckedConnection`s."""

    def __init__(
        self, stalls: StallWatch | None, *, keepalive_timeout: float | None = None, force_close: bool = False
    ) -> None:
        super().__init__(  # pyright: ignore[reportUnknownMemberType] - aiohttp's types of sockets are partial
            limit=0, keepalive_timeout=keepalive_timeout, force_close=force_close
        )
        self._factory = partial(CheckedConnection, loop=self._loop, stalls=stalls)


class CheckedConnection(ResponseHandler):
    """One connection to the model server, used for one request after another."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stalls: StallWatch | None = None) -> None:
        super().__init__(loop)
        self._stalls = stalls
        self._answer: StreamReader | None = None  # the body of the last request's answer, once it has a head
        self._answer_begun = False
        self._interim_answers = 0
        self._untaken = False
        self._acked_before: int | None = None  # None for a connection's first request

    def is_connected(self) -> bool:
        """Whether a request can be sent: an idle connection must have neither ended nor received bytes."""
        return super().is_connected() and not (self._is_idle and unread_input(self._fd))

    @property
    def progress(self) -> tuple[StreamReader, int] | None:
        """The body that is being read, and the bytes that have come of it; None while nobody waits for more.

        None also before its first byte.
        """
        body = self._answer
        if body is None or body.is_eof() or not body.total_bytes:
            return None
        is_awaited = body._waiter is not None  # pyright: ignore[reportPrivateUsage] - no other sign
        return (body, body.total_bytes) if is_awaited else None

    def stall(self, error: Stall) -> None:
        """End the answer's body with an error, unless it has come to its end, and close the connection."""
        self._break_off(str(error), error)
        self._close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._stalls is not None:
            self._stalls.add(self)

    def set_response_params(self, **params: Any) -> None:
        """Begin a request; aiohttp calls this just before it writes one."""
        self._acked_before = None if self._answer is None else bytes_acked(self._fd)
        self._answer, self._answer_begun, self._untaken, self._interim_answers = None, False, False, 0
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        if data and self._is_idle:
            self._close()  # nothing was asked: the next request must not find this as its answer
            return
        if data and not self._answer_begun:
            acked, self._answer_begun = self._bytes_acked(), True
            if acked is not None and acked == self._acked_before:
                # Sent before the server had any of the request, which it may still take and execute.
                self.set_exception(FaultyAnswer("an answer came before the request was sent"))
                self._close()
                return
        super().data_received(data)
        if isinstance(error := self.exception(), HttpProcessingError):
            log.debug("the model server has sent invalid HTTP: %r", data[:LOGGED_BYTES])
            # aiohttp leaves a body waiting whose chunks are invalid. A failed upload does not end an answer.
            self._break_off("it is not valid HTTP", error)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Take an answer's head. Answers beyond the first are dropped, interim ones are bounded in number."""
        message, body = data
        if self._answer is not None:
            self.force_close()
            return
        if self._interim_answers > MAX_INTERIM_ANSWERS:
            return  # the answer has failed already
        if 100 <= message.code < 200 and message.code != _SWITCHING_PROTOCOLS:
            self._interim_answers += 1
            if self._interim_answers > MAX_INTERIM_ANSWERS:
                self.set_exception(FaultyAnswer(f"more than {MAX_INTERIM_ANSWERS} interim answers"))
                self._close()
                return
        else:
            self._answer = body
        super().feed_data(data, size)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._stalls is not None:
            self._stalls.remove(self)
        if not self._answer_begun:
            self._untaken = closed_untaken(self._acked_before, self._bytes_acked(), exc)
        if exc is not None:
            # aiohttp takes a reset for the end of a body of unknown length, as it does an orderly end.
            self._break_off(f"the connection was lost: {exc}", exc)
        super().connection_lost(exc)

    def set_exception(self, exc: BaseException, exc_cause: BaseException = _NO_CAUSE) -> None:
        """Fail the request. An attempt to write after the connection's end comes here as well."""
        if not self._answer_begun and isinstance(
            exc, (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)
        ):
            exc = Unanswered(str(exc), self._untaken)
        super().set_exception(exc, exc_cause)

    @property
    def _is_idle(self) -> bool:
        """Whether the last request's answer is whole, and the next request has not begun."""
        return self._answer is not None and self._answer.is_eof() and not self.upgraded

    @property
    def _fd(self) -> int:
        sock = None if self.transport is None else self.transport.get_extra_info("socket")
        return -1 if sock is None else sock.fileno()

    def _bytes_acked(self) -> int | None:
        """The acknowledged bytes now; None on a connection's first request, where they are not needed."""
        return None if self._acked_before is None else bytes_acked(self._fd)

    def _break_off(self, reason: str, cause: BaseException) -> None:
        """End an answer's body with an error, unless it has come to its end."""
        if self._answer is not None and not self._answer.is_eof():
            self._answer.set_exception(aiohttp.ClientPayloadError(reason), cause)

    def _close(self) -> None:
        self.force_close()
        if self.transport is not None:
            self.transport.close()
