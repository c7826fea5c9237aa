"""The two routes of the TGI worker, whose answers are passed on as TGI gives them.

Owns what a failed generation looks like: TGI tells it as 424 or, on a stream, which always begins with 200,
as an event. Neither is the client's doing, and both come quickly: taken for work done, they would make a
broken GPU look fast.
"""

from __future__ import annotations

import json
import re
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from lib.backend import pass_on
from lib.data_types import EndpointHandler
from workers.tgi.data_types import TgiRequest

if TYPE_CHECKING:
    from lib.backend import ModelCaller

FAILED_GENERATION = 424
# The `error_type` of errors that are no failure of TGI's: it answers these with 422 and 429.
DID_ITS_PART = frozenset({"validation", "overloaded"})
# No error is longer; of longer lines the beginning is enough to tell that they are none.
MAX_LINE_BYTES = 64 * 1024
_ERROR_EVENT = re.compile(rb'data:\s*(\{\s*"error".*)')


@dataclass(kw_only=True)
class TgiHandler(EndpointHandler[TgiRequest]):
    """The whole answer at once, or, for a request that says `"stream": true`, as from the other route."""

    health: str | None = None

    @property
    def endpoint(self) -> str:
        return "/generate"

    @property
    def healthcheck_endpoint(self) -> str | None:
        return self.health

    @classmethod
    def payload_cls(cls) -> type[TgiRequest]:
        return TgiRequest

    def call_model(self, model: ModelCaller, payload: TgiRequest) -> AbstractAsyncContextManager[Any]:
        endpoint = "/generate_stream" if payload.stream else self.endpoint
        return model.post_json(endpoint, self.generate_payload_json(payload))

    async def generate_client_response(
        self, client_request: web.Request, model_response: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        events = FailureScanner()
        response = await pass_on(client_request, model_response, on_chunk=events.add)
        if model_response.status == FAILED_GENERATION or events.end():
            client_request["outcome"] = "errored"
        return response


@dataclass(kw_only=True)
class TgiStreamHandler(TgiHandler):
    """One token an event."""

    @property
    def endpoint(self) -> str:
        return "/generate_stream"


class FailureScanner:
    """Looks for failures in an answer that passes by in pieces, however they are cut."""

    def __init__(self) -> None:
        self._failed = False
        self._line = bytearray()

    def add(self, piece: bytes) -> None:
        beginning, *more = piece.split(b"\n")
        self._keep(beginning)
        for line in more:
            self._read_line()
            self._keep(line)

    def end(self) -> bool:
        """Whether the answer, which ends here, told of a failed generation."""
        self._read_line()
        return self._failed

    def _keep(self, part: bytes) -> None:
        self._line += part[: MAX_LINE_BYTES - len(self._line)]

    def _read_line(self) -> None:
        found = _ERROR_EVENT.match(bytes(self._line))
        self._line.clear()
        if found and _error_type(found[1]) not in DID_ITS_PART:
            self._failed = True


def _error_type(event: bytes) -> str:
    """The `error_type` in an error's JSON, "" where none can be read."""
    try:
        error: Any = json.loads(event)
    except ValueError:
        return ""
    return str(error.get("error_type", ""))
