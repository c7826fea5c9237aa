"""The tokens of an answer to the benchmark, counted while it arrives; for the workers openai, tgi and ollama.

Owns the counting of a stream's events and the reading of its end. All other events are counted unparsed: a
loaded server sends more than 10,000 per second. The requests are in each worker's benchmark.py, the forms of
errors in error_events.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from aiohttp import ClientResponse, web

from workers.openai.error_events import has_error, is_error
from workers.openai.workload import CHARACTERS_PER_TOKEN

if TYPE_CHECKING:
    from lib.backend import ModelCaller

# The beginning of an event of `text/event-stream`, and of one of NDJSON, whose lines are JSON objects. The
# JSON has no line breaks, so that text of the model doesn't look like it.
_EVENT = b"\ndata:"
_NDJSON_EVENT = b"\n{"
# The last events of a stream may carry no token: an empty text with the reason for the end, the usage,
# `[DONE]`. They are parsed.
MAX_LAST_EVENTS = 4
# This much of an answer's end is kept. The last events are shorter, and so is an answer that isn't streamed.
END_BYTES = 64 * 1024
MAX_EXCERPT = 500


@dataclass(frozen=True)
class AnswerFormat:
    """The members of an event, or of a whole answer, that matter: a token or its text, and the usage.

    Both return a false value if the member is missing. `usage` is the server's own number of the tokens.
    `is_ndjson`: each line of a stream is an event's JSON; otherwise streams are `text/event-stream`.
    """

    token: Callable[[Any], Any]
    usage: Callable[[Any], Any]
    is_ndjson: bool = False


async def count_tokens(model: ModelCaller, answer: ClientResponse, form: AnswerFormat) -> web.Response:
    """Read `answer` to its end; note its progress and, as its workload, the number of generated tokens.

    Returns the answer's outcome: the status and body of an error, 502 for an error in a stream and for an
    answer without tokens, or else the number of tokens.
    """
    if not 200 <= answer.status < 300:
        return web.Response(status=answer.status, body=await answer.read())
    counter = TokenCounter(form)
    noted = 0
    while chunk := await answer.content.readany():
        counter.add(chunk)
        if counter.certain > noted:
            model.note_progress(counter.certain - noted)
            noted = counter.certain
    if (error := counter.error()) is not None:
        return web.Response(status=502, body=error)
    with_token, tokens = counter.total()
    if not tokens:
        return web.json_response({"error": f"the answer has no token: {counter.excerpt()}"}, status=502)
    if with_token > noted:
        model.note_progress(with_token - noted)
    model.note_workload(float(tokens))
    return web.json_response({"tokens": tokens}, status=answer.status)


class TokenCounter:
    """Counts the tokens of one answer: a stream of events or, if the server doesn't stream, one object."""

    def __init__(self, form: AnswerFormat) -> None:
        self._form = form
        self._event = _NDJSON_EVENT if form.is_ndjson else _EVENT
        self._events = 0
        self._end = bytearray(b"\n")  # the first event may be the first line

    def add(self, chunk: bytes) -> None:
        """Read the next part of the answer; it may end anywhere."""
        self._end += chunk
        # The beginning of an event may be split between two parts.
        start = max(0, len(self._end) - len(chunk) - len(self._event) + 1)
        self._events += self._end.count(self._event, start)
        if len(self._end) > 2 * END_BYTES:
            del self._end[:-END_BYTES]

    @property
    def certain(self) -> int:
        """The number of events so far, without those that may be the last ones."""
        return max(0, self._events - MAX_LAST_EVENTS)

    def error(self) -> bytes | None:
        """The error with which the answer ended, or None."""
        if not self._events and has_error(bytes(self._end)):
            return bytes(self._end).strip()
        lines = (line for line in reversed(self._lines()) if b"error" in line)
        if self._form.is_ndjson:
            return next((line for line in lines if has_error(line)), None)
        # An error's name stands in the line before its data.
        return next((line.partition(b":")[2].strip() for line in lines if is_error(line)), None)

    def total(self) -> tuple[int, float]:
        """The number of events with a token, and of tokens: by the usage, or else as many as events."""
        if not self._events:
            return 0, self._in_whole_answer(_json(bytes(self._end)))
        lines = self._lines()
        if self._form.is_ndjson:
            events = [line for line in lines if line.startswith(b"{")]
        else:
            events = [data for name, _, data in (line.partition(b":") for line in lines) if name == b"data"]
        with_token, usage = self._events, 0
        for data in reversed(events[-MAX_LAST_EVENTS:]):
            event = _json(data)
            usage = usage or _count(self._form.usage(event))
            if self._form.token(event):
                break
            with_token -= 1
        return with_token, usage or with_token

    def _in_whole_answer(self, answer: Any) -> float:
        """The tokens of an answer that isn't streamed; without usage, an estimate by the text's length."""
        text = self._form.token(answer)
        estimate = len(text) / CHARACTERS_PER_TOKEN if isinstance(text, str) else 0.0
        return _count(self._form.usage(answer)) or estimate

    def _lines(self) -> list[bytes]:
        return bytes(self._end).splitlines()

    def excerpt(self) -> str:
        """The answer's end, for a message."""
        return bytes(self._end[-MAX_EXCERPT:]).decode(errors="replace").strip()


def member(value: Any, *path: str | int) -> Any:
    """The member at `path` in JSON, whose steps are names and indexes; None if there is none."""
    for step in path:
        if isinstance(step, str):
            value = cast("Mapping[str, Any]", value).get(step) if isinstance(value, dict) else None
        else:
            items = cast("Sequence[Any]", value) if isinstance(value, list) else ()
            value = items[step] if step < len(items) else None
    return value


def _count(value: Any) -> int:
    """A usage, or 0 if it isn't a number above 0."""
    return value if type(value) is int and value > 0 else 0


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None
