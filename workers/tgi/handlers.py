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


class FailureScanner:
    """Looks for a failed generation in one answer of TGI."""

    def __init__(self) -> None:
        self._failed = False
        self._line = bytearray()  # the last line, while its end is missing

    def add(self, chunk: bytes) -> None:
        """Read the next part of a streamed answer; it may end anywhere in a line."""
        # TGI sends each event in a chunk of its own: nearly all consist of whole lines without an error.
        # `find` takes half the time of `in`.
        if chunk.find(b'"error"') >= 0 or self._line or not chunk.endswith(b"\n"):
            self._read(chunk)

    def outcome(self, status: int) -> str | None:
        """Return "errored" for a failed generation, or None."""
        self._read_line()
        return "errored" if self._failed or status == FAILED_GENERATION else None

    def _read(self, chunk: bytes) -> None:
        beginning, *more = chunk.split(b"\n")
        self._keep(beginning)
        for line in more:
            self._read_line()
            self._keep(line)

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
