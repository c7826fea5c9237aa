"""The two routes of the TGI worker, which pass on TGI's answers unchanged.

Owns the detection of errors in streams, which count as errors of the worker. A stream always begins with 200,
and an error is an event in it, which comes quickly: counting it as finished work would make a broken GPU look
fast.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lib.data_types import EndpointHandler
from workers.openai.line_scanner import LineScanner
from workers.tgi.data_types import TgiRequest

# Errors are shorter. Only this much of a line is kept, which is enough to see that a longer one is no error.
MAX_LINE_BYTES = 64 * 1024
_ERROR_EVENT = re.compile(rb'data:\s*\{\s*"error"')


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

    def endpoint_for(self, payload: TgiRequest) -> str:
        return "/generate_stream" if payload.stream else self.endpoint

    def scan_answer(self) -> FailureScanner:
        return FailureScanner()


@dataclass(kw_only=True)
class TgiStreamHandler(TgiHandler):
    """`/generate_stream`: an event per token."""

    @property
    def endpoint(self) -> str:
        return "/generate_stream"


class FailureScanner(LineScanner):
    """Looks for an error in one stream of TGI."""

    mark = b'"error"'
    max_line_bytes = MAX_LINE_BYTES

    def is_failure(self, line: bytes) -> bool:
        return _ERROR_EVENT.match(line) is not None

    def outcome(self, status: int) -> str | None:
        """Return "errored" if there is an error in the stream, or None."""
        return "errored" if self.has_failed() else None
