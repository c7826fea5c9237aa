"""lib.http.heads: heads are read as a strict reader does, or refused."""

from __future__ import annotations

import asyncio
import re

import h11
import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser
from hypothesis import given
from hypothesis import strategies as st

from lib.http.heads import (
    BadHead,
    UnknownCoding,
    UnknownExpectation,
    UnknownMethod,
    date_field,
    fields_in,
    parse_request,
    parse_response,
)


def request(*fields: bytes, line: bytes = b"POST /a HTTP/1.1", host: bytes = b"Host: w\r\n") -> bytes:
    """A request's head with `fields`."""
    return line + b"\r\n" + host + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


def answer(*fields: bytes, line: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return request(*fields, line=line, host=b"")


# Requests


def test_a_request_has_its_fields_and_their_values_by_name() -> None:
    head = parse_request(request(b"Accept: a/a", b"X-Id: b", b"accept:  b/b \t", b"Empty:"))
    assert (head.method, head.target, head.is_http10) == ("POST", "/a", False)
    fields = [("Host", "w"), ("Accept", "a/a"), ("X-Id", "b"), ("accept", "b/b"), ("Empty", "")]
    assert fields_in(head.lines) == fields
    assert head.values == {"host": "w", "accept": "a/a, b/b", "x-id": "b", "empty": ""}
    assert (head.length, head.keep_alive, head.expects_continue) == (0, True, False)


def test_values_are_text_whatever_their_bytes_are() -> None:
    head = parse_request(request(b"X: \xc3\xbc", b"Y: \xff"))
    assert head.values["x"] == "ü"
    assert head.values["y"].encode("utf-8", "surrogateescape") == b"\xff"


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        ((), 0),
        ((b"Content-Length: 0",), 0),
        ((b"Content-Length: 5",), 5),
        ((b"Content-Length:5 \t",), 5),
        ((b"Content-Length: 0005",), 5),
        ((b"content-length: 999999999999999999",), 10**18 - 1),
        ((b"Transfer-Encoding: chunked",), None),
        ((b"transfer-encoding:\tCHUNKED ",), None),
    ],
)
def test_the_length_of_a_body(fields: tuple[bytes, ...], length: int | None) -> None:
    for line in (b"POST / HTTP/1.1", b"GET / HTTP/1.1", b"DELETE /a?b=c HTTP/1.1"):
        assert parse_request(request(*fields, line=line)).length == length


SMUGGLING = [
    request(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    request(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    request(b"Content-Length: 5", b"Content-Length: 5"),
    request(b"Content-Length: 5", b"Content-Length: 6"),
    request(b"Content-Length: 5, 5"),
    request(b"Content-Length: +5"),
    request(b"Content-Length: -5"),
    request(b"Content-Length: 0x5"),
    request(b"Content-Length: 5_0"),
    request(b"Content-Length: 5 0"),
    request("Content-Length: \u0665".encode()),
    request(b"Content-Length:"),
    request(b"Content-Length: 1000000000000000000"),
    request(b"Content-Length: 18446744073709551621"),
    request(b"Content-Length : 5"),
    request(b"Content-Length\t: 5"),
    request(b"Content-Length: 5\x0b"),
    request(b"X: a\r\n Content-Length: 5"),
    request(b" Content-Length: 5"),
    request(b"X: a\n Y: b"),
    request(b"X: a\nContent-Length: 5"),
    request(b"X: a\rContent-Length: 5"),
    request(b"X: a\x00b"),
    request(b"X\x00: a"),
    request(b"X: a\x7f"),
    request(b"X: \x1b[31m"),
    request(b"X(: a"),
    request(b"X\xe9: a"),
    request(b": a"),
    request(b"no colon"),
    request(b"Host: other"),
    request(b"Content-Type: a/a", b"content-type: b/b"),
    request(host=b""),
    request(line=b"POST /a HTTP/1.1 "),
    request(line=b"POST /a b HTTP/1.1"),
    request(line=b"POST /a HTTP/1.2"),
    request(line=b"POST /a HTTP/2.0"),
    request(line=b"POST /a http/1.1"),
    request(line=b"POST /a"),
    request(line=b"POST /\xff HTTP/1.1"),
    request(line=b"POST /\x01 HTTP/1.1"),
    request(line=b"POST a HTTP/1.1"),
    request(line=b"POST * HTTP/1.1"),
    request(line=b"POST http:/// HTTP/1.1"),
    request(line=b"POST http://[::1/ HTTP/1.1"),
    request(line=b"POST http://a:99999/ HTTP/1.1"),
    request(line=b"POST\t/a HTTP/1.1"),
    request(line=b"\x16\x03\x01"),
    request(line=b"PRI * HTTP/2.0"),
    request(line=b"DESCRIBE /a RTSP/1.0"),
    b"POST /a HTTP/1.1\nHost: w\r\n\r\n",
    b"\r\n\r\n",
]


@pytest.mark.parametrize("head", SMUGGLING)
def test_a_head_that_readers_could_see_differently_is_refused(head: bytes) -> None:
    with pytest.raises(BadHead) as refused:
        parse_request(head)
    assert refused.value.status == 400
    assert str(refused.value).isascii()


@pytest.mark.parametrize(
    "codings",
    [
        (b"gzip, chunked",),
        (b"chunked, gzip",),
        (b"gzip",),
        (b"identity",),
        (b"xchunked",),
        (b"chunkedx",),
        (b"chunked;q=1",),
        (b'"chunked"',),
        ("chunked\xa0".encode(),),
        (b"chunked", b"chunked"),
        (b"chunked", b"identity"),
        (b"gzip", b"chunked"),
    ],
)
def test_a_transfer_coding_other_than_chunked_is_a_501(codings: tuple[bytes, ...]) -> None:
    with pytest.raises(UnknownCoding) as refused:
        parse_request(request(*(b"Transfer-Encoding: " + coding for coding in codings)))
    assert refused.value.status == 501


def test_http_1_0_has_no_transfer_coding() -> None:
    with pytest.raises(UnknownCoding):
        parse_request(request(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0"))


def test_http_1_0_needs_no_host_and_closes_unless_it_says_otherwise() -> None:
    head = parse_request(request(b"Expect: 100-continue", line=b"POST / HTTP/1.0", host=b""))
    assert (head.is_http10, head.keep_alive, head.expects_continue) == (True, False, False)
    head = parse_request(request(b"Connection: keep-alive", line=b"POST / HTTP/1.0"))
    assert head.keep_alive


@pytest.mark.parametrize("fields", [(), (b"Content-Length: 5",), (b"Transfer-Encoding: chunked",)])
def test_connection_close_is_seen(fields: tuple[bytes, ...]) -> None:
    for close in (b"Connection: x, Close", b"Connection: close, keep-alive"):
        assert not parse_request(request(*fields, close)).keep_alive
        assert not parse_response(answer(*fields, close)).keep_alive
    assert parse_request(request(*fields, b"Connection: x")).keep_alive
    keep_alive = b"Connection: keep-alive"
    assert parse_request(request(keep_alive, line=b"POST / HTTP/1.0")).keep_alive
    assert parse_response(answer(b"Content-Length: 0", keep_alive, line=b"HTTP/1.0 200 OK")).keep_alive


@pytest.mark.parametrize("line", [b"BREW /a HTTP/1.1", b"post /a HTTP/1.1", b"CONNECT a:1 HTTP/1.1"])
def test_an_unknown_method_is_a_405(line: bytes) -> None:
    with pytest.raises(UnknownMethod) as refused:
        parse_request(request(line=line))
    assert refused.value.status == 405


def test_100_continue_is_the_only_expectation() -> None:
    assert parse_request(request(b"Expect: 100-Continue")).expects_continue
    for expectation in (b"x", b"", b"100-continue, x"):
        with pytest.raises(UnknownExpectation) as refused:
            parse_request(request(b"Expect: " + expectation))
        assert refused.value.status == 417


@pytest.mark.parametrize("upgrade", [b"websocket", b"h2c", b"TLS/1.0"])
def test_an_upgrade_does_not_hide_the_rest_of_the_head(upgrade: bytes) -> None:
    fields = (b"Connection: Upgrade", b"Upgrade: " + upgrade, b"X: y", b"Content-Length: 3")
    head = parse_request(request(*fields))
    assert (head.length, head.values["x"], head.keep_alive) == (3, "y", True)


@pytest.mark.parametrize("line", [b"OPTIONS * HTTP/1.1", b"GET http://w/a?b HTTP/1.1", b"GET //a HTTP/1.1"])
def test_other_forms_of_a_target(line: bytes) -> None:
    assert parse_request(request(line=line)).target.encode() == line.split()[1]


TOKENS = st.text("!#$%&'*+.^_`|~-abcXYZ019", min_size=1, max_size=12)
VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_characters="\x7f"), max_size=20)
TARGETS = st.text("abc/?=&%20.:;@", max_size=20).map(lambda text: "/" + text)
RESERVED = {"connection", "content-length", "expect", "host", "transfer-encoding", "upgrade"}
SINGLE = ("content-type", "content-range", "content-location", "etag", "max-forwards", "server", "user-agent")
FIELDS = st.lists(
    st.tuples(TOKENS.filter(lambda name: name.lower() not in RESERVED | set(SINGLE)), VALUES), max_size=8
)


@given(
    st.sampled_from(["GET", "POST", "PUT", "OPTIONS"]), TARGETS, FIELDS, st.sampled_from([b"", b" ", b"\t "])
)
def test_a_generated_head_is_given_back(
    method: str, target: str, fields: list[tuple[str, str]], space: bytes
) -> None:
    lines = [f"{name}:".encode() + space + value.encode() + space for name, value in fields]
    head = parse_request(request(*lines, line=f"{method} {target} HTTP/1.1".encode()))
    assert (head.method, head.target) == (method, target)
    assert fields_in(head.lines) == [("Host", "w"), *fields]
    expected: dict[str, list[str]] = {"host": ["w"]}
    for name, value in fields:
        expected.setdefault(name.lower(), []).append(value)
    assert head.values == {name: ", ".join(values) for name, values in expected.items()}


@given(st.data())
def test_a_changed_head_is_refused_or_read_as_another_strict_reader_reads_it(data: st.DataObject) -> None:
    head = bytearray(request(b"Content-Length: 12", b"Accept: x/y", b"Connection: close"))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(head) - 5))
        odd = st.sampled_from([b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\x00", b"\x0b", b",", b"+", b"0"])
        head[position : position + data.draw(st.integers(0, 2))] = data.draw(odd | st.binary(max_size=2))
    text = bytes(head).lstrip(b"\r\n") + b"\r\n\r\n"  # the change may have taken its end
    try:
        ours = parse_request(text[: text.index(b"\r\n\r\n") + 4])
    except BadHead:
        return
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(re.sub(rb"^([A-Z]+) +([^ ]+) +", rb"\1 \2 ", text))  # it wants one space
    theirs = reader.next_event()
    assert isinstance(theirs, h11.Request)
    assert theirs.method.decode() == ours.method
    lengths = [int(value) for name, value in theirs.headers if name == b"content-length"]
    assert ours.length == (lengths[0] if lengths else 0)
    theirs_fields = [(n.decode(), v.decode("utf-8", "surrogateescape")) for n, v in theirs.headers]
    assert [(n.lower(), v) for n, v in fields_in(ours.lines)] == theirs_fields


PIECES = st.sampled_from(
    [
        *(
            b"\r\n",
            b"\n",
            b"\r",
            b" ",
            b"\t",
            b":",
            b"\x00",
            b"\x0b",
            b",",
            b"+",
            b"0",
            b";",
            b"/",
            b"?",
            b"#",
            b"@",
        ),
        *(b"[", b"%", b"\xff", b"\xc2\xa0", b"chunked", b"Host: w\r\n", b"Content-Length: 3\r\n"),
        *(b"Transfer-Encoding: chunked\r\n", b"Upgrade: websocket\r\n", b"Connection: upgrade\r\n"),
    ]
)
SEEDS = st.sampled_from(
    [
        request(b"Content-Length: 12", b"Accept: x/y", b"Connection: close"),
        request(b"Transfer-Encoding: chunked", b"Expect: 100-continue", line=b"PUT /a?b=c HTTP/1.1"),
        request(b"Upgrade: websocket", b"Connection: Upgrade", line=b"GET http://w/a HTTP/1.1"),
        request(b"Connection: keep-alive", b"X:y", line=b"GET / HTTP/1.0"),
        request(b"Sec-WebSocket-Key1: x", line=b"OPTIONS * HTTP/1.1"),
    ]
)


@given(SEEDS, st.lists(st.tuples(st.integers(0, 120), st.sampled_from([0, 0, 1, 2]), PIECES), max_size=3))
async def test_aiohttp_reads_one_message_with_the_same_framing(
    seed: bytes, changes: list[tuple[int, int, bytes]]
) -> None:
    head = bytearray(seed)
    for position, size, piece in changes:
        position = min(position, len(head) - 4)
        head[position : position + size] = piece
    text = bytes(head) + b"\r\n\r\n"
    text = text[: text.index(b"\r\n\r\n") + 4].lstrip(b"\r\n")
    try:
        ours = parse_request(text)
    except BadHead:
        return
    loop = asyncio.get_running_loop()
    parser = HttpRequestParser(BaseProtocol(loop), loop, 2**16, auto_decompress=False)
    ((theirs, _),), _, behind = parser.feed_data(text)
    assert behind == b""
    assert (theirs.method, theirs.path) == (ours.method, ours.target)
    assert theirs.chunked == (ours.length is None)
    assert int(theirs.headers.get("Content-Length", "0")) == (ours.length or 0)
    assert not (ours.keep_alive and theirs.should_close)
    assert [value for _, value in fields_in(ours.lines)] == list(theirs.headers.values())


# Answers


@pytest.mark.parametrize(
    ("head", "length", "chunked", "keep_alive"),
    [
        (answer(b"Content-Length: 5"), 5, False, True),
        (answer(b"Content-Length: 5", b"Connection: close"), 5, False, False),
        (answer(b"Transfer-Encoding: chunked"), None, True, True),
        (answer(b"Transfer-Encoding: Chunked\t"), None, True, True),
        (answer(b"Content-Length: 5", b"Transfer-Encoding: chunked"), None, True, False),
        (answer(), None, False, False),
        (answer(line=b"HTTP/1.1 204 No Content"), 0, False, True),
        (answer(b"Content-Length: 5", line=b"HTTP/1.1 304 Not Modified"), 0, False, True),
        (answer(line=b"HTTP/1.1 100 Continue"), 0, False, True),
        (answer(b"Content-Length: 5", line=b"HTTP/1.0 200 OK"), 5, False, False),
        (answer(b"Content-Length: 5", line=b"HTTP/1.1 200"), 5, False, True),
    ],
)
def test_the_framing_of_an_answer(head: bytes, length: int | None, chunked: bool, keep_alive: bool) -> None:
    read = parse_response(head)
    assert (read.length, read.chunked, read.keep_alive) == (length, chunked, keep_alive)


def test_an_answer_keeps_its_fields_as_bytes() -> None:
    read = parse_response(
        answer(b"X-A: \xff ", b"set-cookie: a", b"Set-Cookie: b", line=b"HTTP/1.1 299 \xe9t\xe9")
    )
    assert (read.status, read.reason) == (299, b"\xe9t\xe9")
    assert read.fields == b"X-A: \xff \r\nset-cookie: a\r\nSet-Cookie: b\r\n"
    assert read.values == {b"x-a": b"\xff", b"set-cookie": b"a, b"}


@pytest.mark.parametrize(
    "head",
    [
        answer(b"Transfer-Encoding: gzip, chunked"),
        answer(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"),
        answer(b"Transfer-Encoding: gzip"),
        answer(b"Content-Length: 5", b"Content-Length: 6"),
        answer(b"Content-Length: +5"),
        answer(b"Content-Length: 5, 5"),
        answer(b"Content-Length: 99999999999999999999"),
        answer(b"X: a\x01"),
        answer(b"X: a\x00"),
        answer(b"X: a\r\n folded"),
        answer(b"X : a"),
        answer(b"X: a\nY: b"),
        answer(b"X: a\rY: b"),
        answer(line=b"HTTP/1.1 2x0 OK"),
        answer(line=b"HTTP/1.1 200 \x1b[31m"),
        answer(line=b"HTTP/3.0 200 OK"),
        answer(b"Connection: upgrade", b"Upgrade: x", line=b"HTTP/1.1 101 Switching Protocols"),
        answer(line=b"ICY 200 OK"),
        b"\r\n\r\n",
    ],
)
def test_an_answer_that_is_not_valid_is_refused(head: bytes) -> None:
    with pytest.raises(BadHead):
        parse_response(head)


def test_the_date_is_a_field() -> None:
    assert date_field().startswith(b"Date: ")
    assert date_field().endswith(b" GMT\r\n")
