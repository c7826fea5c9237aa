"""Clients' connections whose memory is counted, and how to find one.

Owns what all code below the front may do with such a connection.
"""

from __future__ import annotations

import asyncio
from typing import Any


class CountedConnection(asyncio.Protocol):
    """A client's connection whose memory counts until its client is known: a `lib.http.shares.Holder`."""

    __slots__ = ("group", "is_known")

    group: str
    is_known: bool

    def evict(self) -> None:
        """Close the connection, after a 503 if a request has begun."""
        raise NotImplementedError

    def note_verified(self) -> None:
        """Note that a request on the connection was verified: its client is known from now on."""
        raise NotImplementedError


def counted_on(transport: Any) -> CountedConnection | None:
    """The connection that `transport` belongs to; None if it is lost. uvloop's are no `asyncio.Transport`."""
    protocol: object = None if transport is None else transport.get_protocol()
    return protocol if isinstance(protocol, CountedConnection) else None
