"""Clients' connections on a port with TLS, until their handshake is done.

Owns who may begin a handshake, how many at once, and for how long. asyncio begins one as soon as a connection
is accepted, and tells nobody before it is done: 50 KiB for each client that never says a word, in any number.
Here a handshake begins with the client's first byte. Afterwards the connection is the front's (front.py).
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Collection
from typing import cast

from lib.front.front import (
    CONNECTION_BYTES,
    HEAD_LIMIT_S,
    IDLE_LIMIT_S,
    TLS_BYTES,
    Front,
    oldest_of_most,
)
from lib.http.deadlines import Deadlines
from lib.runtime.clock import Clock

log = logging.getLogger(__name__)

# The most connections that have not said a word, and the most whose handshake is not done.
MAX_SILENT = 1024
MAX_HANDSHAKES = 256


class TlsPort:
    """Makes the protocols of a port's connections, which become those of `front` by a handshake of `context`.

    `max_silent` and `max_handshakes` limit the numbers of those that are not done, each to a quarter of
    the front's connections at most. Beyond, the oldest of the address that has most gives way.
    """

    def __init__(
        self,
        front: Front,
        context: ssl.SSLContext,
        clock: Clock,
        max_silent: int = MAX_SILENT,
        max_handshakes: int = MAX_HANDSHAKES,
    ) -> None:
        self.front = front
        self.context = context
        self._silent: Deadlines[TlsGate] = Deadlines(clock, IDLE_LIMIT_S, TlsGate.evict)
        self._handshakes: Deadlines[TlsGate] = Deadlines(clock, HEAD_LIMIT_S, TlsGate.evict)
        self._open: set[TlsGate] = set()
        quarter = max(1, front.max_connections // 4)
        self._max_silent = min(max_silent, quarter)
        self._max_handshakes = min(max_handshakes, quarter)

    def __call__(self) -> TlsGate:
        """Make the protocol of a new connection; for `loop.create_server`."""
        return TlsGate(self)

    @property
    def waiting(self) -> int:
        """The number of connections whose handshake is not done."""
        return len(self._open)

    def add(self, gate: TlsGate) -> None:
        """Note a new connection."""
        self._open.add(gate)
        self.front.handshakes = len(self._open)
        self._silent.add(gate)
        self.front.charge(gate, CONNECTION_BYTES)
        _limit(self._silent.items, self._max_silent)

    def note_begun(self, gate: TlsGate) -> None:
        """Note that a handshake begins on a connection."""
        self._silent.remove(gate)
        self._handshakes.add(gate)
        self.front.charge(gate, TLS_BYTES - CONNECTION_BYTES)
        _limit(self._handshakes.items, self._max_handshakes)

    def remove(self, gate: TlsGate) -> None:
        """Note that a connection's handshake is done, or that it is lost."""
        self._open.discard(gate)
        self.front.handshakes = len(self._open)
        self._silent.remove(gate)
        self._handshakes.remove(gate)
        self.front.shares.release(gate)

    def close(self) -> None:
        """Close all connections whose handshake is not done."""
        for gate in list(self._open):
            gate.evict()
        self._silent.close()
        self._handshakes.close()


def _limit(gates: Collection[TlsGate], limit: int) -> None:
    """Close one of `gates` if there are more than `limit`."""
    if len(gates) > limit:
        oldest_of_most(gates).evict()


class TlsGate(asyncio.Protocol):
    """One connection whose handshake is not done."""

    __slots__ = ("_port", "_received", "_task", "_transport", "group", "is_known", "is_proxied")

    def __init__(self, port: TlsPort) -> None:
        self.group = ""
        self.is_known = self.is_proxied = False
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._received = b""  # before the handshake began, or with its end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._port.front.identify(self, transport)
        self._port.add(self)

    def data_received(self, data: bytes) -> None:
        """Begin the handshake with the client's first bytes."""
        self._received += data
        if self._task is None and self._transport is not None:
            self._transport.pause_reading()
            self._task = asyncio.get_running_loop().create_task(self._shake_hands(self._transport))
            self._port.note_begun(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._port.remove(self)

    def evict(self) -> None:
        """Close the connection: there are too many, or it took too long."""
        self._port.remove(self)
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            self._transport.abort()

    async def _shake_hands(self, plain: asyncio.Transport) -> None:
        transport = None
        try:
            transport = await self._tls(plain)
        except (OSError, asyncio.TimeoutError) as e:
            log.debug("a handshake failed: %s", e)
        finally:
            self._port.remove(self)
            if transport is None:
                plain.abort()
        if transport is None:
            return
        # On Python 3.10, `transport` doesn't say so, and tells only this object that it is lost.
        if plain.is_closing():
            transport.abort()
            return
        connection = self._port.front()
        transport.set_protocol(connection)
        connection.connection_made(transport)
        if self._received:
            connection.data_received(self._received)

    async def _tls(self, plain: asyncio.Transport) -> asyncio.Transport | None:
        """Do the handshake, with this as the protocol: it keeps what comes with the end of it."""
        loop = asyncio.get_running_loop()
        begun = loop.create_task(loop.start_tls(plain, self, self._port.context, server_side=True))
        try:
            for _ in range(2):  # until it has begun, and until its protocol's `connection_made` was called
                await asyncio.sleep(0)
            # Nobody else gives it what was received before.
            received, self._received = self._received, b""
            if not begun.done():
                _feed(plain.get_protocol(), received)
            return await begun
        finally:
            begun.cancel()


def _feed(protocol: asyncio.BaseProtocol, data: bytes) -> None:
    """Give `data` to `protocol` as if it had just been received."""
    if isinstance(protocol, asyncio.Protocol):  # on Python 3.10 without uvloop
        protocol.data_received(data)
        return
    protocol = cast(asyncio.BufferedProtocol, protocol)
    while data:
        buffer = memoryview(protocol.get_buffer(len(data)))
        size_bytes = min(len(buffer), len(data))
        buffer[:size_bytes] = data[:size_bytes]
        protocol.buffer_updated(size_bytes)
        data = data[size_bytes:]
