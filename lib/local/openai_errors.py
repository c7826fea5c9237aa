"""Errors in the format of OpenAI's API: those of the OpenAI gateway, and those of workers.

Owns the format and the translation of workers' errors into it. Does not own when an error is answered
(openai_gateway.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from aiohttp import web
from multidict import CIMultiDict

from lib.errors import WorkerError
from lib.local.messages import BadMessage, parse_object

# The keys of a worker's 422 body, which is nested like the request (docs/protocol.md, "Answers").
_REQUEST_PARTS = frozenset({"auth_data", "body", "payload", "session_id"})

_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
# `code` of the gateway's own errors.
_CODES: Mapping[int, str] = {
    400: "unreadable_body",
    401: "invalid_api_key",
    404: "not_found",
    413: "body_too_large",
    415: "unknown_content_encoding",
    502: "worker_unreachable",
    503: "no_worker_ready",
}


def gateway_error(error: WorkerError) -> web.Response:
    """The response for an error of the gateway itself."""
    return openai_error(error.status, error.message, _CODES.get(error.status), CIMultiDict(error.headers()))


def openai_error(status: int, message: str, code: str | None, headers: CIMultiDict[str]) -> web.Response:
    """An error response with additional `headers`."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "param": None, "code": code}
    return web.json_response({"error": error}, status=status, headers=headers)


def worker_error(status: int, body: bytes) -> tuple[str, str | None] | None:
    """Message and code of a worker's own error (docs/protocol.md, "Answers"); None for any other body."""
    try:
        answer = parse_object(body)
    except BadMessage:
        return None
    message, state = answer.get("error"), answer.get("state")
    if isinstance(message, str):
        request_id = answer.get("request")  # the id under which the worker's log has the traceback
        text = f"{message} (request {request_id})" if isinstance(request_id, str) else message
        return text, state if isinstance(state, str) else None
    if status == 422 and answer and set(answer) <= _REQUEST_PARTS:
        return "; ".join(f"{where}: {problem}" for where, problem in _problems(answer)), None
    return None


def _problems(fields: Mapping[str, object], where: str = "") -> Iterator[tuple[str, object]]:
    """Each wrong field by its path, without the prefix `payload`, which OpenAI's clients don't send."""
    for name, problem in fields.items():
        if isinstance(problem, dict):
            inner = "" if not where and name == "payload" else f"{where}{name}."
            yield from _problems(cast("Mapping[str, object]", problem), inner)
        else:
            yield where + name, problem
