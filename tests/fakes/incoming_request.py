"""A request without a connection, whose body arrives in the parts that the test gives."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from lib.errors import Unavailable
from lib.http.counted import CountedConnection


class Client(CountedConnection):
    """A client's connection; `evict` ends the body that it sends."""

    def __init__(self, group: str = "127.0.0.2", is_known: bool = False) -> None:
        self.group = group
        self.is_known = is_known
        self.evictions = 0
        self.content: StreamReader | None = None

    def evict(self) -> None:
        self.evictions += 1
        if self.content is not None:
            self.content.set_exception(Unavailable("busy", "too many", 1.0))

    def note_verified(self) -> None:
        self.is_known = True


class _Transport(asyncio.Transport):
    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._client


class IncomingRequest:
    """A POST request; `parameters` are those of its path. `length` is its Content-Length, if it has one."""

    def __init__(
        self,
        coding: str | None = None,
        length: int | None = None,
        *,
        content_type: str | None = None,
        path: str = "/",
        parameters: Mapping[str, str] | None = None,
        client: Client | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        protocol = BaseProtocol(loop)
        protocol.connection_made(asyncio.Transport())
        self.content = StreamReader(protocol, 2**27, loop=loop)
        fields = {"Content-Encoding": coding, "Content-Type": content_type}
        headers = {name: value for name, value in fields.items() if value is not None}
        if length is not None:
            headers["Content-Length"] = str(length)
        self.client = client or Client()
        self.client.content = self.content
        self.request: web.Request = make_mocked_request(
            "POST",
            path,
            headers,
            payload=self.content,
            match_info=dict(parameters or {}),
            transport=_Transport(self.client),
        )

    def arrive(self, *parts: bytes, whole: bool = True) -> web.Request:
        """Let `parts` arrive, and with `whole` the end of the body; return the request."""
        for part in parts:
            self.content.feed_data(part)
        if whole:
            self.content.feed_eof()
        return self.request
