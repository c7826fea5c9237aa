"""Errors of requests, with their HTTP status and their public message (docs/protocol.md, "Answers").

Owns the error classes, their answers, printing why a worker can't start, and aborting a connection. It does
not decide the outcome of a request: that is lib/request/verdict.py.
"""

from __future__ import annotations

import errno
import json
import math
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from json.encoder import encode_basestring_ascii
from typing import Any, NamedTuple, TypeVar, cast

from aiohttp import HttpVersion11, web

__all__ = [
    "AnswerCut",
    "BadRequest",
    "BodyStalled",
    "BodyTooLarge",
    "ClientGone",
    "CodingNotUnderstood",
    "DeclinedByAuthor",
    "ForeignOrigin",
    "Invalid",
    "MediaTypeRefused",
    "Misdirected",
    "ModelDown",
    "ModelTimedOut",
    "ModelUnreachable",
    "NoFiles",
    "Refused",
    "SessionGone",
    "SettingsError",
    "TooBusy",
    "Unauthorized",
    "Unavailable",
    "WorkerError",
    "async_result_or_error",
    "describe_error",
    "result_or_error",
]

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

CLIENT_CLOSED_REQUEST = 499  # only logged: the client has left
# `Retry-After` in seconds while the worker loads, runs its benchmark or stops.
RETRY_NOT_READY_S = 10.0
RETRY_WITHOUT_FILES_S = 1.0
RETRY_WITHOUT_MEMORY_S = 1.0
_JSON: Mapping[str, str] = {"Content-Type": "application/json; charset=utf-8"}
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with 0 s: close() resets the connection


class SettingsError(Exception):
    """The environment or a declaration is invalid. `problems` has one line for each problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("cannot start:\n" + "\n".join(f"  - {p}" for p in problems))
        self.problems = tuple(problems)


_prints_refusals = ContextVar("prints_refusals", default=True)


def print_refusal(error: SettingsError) -> None:
    """Print the problems of a worker that can't start to stderr, unless `refusals_collected` does without."""
    if _prints_refusals.get():
        print(error, file=sys.stderr)  # noqa: T201 - there may be no logging yet


@contextmanager
def refusals_collected() -> Generator[None, None, None]:
    """Print no refusals inside the block: its caller reports their problems itself."""
    token = _prints_refusals.set(False)
    try:
        yield
    finally:
        _prints_refusals.reset(token)


class WorkerError(Exception):
    """An error that the worker answers itself, with `status` and a public `message`."""

    status = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def body(self) -> Mapping[str, Any]:
        """The JSON body of the answer."""
        return {"error": self.message}

    def headers(self) -> Mapping[str, str]:
        """The header fields of the answer besides its content type."""
        return {}


class Invalid(WorkerError):
    """422: the request is invalid. `fields` has a message for each wrong field, nested like the request."""

    status = 422

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__("invalid request")
        self.fields = fields

    def body(self) -> Mapping[str, Any]:
        return self.fields


class DeclinedByAuthor(Invalid):
    """422: the author's code has refused the payload; `fields` has its reasons."""


class BadRequest(WorkerError):
    """400: the request is not well-formed HTTP."""

    status = 400


class Unauthorized(WorkerError):
    """401: the signature is invalid, was used before or is for another URL. The message gives no details."""

    status = 401


class ForeignOrigin(WorkerError):
    """403: a page of another origin has sent the request to a port that is for this machine."""

    status = 403

    def __init__(self) -> None:
        super().__init__("requests of other origins' pages are refused")


class BodyStalled(WorkerError):
    """408: the body made no progress for `REQUEST_BODY_TIMEOUT_S`, or took ten times as long in total."""

    status = 408


class SessionGone(WorkerError):
    """410: the session is unknown, has ended or has expired."""

    status = 410

    def __init__(self) -> None:
        super().__init__("the session is unknown, has ended or has expired")


class BodyTooLarge(WorkerError):
    """413: the body is too large. The message names the limit."""

    status = 413


class CodingNotUnderstood(WorkerError):
    """415: the content coding of the body is not supported."""

    status = 415


class MediaTypeRefused(WorkerError):
    """415: the route takes JSON, and the body has another media type."""

    status = 415


class Misdirected(WorkerError):
    """421: the request's `Host` is none of this port's."""

    status = 421

    def __init__(self) -> None:
        super().__init__("the request is for another host")


class Refused(WorkerError):
    """The worker can't take the request now; the outcome is rejected.

    `retry_after_s` is rounded up to whole seconds, from 1 to 3600, for the `Retry-After`.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = max(1, math.ceil(min(retry_after_s, 3600.0)))

    def headers(self) -> Mapping[str, str]:
        return {"Retry-After": str(self.retry_after_s)}


class TooBusy(Refused):
    """429: the estimated or the actual wait exceeds `max_queue_time`, or too many sessions are open."""

    status = 429


class Unavailable(Refused):
    """503: the worker is not ready, or lacks a resource. `state` names the state or the resource."""

    status = 503

    def __init__(self, state: str, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.state = state

    def body(self) -> Mapping[str, Any]:
        return {"error": self.message, "state": self.state}


class NoFiles(Unavailable):
    """503: the worker can open no more files and connections (`ulimit -n`)."""

    def __init__(self) -> None:
        super().__init__("no files", "the worker has reached its limit on open files", RETRY_WITHOUT_FILES_S)


class NoMemory(Unavailable):
    """503: the bodies of all verified requests hold too much memory together (`MAX_BODY_MEMORY_BYTES`)."""

    def __init__(self) -> None:
        message = "the bodies in memory are too large together (MAX_BODY_MEMORY_BYTES)"
        super().__init__("busy", message, RETRY_WITHOUT_MEMORY_S)


class NotReady(Unavailable):
    """503: the worker takes no requests in its current `state`."""

    def __init__(self, state: str, message: str = "") -> None:
        super().__init__(state, message or f"the worker is {state}", RETRY_NOT_READY_S)


class Draining(NotReady):
    """503: the worker is shutting down."""

    def __init__(self) -> None:
        super().__init__("draining", "the worker is stopping")


class ModelUnreachable(WorkerError):
    """502: the model server could not be connected to, or closed the connection before answering."""

    status = 502


class ModelDown(NotReady, ModelUnreachable):
    """503: the model server at `address` takes no connections; `why` says what became of the call."""

    status = 503

    def __init__(self, address: str, why: str = "this request was not tried") -> None:
        super().__init__("errored", f"the model server at {address} is down: {why}")


class ModelTimedOut(WorkerError):
    """504: the model server took longer than `MODEL_TIMEOUT_S`."""

    status = 504


class AnswerCut(Exception):
    """The model server's answer is incomplete, or stalled: the client's connection must be aborted."""


class AnswerStalled(AnswerCut):
    """The model server's answer has begun, and nothing came for `MODEL_STALL_TIMEOUT_S`."""


class ClientGone(Exception):
    """The client has left: no answer can be sent."""


def bare(error: E) -> E:
    """Return `error` without the errors that led to it and the frames that it passed: they hold data."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def is_out_of_files(error: BaseException | None) -> bool:
    """Whether `error` says that this process, or the system, can open no more files."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def describe_error(error: BaseException) -> str:
    """The message of `error`, or the name of its type if the message is empty, as a timeout's is."""
    return str(error) or type(error).__name__


class PlainAnswer(NamedTuple):
    """A whole answer of the worker's own, whoever writes it: `headers` without those of the framing.

    `reason` is the reason phrase, None for the standard one.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    reason: str | None = None

    def response(self) -> web.Response:
        """The same as a response for aiohttp's server."""
        return web.Response(status=self.status, reason=self.reason, headers=self.headers, body=self.body)


def error_answer(error: WorkerError) -> PlainAnswer:
    """The answer that `error` stands for: its status, headers and JSON body.

    An author's `JsonDataException` may hold anything; what is not JSON in it is sent as text.
    """
    if type(error).body is WorkerError.body:  # as most: the same text, without an encoder
        text = f'{{"error": {encode_basestring_ascii(error.message)}}}'
        return PlainAnswer(error.status, {**_JSON, **error.headers()}, text.encode())
    body = error.body()
    try:
        text = json.dumps(body, default=str)
    except (TypeError, ValueError, RecursionError):  # keys that are no strings, circles, or too deep
        text = json.dumps({str(name): str(problem) for name, problem in body.items()})
    return PlainAnswer(error.status, {**_JSON, **error.headers()}, text.encode())


def internal_error_answer(request_id: str) -> PlainAnswer:
    """A 500 without details; the log has the traceback under `request_id`."""
    body = json.dumps({"error": "internal error", "request": request_id})
    return PlainAnswer(500, _JSON, body.encode())


def returnable(raised: web.HTTPException) -> web.Response:
    """Convert an author's HTTP exception to an answer: aiohttp deprecates returning the exception itself."""
    answer = web.Response(
        status=raised.status, reason=raised.reason, headers=raised.headers, body=raised.body
    )
    answer.cookies.update(raised.cookies)
    return answer


def response_from(function: object, returned: object) -> web.StreamResponse:
    """Return what an author's `function` has returned. Raises `TypeError` if that is not a response.

    Its text names the type only: the log has it, and a model's answer may be in what was returned.
    """
    if isinstance(returned, web.StreamResponse):
        return returned
    while isinstance(function, partial):
        function = cast(object, function.func)
    name = getattr(function, "__qualname__", type(function).__name__)
    hint = "is a `return` missing?" if returned is None else "return a web.Response"
    what = "None" if returned is None else f"an object of {type(returned).__name__}"
    raise TypeError(f"{name} returned {what}, not a response: {hint}")


def aborted(request: web.Request) -> web.Response:
    """Abort the client's connection; return an answer for aiohttp, which is not sent."""
    transport = request.transport
    if transport is not None:
        if request.version < HttpVersion11:  # a close would look like the end of the answer
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()
    return web.Response(status=502)


@web.middleware
async def refusals_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer the router's 404 and 405, aiohttp's own errors and every `WorkerError` in JSON.

    See docs/protocol.md, "Answers". Other exceptions of an author's route are raised again.
    """
    refusal = request.match_info.http_exception
    if refusal is None:
        try:
            return await handler(request)
        except WorkerError as e:
            return error_answer(e).response()
        except ClientGone:
            return web.Response(status=CLIENT_CLOSED_REQUEST)
        except OSError as e:
            if is_out_of_files(e):
                return error_answer(NoFiles()).response()
            if isinstance(e, ConnectionResetError) and (
                request.transport is None or request.transport.is_closing()
            ):
                return web.Response(status=CLIENT_CLOSED_REQUEST)
            raise
        except web.HTTPException as e:
            if not _is_of_aiohttp(e):
                raise
            return web.json_response({"error": e.text}, status=e.status, reason=e.reason)
    headers = {k: v for k, v in refusal.headers.items() if k == "Allow"}
    message = f"{request.method} {request.path}: {refusal.reason.lower()}"
    return web.json_response({"error": message}, status=refusal.status, headers=headers)


def _is_of_aiohttp(error: web.HTTPException) -> bool:
    """Whether `error` is one that aiohttp has raised, or that says nothing more than its status."""
    too_large = isinstance(error, web.HTTPRequestEntityTooLarge)
    return too_large or (error.status >= 400 and error.text == f"{error.status}: {error.reason}")


def result_or_error(call: Callable[[], T]) -> T | Exception:
    """Call author code; return its result, or the exception it raised."""
    try:
        return call()
    except Exception as e:  # noqa: BLE001 - an author may raise anything
        return e


async def async_result_or_error(awaitable: Awaitable[T]) -> T | Exception:
    """Await author code; return its result, or the exception it raised."""
    try:
        return await awaitable
    except Exception as e:  # noqa: BLE001 - an author may raise anything
        return e
