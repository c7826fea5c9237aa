"""The two routes of the TGI worker, which pass on TGI's answers unchanged.

Owns the detection of failed generations, which count as errors of the worker. TGI answers 424 or, on a
stream, which always begins with 200, sends an error event. Both come quickly, so that counting them as
finished work would make a broken GPU look fast.
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
# The `error_type` of errors that are not failures of TGI. Outside of streams it answers them with 422 and
# 429.
CLIENT_ERRORS = frozenset({"validation", "overloaded"})
# Errors are shorter. Only this much of a line is kept, which is enough to see that a longer one is no error.
MAX_LINE_BYTES = 64 * 1024
_ERROR_EVENT = re.compile(rb'data:\s*(\{\s*"error".*)')


@dataclass(kw_only=True)
class TgiHandler(EndpointHandler[TgiRequest]):
    """`/generate`: one answer, or with `"stream": true` the same stream as `/generate_stream`."""

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
    """`/generate_stream`: an event per token."""

    @property
    def endpoint(self) -> str:
        return "/generate_stream"


class FailureScanner:
    """Looks for errors of TGI in an answer that arrives in chunks, which may end anywhere in a line."""

    def __init__(self) -> None:
        self._failed = False
        self._line = bytearray()

    def add(self, chunk: bytes) -> None:
        """Read the next chunk of the answer."""
        beginning, *more = chunk.split(b"\n")
        self._keep(beginning)
        for line in more:
            self._read_line()
            self._keep(line)

    def end(self) -> bool:
        """Whether the answer, which is complete, contains a failed generation."""
        self._read_line()
        return self._failed

    def _keep(self, part: bytes) -> None:
        self._line += part[: MAX_LINE_BYTES - len(self._line)]

    def _read_line(self) -> None:
        found = _ERROR_EVENT.match(bytes(self._line))
        self._line.clear()
        if found and _error_type(found[1]) not in CLIENT_ERRORS:
            self._failed = True


def _error_type(event: bytes) -> str:
    """The `error_type` in an error's JSON, or "" if there is none."""
    try:
        error: Any = json.loads(event)
    except ValueError:
        return ""
    return str(error.get("error_type", ""))
