"""A request without a connection, whose body arrives in the parts that the test gives."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request


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
    ) -> None:
        loop = asyncio.get_running_loop()
        protocol = BaseProtocol(loop)
        protocol.connection_made(asyncio.Transport())
        self.content = StreamReader(protocol, 2**20, loop=loop)
        fields = {"Content-Encoding": coding, "Content-Type": content_type}
        headers = {name: value for name, value in fields.items() if value is not None}
        if length is not None:
            headers["Content-Length"] = str(length)
        self.request: web.Request = make_mocked_request(
            "POST", path, headers, payload=self.content, match_info=dict(parameters or {})
        )

    def arrive(self, *parts: bytes, whole: bool = True) -> web.Request:
        """Let `parts` arrive, and with `whole` the end of the body; return the request."""
        for part in parts:
            self.content.feed_data(part)
        if whole:
            self.content.feed_eof()
        return self.request
