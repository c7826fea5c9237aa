"""The requests that a handler's calls send to the model server."""

from __future__ import annotations

import asyncio
import email.message
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import StreamReader, WSMsgType, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import TestServer, make_mocked_request

from lib.errors import Invalid, ModelUnreachable
from lib.model.caller import ModelCaller
from lib.model.connection import ModelServer
from lib.model.messages import LARGE_BODY_BYTES, make_form
from lib.uploads import Upload
from tests.fakes.model_server import Received
from tests.lib.model.open_connection import connection


async def test_only_the_clients_headers_are_sent() -> None:
    async with connection() as here:
        await here.post("/echo", {"a": "ü"}, {"Accept": "text/plain", "X-Request-Id": "r"})
        sent = here.model.requests[0]
        assert {k.lower(): v for k, v in sent.headers} == {
            "host": f"127.0.0.1:{here.model.port}",
            "content-type": "application/json",
            "content-length": str(len(sent.body)),
            "accept": "text/plain",
            "x-request-id": "r",
        }
        assert sent.json() == {"a": "ü"}


async def test_a_large_body_is_sent_with_its_length() -> None:
    async with connection() as here:
        await here.post("/echo", {"a": "x" * LARGE_BODY_BYTES})
        sent = here.model.requests[0]
        assert sent.header("Content-Length") == str(len(sent.body))
        assert sent.header("Transfer-Encoding") is None


async def test_a_get_has_no_body() -> None:
    async with connection() as here:
        async with ModelCaller(here.server, {}).get("/echo?a=1") as answer:
            seen = json.loads(await answer.read())
        assert (seen["method"], seen["path"], seen["body"]) == ("GET", "/echo?a=1", "")
        assert here.model.requests[0].header("Content-Length") is None


async def test_redirects_are_not_followed() -> None:
    async with connection() as here:
        assert (await here.post("/redirect"))[0] == 307
        assert len(here.model.requests) == 1


async def test_a_caller_may_be_limited_to_some_of_the_clients_headers() -> None:
    async with connection(timeout_s=7.0) as here:
        all_headers = {"Accept": "text/plain", "x-request-id": "r"}
        caller = ModelCaller(here.server, all_headers, method="PUT").with_headers("X-Request-Id", "Range")
        async with caller.send("/echo", {}) as answer:
            assert answer.status == 200
        sent = here.model.requests[0]
        assert (sent.method, sent.header("X-Request-Id"), sent.header("Accept")) == ("PUT", "r", None)
        assert caller.timeout_s == 7.0


async def test_a_websocket_takes_messages_up_to_its_limit() -> None:
    handshakes: list[web.Request] = []

    async def echo(request: web.Request) -> web.WebSocketResponse:
        handshakes.append(request)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data * 100)
        return socket

    app = web.Application()
    app.router.add_get("/v1/ws", echo)
    async with TestServer(app) as peer, ModelServer(str(peer.make_url("/v1"))) as server:
        socket = await ModelCaller(server, {"X-Request-Id": "r"}).websocket(
            "/ws?id=1", max_message_bytes=1000
        )
        async with socket:
            await socket.send_str("a")
            assert (await socket.receive()).data == "a" * 100
            await socket.send_str("a" * 100)
            assert (await socket.receive()).type is WSMsgType.ERROR
    assert handshakes[0].query_string == "id=1"
    assert "X-Request-Id" not in handshakes[0].headers


async def test_a_websocket_that_is_refused_is_unreachable() -> None:
    async with connection() as here:
        with pytest.raises(ModelUnreachable):
            await ModelCaller(here.server, {}).websocket("/echo")
        await here.model.stop()
        with pytest.raises(ModelUnreachable):
            await ModelCaller(here.server, {}).websocket("/echo")


# The client's method, and parameters of a URL


@asynccontextmanager
async def sent(
    method: str, endpoint: str | None, message: Any, in_path: Mapping[str, str] | None = None, base: str = ""
) -> AsyncGenerator[Received, None]:
    """The request that the model server got. `in_path` are the path parameters of a client's request."""
    async with connection(base) as here:
        client = None
        if in_path is not None:
            body = StreamReader(BaseProtocol(asyncio.get_running_loop()), 1024)
            client = make_mocked_request(method, "/", match_info=dict(in_path), payload=body)
        caller = ModelCaller(here.server, {}, client, method)
        async with caller.send(endpoint, message) as answer:
            assert answer.status == 200
        yield here.model.requests[-1]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize(
    ("endpoint", "message", "path"),
    [
        ("/echo", {}, "/echo"),
        ("/echo", {"a": [], "b": None}, "/echo"),
        ("/echo", {"a": "x y&z=ü+"}, "/echo?a=x+y%26z%3D%C3%BC%2B"),
        ("/echo", {"a": [1, "b", None, True]}, "/echo?a=1&a=b&a=true"),
        ("/echo", {"a": {"b": 1.5}}, "/echo?a=%7B%22b%22:+1.5%7D"),
        ("/echo?v=1", {"a": False}, "/echo?v=1&a=false"),
        ("/{a}/echo", {"a": 5, "b": 6}, "/5/echo?b=6"),
        ("/{a}/{b}/{a}/echo", {"a": True, "b": "c/d"}, "/true/c%2Fd/true/echo"),
        ("/echo", [1, 2], "/echo"),
    ],
)
async def test_methods_without_a_body_send_the_message_in_the_query(
    method: str, endpoint: str, message: Any, path: str
) -> None:
    async with sent(method, endpoint, message) as received:
        assert (received.method, received.path, received.body) == (method, path, b"")
        assert received.header("Content-Type") is None


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
async def test_a_body_loses_the_fields_that_fill_the_path_unless_the_clients_path_has_them(
    method: str,
) -> None:
    message = {"a": 1, "b": 2}
    async with sent(method, "/{a}/echo", message, {"a": "x"}) as received:
        assert (received.method, received.path, received.json()) == (method, "/x/echo", message)
    async with sent(method, "/{a}/echo", message, {}) as received:
        assert (received.method, received.path, received.json()) == (method, "/1/echo", {"b": 2})
    async with sent(method, "/v1/{path}", {"path": "x/echo", "b": 2}) as received:  # the benchmark's
        assert (received.method, received.path, received.json()) == (method, "/v1/x/echo", {"b": 2})
    async with sent(method, "/echo", [1]) as received:  # a message that is not an object is sent unchanged
        assert received.json() == [1]


async def test_a_path_parameter_takes_precedence_over_the_message() -> None:
    async with sent("GET", "/{a}/echo", {"a": "mine", "b": 1}, {"a": "ü/?#"}, base="/v1") as received:
        assert received.path == "/v1/%C3%BC%2F%3F%23/echo?b=1"


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        *((dots, "can't be part of a path") for dots in (".", "..", "a/..", "../a", "./a", "a/./b")),
        *((nothing, "missing parameter") for nothing in ("", None)),
    ],
)
async def test_a_value_that_would_change_the_endpoint_is_refused_before_anything_is_sent(
    method: str, value: object, problem: str
) -> None:
    async with connection() as here:
        for message in ({"a": value, "b": 1}, {"b": 1} if value is None else {"a": value}):
            with pytest.raises(Invalid) as refused:
                ModelCaller(here.server, {}, method=method).send("/{a}/{b}/echo", {"b": 1, **message})
            assert (refused.value.status, refused.value.fields) == (422, {"payload": {"a": problem}})
        assert here.model.requests == []


async def test_a_whole_upload_is_sent_again(tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"\x00" * 300_000)
    upload = Upload(path, "audio/wav", 300_000, {})
    async with connection() as here:
        client = make_mocked_request("PUT", "/", match_info={"id": "a b"})
        caller = ModelCaller(here.server, {"X-Request-Id": "r"}, client, idempotent=True)
        for _ in range(2):
            async with caller.send_upload("/{id}/stale", upload) as answer:
                assert answer.status == 200
        assert len(here.model.requests) == 3
        for got in here.model.requests:
            assert (got.method, got.path, got.body) == ("PUT", "/a%20b/stale", path.read_bytes())
            assert got.header("Content-Type") == "audio/wav"
            assert (got.header("Content-Length"), got.header("Transfer-Encoding")) == ("300000", None)
            assert got.header("X-Request-Id") == "r"


# Forms


def parts_of(form: email.message.Message) -> list[tuple[str, str | None, str, object]]:
    """Name, file name, content type and content of each part."""
    payload: Any = form.get_payload()
    return [
        (
            str(part.get_param("name", header="Content-Disposition")),
            part.get_filename(),
            part.get_content_type(),
            part.get_payload(decode=True),
        )
        for part in payload
    ]


async def test_a_form_holds_files_lists_objects_and_scalars() -> None:
    async with connection() as here:
        form = await here.form(
            {
                "file": ("ü.png", b"\x89PNG", "image/png"),
                "tag": ["a", "b"],
                "none": None,
                "mixed": ["c", None, {"d": 1}, [2]],
                "number": 1.5,
                "yes": True,
                "object": {"e": "ü"},
            }
        )
    got = [(name, kind, content) for name, _, kind, content in parts_of(form)]
    assert got == [
        ("file", "image/png", b"\x89PNG"),
        ("tag", "text/plain", b"a"),
        ("tag", "text/plain", b"b"),
        ("mixed", "text/plain", b"c"),
        ("mixed", "application/json", b'{"d": 1}'),
        ("mixed", "application/json", b"[2]"),
        ("number", "text/plain", b"1.5"),
        ("yes", "text/plain", b"true"),
        ("object", "application/json", b'{"e": "\\u00fc"}'),
    ]


async def test_a_form_reads_a_file_from_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * 3_000_000)
    async with connection() as here:
        form = await here.form({"file": ("a.mp4", path, "video/mp4")})
    assert parts_of(form) == [("file", "a.mp4", "video/mp4", path.read_bytes())]


@pytest.mark.parametrize("value", [b"x", bytearray(b"x"), memoryview(b"x"), [b"x"]])
async def test_bare_bytes_are_refused_as_a_form_field(value: object) -> None:
    with pytest.raises(TypeError, match="'a' is bare bytes"):
        make_form({"a": value})
    async with connection() as here:
        with pytest.raises(TypeError):
            ModelCaller(here.server, {}).post_form("/echo", {"a": value})
        assert here.model.requests == []
