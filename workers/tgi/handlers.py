"""The two routes of the TGI worker, which pass on TGI's answers unchanged.

Owns the detection of failed generations, which count as errors of the worker. TGI answers 424 or, on a
stream, which always begins with 200, sends an error event. Both come quickly, so that counting them as
finished work would make a broken GPU look fast.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from lib.data_types import EndpointHandler
from workers.openai.line_scanner import LineScanner
from workers.tgi.data_types import TgiRequest

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
    """Looks for a failed generation in one answer of TGI."""

    mark = b'"error"'
    max_line_bytes = MAX_LINE_BYTES

    def is_failure(self, line: bytes) -> bool:
        found = _ERROR_EVENT.match(line)
        return found is not None and _error_type(found[1]) not in CLIENT_ERRORS

    def outcome(self, status: int) -> str | None:
        """Return "errored" for a failed generation, or None."""
        return "errored" if self.has_failed() or status == FAILED_GENERATION else None


def _error_type(event: bytes) -> str:
    """The `error_type` in an error's JSON, or "" if there is none."""
    try:
        error: Any = json.loads(event)
    except ValueError:
        return ""
    return str(error.get("error_type", ""))
