"""The detection of errors in the streams of OpenAI-compatible servers.

A stream always begins with status 200, so that a later failure is an event in it. Counting such an answer as
finished work would make a broken GPU look fast. Owns the forms of these events.
"""

from __future__ import annotations

import json
import re
from typing import Any, cast

from workers.openai.line_scanner import LineScanner

# `type` of the events for a failure in streams of `/v1/responses`.
_FAILURES = ("error", "response.failed")
# Of a longer line only this much is kept. Error events are shorter, except for a response that failed after a
# long text, which is in its event.
MAX_LINE_BYTES = 1024 * 1024
_CUT_ERROR = re.compile(rb'\{\s*"error"\s*:\s*[{"]')


class ErrorScanner(LineScanner):
    """Looks for an error in one streamed answer. An event's line has one of these forms:

    - `data: {"error": …}`: vLLM, SGLang and llama.cpp. The status in it says little: vLLM writes 400 for its
      own failures too.
    - `data: {"type": "error", …}` or `{"type": "response.failed", …}`, after a line `event: error` or
      `event: response.failed`: streams of `/v1/responses`.
    - `error: {…}`: older versions of llama.cpp.
    """

    mark = b"error"  # in the text of every form above
    max_line_bytes = MAX_LINE_BYTES

    def is_failure(self, line: bytes) -> bool:
        return is_error(line)


def is_error(line: bytes) -> bool:
    """Whether a line of a stream says that the generation failed."""
    name, _, value = line.partition(b":")
    value = value.strip()
    if name == b"data":
        return has_error(value)
    return (name == b"event" and value == b"error") or (name == b"error" and value.startswith(b"{"))


def has_error(data: bytes) -> bool:
    """Whether an event's data is an error; other events may have the field too, with null."""
    try:
        event: Any = json.loads(data)
    except (ValueError, RecursionError):
        return _CUT_ERROR.match(data) is not None  # the stream ended in the middle of it
    if not isinstance(event, dict):
        return False
    fields = cast("dict[str, Any]", event)
    return bool(fields.get("error")) or fields.get("type") in _FAILURES
