"""The connection to the model server, against one with malice (protocol.md §2, "Passing the answer on")."""

from __future__ import annotations

import asyncio
import email
import email.message
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import WSMsgType, web
from aiohttp.test_utils import TestServer, make_mocked_request
from yarl import URL

from lib.errors import Invalid, ModelTimedOut, ModelUnreachable
from lib.model.connection import LARGE_BODY_BYTES, ModelServer, ModelSession, make_form
from lib.uploads import Upload
from tests.fakes.model_server import MaliciousModel, Received, malicious_model


@asynccontextmanager
async def connection(path: str = "", timeout_s: float | None = None) -> AsyncGenerator[Wired, None]:
    async with malicious_model() as model, ModelServer(model.url + path, timeout_s) as server:
        yield Wired(model, server)


class Wired:
    def __init__(self, model: MaliciousModel, server: ModelServer) -> None:
        self.model = model
        self.server = server

    async def post(
        self, path: str, message: object = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        async with self.server.caller(headers or {}).post_json(path, message) as answer:
            return answer.status, await answer.read()

    async def form(self, fields: Mapping[str, Any]) -> email.message.Message:
        """The form that the model server got, parsed by a library that isn't the sender's."""
        async with self.server.caller({}).post_form("/echo", fields) as answer:
            assert answer.status == 200
        sent = self.model.requests[-1]
        head = f"Content-Type: {sent.header('Content-Type')}\r\n\r\n".encode()
        return email.message_from_bytes(head + sent.body)


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


def requests_to(model: MaliciousModel, path: str) -> list[Received]:
    return [r for r in model.requests if r.path == path]


# Connections


async def test_connections_are_kept_and_reused() -> None:
    async with connection() as wired:
        for _ in range(5):
            assert (await wired.post("/echo"))[0] == 200
        assert wired.model.connections == 1


async def test_a_kept_connection_that_was_closed_costs_nothing() -> None:
    async with connection() as wired:
        for _ in range(4):
            assert await wired.post("/stale") == (200, b'{"connection": %d}' % wired.model.connections)
        # Sent once on each fresh connection, and in vain on each kept one.
        assert len(wired.model.requests) > 4
        assert len({r.body for r in wired.model.requests}) == 1


@pytest.mark.parametrize("message", [{"a": "x"}, {"a": "x" * LARGE_BODY_BYTES}])
async def test_what_is_resent_is_the_whole_request(message: Any) -> None:
    async with connection() as wired:
        await wired.post("/stale", message, {"X-Request-Id": "r"})
        assert (await wired.post("/stale", message, {"X-Request-Id": "r"}))[0] == 200
        first, *_, last = wired.model.requests
        assert [h for h in last.headers if h != ("Connection", "close")] == first.headers
        assert last.body == first.body
        assert last.json() == message


async def test_a_form_is_resent_whole() -> None:
    async with connection() as wired:
        for _ in range(2):
            fields = {"file": ("a.bin", b"\x00\xff", "application/octet-stream")}
            async with wired.server.caller({}).post_form("/stale", fields) as answer:
                assert answer.status == 200
        assert len(wired.model.requests) == 3
        assert all(b"\x00\xff" in r.body for r in wired.model.requests)


async def test_a_fresh_connection_that_is_closed_is_tried_once_only() -> None:
    async with connection() as wired:
        with pytest.raises(ModelUnreachable) as failed:
            await wired.post("/close")
        assert failed.value.status == 502
        assert len(wired.model.requests) == 1


async def test_a_server_that_closes_every_connection_is_asked_twice_at_most() -> None:
    async with connection() as wired:
        await wired.post("/echo")
        with pytest.raises(ModelUnreachable):
            await wired.post("/close")
        assert len(requests_to(wired.model, "/close")) == 2


@pytest.mark.parametrize("kept", [False, True])
async def test_a_request_whose_answer_has_begun_is_not_resent(kept: bool) -> None:
    async with connection() as wired:
        if kept:
            await wired.post("/echo")
        with pytest.raises(ModelUnreachable):
            await wired.post("/half_head")
        assert len(requests_to(wired.model, "/half_head")) == 1


async def test_a_server_that_is_gone_is_unreachable_and_back_when_it_is_back() -> None:
    async with connection() as wired:
        assert await wired.server.accepts_connections()
        await wired.post("/echo")
        await wired.model.stop()
        assert not await wired.server.accepts_connections()
        with pytest.raises(ModelUnreachable, match=r"could not be reached: .+"):
            await wired.post("/echo")
        await wired.model.start()
        assert (await wired.post("/echo"))[0] == 200


async def test_an_unknown_host_is_unreachable() -> None:
    async with ModelServer("http://nowhere.invalid:1") as server:
        with pytest.raises(ModelUnreachable):
            async with server.caller({}).get("/"):
                pass


async def test_no_limit_caps_the_calls_at_once() -> None:
    async with connection() as wired:
        calls = [asyncio.create_task(wired.post("/held")) for _ in range(150)]
        await wired.model.until(lambda: wired.model.working == 150)
        wired.model.release()
        assert {status for status, _ in await asyncio.gather(*calls)} == {200}


async def test_a_call_that_is_given_up_is_closed_at_once() -> None:
    async with connection() as wired:
        call = asyncio.create_task(wired.post("/held"))
        await wired.model.until(lambda: wired.model.working == 1)
        call.cancel()
        await wired.model.until(lambda: wired.model.cancelled == 1)
        async with wired.server.caller({}).post_json("/stream", {}) as answer:
            wired.model.step()
            assert await answer.content.readany() == b"data: token 0\n\n"
        await wired.model.until(lambda: wired.model.cancelled == 2)


async def test_a_server_that_takes_too_long_times_out() -> None:
    async with connection(timeout_s=0.05) as wired:
        with pytest.raises(ModelTimedOut) as failed:
            await wired.post("/held")
        assert failed.value.status == 504
        await wired.model.until(lambda: wired.model.cancelled == 1)


async def test_a_kept_connection_that_is_closed_leaves_no_time_for_a_second_try() -> None:
    async with connection(timeout_s=5.0) as wired:
        await wired.post("/stale")
        assert (await wired.post("/stale"))[0] == 200


# What is sent


async def test_nothing_is_added_to_the_clients_headers() -> None:
    async with connection() as wired:
        await wired.post("/echo", {"a": "ü"}, {"Accept": "text/plain", "X-Request-Id": "r"})
        sent = wired.model.requests[0]
        assert {k.lower(): v for k, v in sent.headers} == {
            "host": f"127.0.0.1:{wired.model.port}",
            "content-type": "application/json",
            "content-length": str(len(sent.body)),
            "accept": "text/plain",
            "x-request-id": "r",
        }
        assert sent.json() == {"a": "ü"}


async def test_a_large_body_has_its_length_too() -> None:
    async with connection() as wired:
        await wired.post("/echo", {"a": "x" * LARGE_BODY_BYTES})
        sent = wired.model.requests[0]
        assert sent.header("Content-Length") == str(len(sent.body))
        assert sent.header("Transfer-Encoding") is None


async def test_a_get_has_no_body() -> None:
    async with connection() as wired:
        async with wired.server.caller({}).get("/echo?a=1") as answer:
            seen = json.loads(await answer.read())
        assert (seen["method"], seen["path"], seen["body"]) == ("GET", "/echo?a=1", "")
        assert wired.model.requests[0].header("Content-Length") is None


async def test_redirects_are_not_followed() -> None:
    async with connection() as wired:
        assert (await wired.post("/redirect"))[0] == 307
        assert len(wired.model.requests) == 1


@pytest.mark.parametrize(
    ("base", "target", "url"),
    [
        ("http://m:1", "/generate", "http://m:1/generate"),
        ("http://m:1/", "generate", "http://m:1/generate"),
        ("http://m:1/v1/", "/chat?x=a%26b", "http://m:1/v1/chat?x=a%26b"),
        ("http://m:1/v1", "", "http://m:1/v1/"),
        ("http://m:1/v1", "http://other:2/x", "http://other:2/x"),
        ("http://m:1/v1", URL("https://other/x"), "https://other/x"),
        ("", "http://other:2/x", "http://other:2/x"),
    ],
)
def test_paths_go_below_the_servers_url(base: str, target: str | URL, url: str) -> None:
    assert str(ModelServer(base).resolve(target)) == url


def test_a_handler_without_an_endpoint_says_so() -> None:
    with pytest.raises(ValueError, match="endpoint is None"):
        ModelServer("http://m:1").resolve(None)


async def test_a_server_that_is_not_open_says_so() -> None:
    with pytest.raises(RuntimeError, match="when the worker starts"):
        await ModelServer("http://m:1").pooled.get("/")


async def test_a_caller_may_be_limited_to_some_of_the_clients_headers() -> None:
    async with connection(timeout_s=7.0) as wired:
        all_headers = {"Accept": "text/plain", "x-request-id": "r"}
        caller = wired.server.caller(all_headers, method="PUT").with_headers("X-Request-Id", "Range")
        async with caller.send("/echo", {}) as answer:
            assert answer.status == 200
        sent = wired.model.requests[0]
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
        socket = await server.caller({"X-Request-Id": "r"}).websocket("/ws?id=1", max_message_bytes=1000)
        async with socket:
            await socket.send_str("a")
            assert (await socket.receive()).data == "a" * 100
            await socket.send_str("a" * 100)
            assert (await socket.receive()).type is WSMsgType.ERROR
    assert handshakes[0].query_string == "id=1"
    assert "X-Request-Id" not in handshakes[0].headers


async def test_a_websocket_that_is_refused_is_unreachable() -> None:
    async with connection() as wired:
        with pytest.raises(ModelUnreachable):
            await wired.server.caller({}).websocket("/echo")
        await wired.model.stop()
        with pytest.raises(ModelUnreachable):
            await wired.server.caller({}).websocket("/echo")


# By a method, and with a URL's parameters


@asynccontextmanager
async def sent(
    method: str, endpoint: str | None, message: Any, in_path: Mapping[str, str] | None = None, base: str = ""
) -> AsyncGenerator[Received, None]:
    """What the model server gets; by a client's request where `in_path` has its path's parameters."""
    async with connection(base) as wired:
        client = None
        if in_path is not None:
            client = make_mocked_request(method, "/", match_info=dict(in_path))
        caller = wired.server.caller({}, client, method)
        async with caller.send(endpoint, message) as answer:
            assert answer.status == 200
        yield wired.model.requests[-1]


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
async def test_a_message_without_a_body_is_the_query(
    method: str, endpoint: str, message: Any, path: str
) -> None:
    async with sent(method, endpoint, message) as received:
        assert (received.method, received.path, received.body) == (method, path, b"")
        assert received.header("Content-Type") is None


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
async def test_a_body_keeps_what_the_clients_path_has_and_loses_what_fills_the_path(method: str) -> None:
    message = {"a": 1, "b": 2}
    async with sent(method, "/{a}/echo", message, {"a": "x"}) as received:
        assert (received.method, received.path, received.json()) == (method, "/x/echo", message)
    async with sent(method, "/{a}/echo", message, {}) as received:
        assert (received.method, received.path, received.json()) == (method, "/1/echo", {"b": 2})
    async with sent(method, "/echo", [1]) as received:  # what is no object is sent as it is
        assert received.json() == [1]


async def test_the_clients_path_comes_before_the_message() -> None:
    async with sent("GET", "/{a}/echo", {"a": "mine", "b": 1}, {"a": "ü/?#"}, base="/v1") as received:
        assert received.path == "/v1/%C3%BC%2F%3F%23/echo?b=1"


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        *((dots, "can't be part of a path") for dots in (".", "..", "a/..", "../a", "./a", "a/./b")),
        *((nothing, "missing parameter") for nothing in ("", None)),
    ],
)
async def test_what_would_lead_elsewhere_is_refused_before_anything_is_sent(
    method: str, value: object, said: str
) -> None:
    async with connection() as wired:
        for message in ({"a": value, "b": 1}, {"b": 1} if value is None else {"a": value}):
            with pytest.raises(Invalid) as refused:
                wired.server.caller({}, method=method).send("/{a}/{b}/echo", {"b": 1, **message})
            assert (refused.value.status, refused.value.fields) == (422, {"payload": {"a": said}})
        assert wired.model.requests == []


async def test_an_upload_is_sent_whole_again_when_it_is_sent_once_more(tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"\x00" * 300_000)
    upload = Upload(path, "audio/wav", 300_000, {})
    async with connection() as wired:
        client = make_mocked_request("PUT", "/", match_info={"id": "a b"})
        caller = wired.server.caller({"X-Request-Id": "r"}, client)
        for _ in range(2):
            async with caller.send_upload("/{id}/stale", upload) as answer:
                assert answer.status == 200
        assert len(wired.model.requests) == 3
        for got in wired.model.requests:
            assert (got.method, got.path, got.body) == ("PUT", "/a%20b/stale", path.read_bytes())
            assert got.header("Content-Type") == "audio/wav"
            assert (got.header("Content-Length"), got.header("Transfer-Encoding")) == ("300000", None)
            assert got.header("X-Request-Id") == "r"


# The author's session


async def test_the_authors_session_has_a_clients_methods_below_the_servers_path() -> None:
    async with connection("/v1") as wired:
        session = ModelSession(wired.server)
        for method in ("get", "options", "post", "put", "patch", "delete"):
            async with getattr(session, method)("/echo") as answer:
                assert (await answer.json())["path"] == "/v1/echo"
            assert wired.model.requests[-1].method == method.upper()
        async with session.head("/empty") as answer:
            assert answer.status == 204
        assert wired.model.requests[-1].path == "/v1/empty"
        assert session.closed is False
        async with session.get(f"{wired.model.url}/echo") as answer:
            assert (await answer.json())["path"] == "/echo"


# Forms


async def test_a_form_takes_files_lists_objects_and_scalars() -> None:
    async with connection() as wired:
        form = await wired.form(
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


@pytest.mark.parametrize("value", [b"x", bytearray(b"x"), memoryview(b"x"), [b"x"]])
async def test_bare_bytes_are_no_form_field(value: object) -> None:
    with pytest.raises(TypeError, match="'a' is bare bytes"):
        make_form({"a": value})
    async with connection() as wired:
        with pytest.raises(TypeError):
            wired.server.caller({}).post_form("/echo", {"a": value})
        assert wired.model.requests == []
