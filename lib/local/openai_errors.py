"""Errors in OpenAI's shape, for clients of the local engine's door: its own, and those of workers.

Owns the shape, and what of it a worker's error becomes. When there is one is openai_gateway.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from aiohttp import web
from multidict import CIMultiDict

from lib.errors import WorkerError
from lib.local.messages import BadMessage, parse_object

# The keys of a worker's own 422, which is nested like the request (protocol.md §2).
_REQUEST_PARTS = frozenset({"auth_data", "body", "payload", "session_id"})

_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
# `code` of the door's own errors.
_CODES: Mapping[int, str] = {
    400: "unreadable_body",
    401: "invalid_api_key",
    404: "not_found",
    413: "body_too_large",
    415: "unknown_content_encoding",
    502: "worker_unreachable",
    503: "no_worker_ready",
}


def refusal(error: WorkerError) -> web.Response:
    """An error of the door's own."""
    return error_answer(error.status, error.message, _CODES.get(error.status), CIMultiDict(error.headers()))


def error_answer(status: int, message: str, code: str | None, headers: CIMultiDict[str]) -> web.Response:
    """An error, with `headers` besides."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "param": None, "code": code}
    return web.json_response({"error": error}, status=status, headers=headers)


def own_error(status: int, body: bytes) -> tuple[str, str | None] | None:
    """Message and code of an error as workers write it (protocol.md §2); None for any other."""
    try:
        answer = parse_object(body)
    except BadMessage:
        return None
    message, state = answer.get("error"), answer.get("state")
    if isinstance(message, str):
        request_id = answer.get("request")  # by which the worker's log has the traceback
        told = f"{message} (request {request_id})" if isinstance(request_id, str) else message
        return told, state if isinstance(state, str) else None
    if status == 422 and answer and set(answer) <= _REQUEST_PARTS:
        return "; ".join(f"{where}: {what}" for where, what in _problems(answer)), None
    return None


def _problems(fields: Mapping[str, object], where: str = "") -> Iterator[tuple[str, object]]:
    """Each wrong field by its path, without `payload`: an OpenAI client knows of no such thing."""
    for name, what in fields.items():
        if isinstance(what, dict):
            inner = "" if not where and name == "payload" else f"{where}{name}."
            yield from _problems(cast("Mapping[str, object]", what), inner)
        else:
            yield where + name, what
