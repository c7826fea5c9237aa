"""An open connection to the malicious model server, for tests of lib/model/."""

from __future__ import annotations

import email
import email.message
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from lib.model.caller import ModelCaller
from lib.model.connection import ModelServer
from tests.fakes.model_server import MaliciousModel, malicious_model


class Connected:
    """An open connection to `model`."""

    def __init__(self, model: MaliciousModel, server: ModelServer) -> None:
        self.model = model
        self.server = server

    async def post(
        self,
        path: str,
        message: object = None,
        headers: Mapping[str, str] | None = None,
        idempotent: bool = False,
    ) -> tuple[int, bytes]:
        caller = ModelCaller(self.server, headers or {}, idempotent=idempotent)
        async with caller.post_json(path, message) as answer:
            return answer.status, await answer.read()

    async def form(self, fields: Mapping[str, Any]) -> email.message.Message:
        """Send `fields` as a form; return it as the model server received it, parsed by another library."""
        async with ModelCaller(self.server, {}).post_form("/echo", fields) as answer:
            assert answer.status == 200
        sent = self.model.requests[-1]
        head = f"Content-Type: {sent.header('Content-Type')}\r\n\r\n".encode()
        return email.message_from_bytes(head + sent.body)


@asynccontextmanager
async def connection(path: str = "", timeout_s: float | None = None) -> AsyncGenerator[Connected, None]:
    async with malicious_model() as model, ModelServer(model.url + path, timeout_s) as server:
        yield Connected(model, server)
