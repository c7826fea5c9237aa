"""Heads of HTTP/1.1 messages: the start line and the header fields (RFC 9112, sections 2 to 6).

Owns parsing a head whose end was found, by httptools, and what the head says of the body's length. The rules
are those of a strict reader: a message whose length two readers could see differently is an error.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from email.utils import formatdate
from typing import Any

import httptools
import msgspec
from yarl import URL

_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ /")
# What httptools lets pass in a reason phrase.
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]+")
# Fields of which a request may have one only, besides those of the framing: readers differ in which of two
# counts.
_SINGLETONS = frozenset(
    (
        *("content-location", "content-range", "content-type", "etag", "host", "max-forwards", "server"),
        "user-agent",
    )
)
HEAD_END = b"\r\n\r\n"


class BadHead(ValueError):
    """The head can't be read. The message says what is wrong, without any byte of the head.

    `status` is that of the answer to a request with this head.
    """

    status = 400


class UnknownMethod(BadHead):
    """The request's method is none that is registered, or CONNECT, which is for proxies."""

    status = 405


class UnknownExpectation(BadHead):
    """The request expects something other than `100-continue`."""

    status = 417


class UnknownCoding(BadHead):
    """The body has a transfer coding other than `chunked`."""

    status = 501


class RequestHead(msgspec.Struct, gc=False):  # made for each request: in a quarter of a NamedTuple's time
    """The head of a request. `length` is that of the body in bytes, None if it is chunked.

    `target` is the path with the query as it was received. `lines` are the header fields as they came,
    without their line ends; `values` their values by the names in lower case, those of a repeated name joined
    by ", ". `is_http10`: the request is in HTTP/1.0.
    """

    method: str
    target: str
    lines: list[str]
    values: dict[str, str]
    length: int | None
    keep_alive: bool
    expects_continue: bool
    is_http10: bool


class ResponseHead(msgspec.Struct, gc=False):
    """The head of an answer. `length` is that of its body in bytes; None if it is not known.

    `fields` is the text of the header fields, each with its line end; `values` their values by the names in
    lower case, those of a repeated name joined by ", ". `chunked`: the body is chunked. If it is neither
    chunked nor of a known length, the connection's end ends it.
    """

    status: int
    reason: bytes
    fields: bytes
    values: dict[bytes, bytes]
    length: int | None
    chunked: bool
    keep_alive: bool


class _Checked:
    """The receiver of what httptools reports, which is used for checking only: a call a field costs more."""

    __slots__ = ()


_CHECKED = _Checked()


def parse_request(head: bytes) -> RequestHead:
    """Parse a request's head, up to and with the empty line. Raises `BadHead`."""
    _check_request(head)
    start, *lines = head[:-4].decode("utf-8", "surrogateescape").split("\r\n")
    method, _, target = start.partition(" ")
    target, _, version = target.rpartition(" ")
    is_http11 = version == "HTTP/1.1"
    # httptools reads RTSP and HTTP/0.9 as well.
    if not (target.isascii() and (is_http11 or version == "HTTP/1.0")):
        raise BadHead("the request is not valid HTTP/1.1")
    values: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        values[name.lower()] = value.strip(" \t")
    if len(values) < len(lines):
        values = _joined(lines)
    if is_http11 and "host" not in values:
        raise BadHead("the request has no Host")
    if "sec-websocket-key1" in values:  # aiohttp doesn't read such requests
        raise BadHead("WebSocket before RFC 6455 is not supported")
    if not target.startswith("/"):
        _check_target(method, target)
    coding = values.get("transfer-encoding")
    if coding is not None and (coding.lower() != "chunked" or not is_http11):
        raise UnknownCoding("the transfer coding is not supported: send chunked")
    connection = values.get("connection")
    if connection == "keep-alive":  # most send this, or none
        keep_alive = True
    else:
        keep_alive = is_http11 if connection is None else _keeps_alive(connection, is_http11)
    length = values.get("content-length")
    return RequestHead(
        method,
        target,
        lines,
        values,
        None if coding is not None else 0 if length is None else _content_length(length),
        keep_alive,
        "expect" in values and is_http11 and _expects_continue(values["expect"]),
        not is_http11,
    )


def fields_in(lines: Sequence[str]) -> list[tuple[str, str]]:
    """The names and values of the header fields in the `lines` of a request's head."""
    parts = (line.partition(":") for line in lines)
    return [(name, value.strip(" \t")) for name, _, value in parts]


def _joined(lines: Sequence[str]) -> dict[str, str]:
    """The values of header fields of which some have the same name. Raises `BadHead` if they may not."""
    values: dict[str, str] = {}
    for name, value in fields_in(lines):
        key = name.lower()
        if key in values:
            if key in _SINGLETONS:
                raise BadHead("the request has two of a header field of which only one is allowed")
            value = f"{values[key]}, {value}"
        values[key] = value
    return values


def _check_request(head: bytes) -> None:
    """Check a request's head against the grammar of HTTP/1.1, by httptools. Raises `BadHead`."""
    if b"\n\n" in head:  # refused at once also if the rest has not come
        raise BadHead("the request is not valid HTTP/1.1")
    parser = httptools.HttpRequestParser(_CHECKED)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade as e:
        if parser.get_method() == b"CONNECT":
            raise UnknownMethod("the method is unknown") from e
    except httptools.HttpParserInvalidMethodError as e:
        if _METHOD.match(head):
            raise UnknownMethod("the method is unknown") from e
        raise BadHead("the request is not valid HTTP/1.1") from e
    except httptools.HttpParserError as e:
        if "Transfer-Encoding`" in str(e):
            raise UnknownCoding("the transfer coding is not supported: send chunked") from e
        raise BadHead("the request is not valid HTTP/1.1") from e


def _check_target(method: str, target: str) -> None:
    """Check a request's target that is no path (RFC 9112, section 3.2). Raises `BadHead`."""
    if target == "*" and method == "OPTIONS":
        return
    try:
        if _ABSOLUTE.match(target) and URL(target, encoded=True).raw_host:
            return
    except ValueError:
        pass
    raise BadHead("the request's target is neither a path nor a URL")


def _expects_continue(expectation: str) -> bool:
    """Return true. Raises `UnknownExpectation`."""
    if expectation.lower() != "100-continue":
        raise UnknownExpectation("the expectation is not supported: send 100-continue")
    return True


def parse_response(head: bytes) -> ResponseHead:
    """Parse an answer's head, up to and with the empty line. Raises `BadHead`."""
    is_http11 = head.startswith(b"HTTP/1.1")
    if not (is_http11 or head.startswith(b"HTTP/1.0")):
        raise BadHead("is not valid HTTP/1.1")
    parser: Any = httptools.HttpResponseParser(_CHECKED)
    # Both framings in one answer: the chunked one counts (RFC 9112, section 6.3), and the connection is not
    # used again.
    parser.set_dangerous_leniencies(lenient_chunked_length=True)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade as e:
        raise BadHead("switches protocols") from e
    except httptools.HttpParserError as e:
        raise BadHead("is not valid HTTP/1.1") from e
    start, *lines = head[:-4].split(b"\r\n")
    if _CONTROL.search(start):
        raise BadHead("has a control character in its head")
    values: dict[bytes, bytes] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        key = name.lower()
        value = value.strip(b" \t")
        values[key] = b"%s, %s" % (values[key], value) if key in values else value
    length = values.get(b"content-length")
    coding = values.get(b"transfer-encoding")
    if coding is not None and coding.lower() != b"chunked":
        raise BadHead("has a transfer coding other than chunked")
    length_bytes = None if length is None else _content_length(length)
    chunked, connection = coding is not None, values.get(b"connection")
    # httptools has forgotten the fields of an answer without a body, whose end it has seen.
    keep_alive = is_http11 if not connection else _keeps_alive(connection.decode("latin-1"), is_http11)
    status = parser.get_status_code()
    if status < 200 or status in (204, 304):
        length_bytes, chunked = 0, False
    elif chunked == (length is not None):  # both framings, or none
        keep_alive = False
    length_bytes = None if chunked else length_bytes
    return ResponseHead(
        status, start[13:], head[len(start) + 2 : -2], values, length_bytes, chunked, keep_alive
    )


def _keeps_alive(connection: str, is_http11: bool) -> bool:
    """Whether the value of `Connection` keeps the connection open (RFC 9112, section 9.3)."""
    options = {option.strip(" \t") for option in connection.lower().split(",")}
    return "close" not in options and (is_http11 or "keep-alive" in options)


def _content_length(value: str | bytes) -> int:
    """The value of `Content-Length`. Raises `BadHead`."""
    if not (value.isdigit() and value.isascii() and len(value) <= 18):
        raise BadHead("has an invalid Content-Length")
    return int(value)


class _Date:
    """The `Date` field of the latest second for which one was asked."""

    second = -1
    field = b""


def date_field() -> bytes:
    """The `Date` field of now, with its line end (RFC 9110, section 6.6.1)."""
    second = int(time.time())
    if second != _Date.second:
        _Date.second, _Date.field = second, f"Date: {formatdate(second, usegmt=True)}\r\n".encode()
    return _Date.field
