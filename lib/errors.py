"""What can go wrong on a request's way, with its HTTP status and what the client is told.

Owns the error classes and the one mapping of exceptions to answers. What a ledger entry becomes is in
metrics.py; how a broken stream is aborted is in backend.py.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from aiohttp import HttpVersion11, web

__all__ = [
    "AnswerCut",
    "BodyStalled",
    "BodyTooLarge",
    "ClientGone",
    "CodingNotUnderstood",
    "Invalid",
    "MediaTypeRefused",
    "ModelTimedOut",
    "ModelUnreachable",
    "Refused",
    "SessionGone",
    "SettingsError",
    "TooBusy",
    "Unauthorized",
    "Unavailable",
    "WorkerError",
]

T = TypeVar("T")

CLIENT_CLOSED_REQUEST = 499  # nobody is there to read it
# `Retry-After` while the worker loads, measures or stops.
RETRY_NOT_READY_S = 10.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets the connection


class SettingsError(Exception):
    """The environment, or a declaration, can't work. `problems` has a line for each thing that is wrong."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("cannot start:\n" + "\n".join(f"  - {p}" for p in problems))
        self.problems = tuple(problems)


class WorkerError(Exception):
    """An answer of the worker's own: `status`, and a public `message`."""

    status = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def body(self) -> Mapping[str, Any]:
        return {"error": self.message}

    def headers(self) -> Mapping[str, str]:
        return {}


class Invalid(WorkerError):
    """422: `fields` says what is wrong, nested like the request (protocol.md §2)."""

    status = 422

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__("invalid request")
        self.fields = fields

    def body(self) -> Mapping[str, Any]:
        return self.fields


class Unauthorized(WorkerError):
    """401: says whether it was the signature, a replay or the URL, and no more."""

    status = 401


class BodyStalled(WorkerError):
    """408: the body made no progress for `REQUEST_BODY_TIMEOUT_S`, or took ten times as long."""

    status = 408


class SessionGone(WorkerError):
    """410: the session is unknown, has ended or has expired."""

    status = 410

    def __init__(self) -> None:
        super().__init__("the session is unknown, has ended or has expired")


class BodyTooLarge(WorkerError):
    """413: names the limit."""

    status = 413


class CodingNotUnderstood(WorkerError):
    """415: the request's body is compressed in a way that isn't understood."""

    status = 415


class MediaTypeRefused(WorkerError):
    """415: the route takes JSON, and the request's body is something else."""

    status = 415


class Refused(WorkerError):
    """Not now: counted as rejected. `retry_after_s` is rounded up to whole seconds, at least 1."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = max(1, math.ceil(min(retry_after_s, 3600.0)))

    def headers(self) -> Mapping[str, str]:
        return {"Retry-After": str(self.retry_after_s)}


class TooBusy(Refused):
    """429: it would wait, or has waited, longer than `max_queue_time`."""

    status = 429


class Unavailable(Refused):
    """503: `state` names why: a state of the worker's, or what it lacks."""

    status = 503

    def __init__(self, state: str, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.state = state

    def body(self) -> Mapping[str, Any]:
        return {"error": self.message, "state": self.state}


class NotReady(Unavailable):
    """503: the worker is in a state in which it takes no requests."""

    def __init__(self, state: str, message: str = "") -> None:
        super().__init__(state, message or f"the worker is {state}", RETRY_NOT_READY_S)


class Draining(NotReady):
    """503: the worker has been stopped while the request waited."""

    def __init__(self) -> None:
        super().__init__("draining", "the worker is stopping")


class ModelUnreachable(WorkerError):
    """502: no connection, or none that gave a status line."""

    status = 502


class ModelTimedOut(WorkerError):
    """504: `MODEL_TIMEOUT_S` passed."""

    status = 504


class AnswerCut(Exception):
    """The model server's answer ended before it was whole: abort the client's connection."""


class ClientGone(Exception):
    """The client left: nobody is there to answer."""


def describe_error(error: BaseException) -> str:
    """The message of `error`, or its type's name where the message is empty, as a timeout's is."""
    return str(error) or type(error).__name__


def error_response(error: WorkerError) -> web.Response:
    return web.json_response(
        error.body(),
        status=error.status,
        headers=error.headers(),
        dumps=partial(json.dumps, default=str),  # an author's `JsonDataException` may hold an exception
    )


def internal_error_response(request_id: str) -> web.Response:
    """A bare 500 that names the request under whose id the log has the traceback."""
    return web.json_response({"error": "internal error", "request": request_id}, status=500)


def returnable(raised: web.HTTPException) -> web.Response:
    """An author's HTTP exception as an answer; aiohttp is about to take none that is returned as it is."""
    answer = web.Response(
        status=raised.status, reason=raised.reason, headers=raised.headers, body=raised.body
    )
    answer.cookies.update(raised.cookies)
    return answer


def aborted(request: web.Request) -> web.Response:
    """Abort the client's connection; the answer given here reaches nobody."""
    transport = request.transport
    if transport is not None:
        if request.version < HttpVersion11:  # its answer ends with its connection: only a reset tells
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()
    return web.Response(status=502)


@web.middleware
async def refusals_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """The router's own 404 and 405, and every `WorkerError`, as the answers that clients are promised.

    What else an author's route raises is left as it is.
    """
    refusal = request.match_info.http_exception
    if refusal is None:
        try:
            return await handler(request)
        except WorkerError as e:
            return error_response(e)
        except ClientGone:
            return web.Response(status=CLIENT_CLOSED_REQUEST)
    headers = {k: v for k, v in refusal.headers.items() if k == "Allow"}
    message = f"{request.method} {request.path}: {refusal.reason.lower()}"
    return web.json_response({"error": message}, status=refusal.status, headers=headers)


def result_or_error(call: Callable[[], T]) -> T | Exception:
    """What `call`, an author's code whose failure is no end, gives or raises."""
    try:
        return call()
    except Exception as e:  # noqa: BLE001 - an author may raise anything
        return e


async def async_result_or_error(awaitable: Awaitable[T]) -> T | Exception:
    """What `awaitable`, an author's code whose failure is no end, gives or raises."""
    try:
        return await awaitable
    except Exception as e:  # noqa: BLE001 - an author may raise anything
        return e
