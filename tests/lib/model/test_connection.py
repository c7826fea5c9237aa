"""The connection to the model server, against one with malice (protocol.md §2, "Passing the answer on")."""

from __future__ import annotations

import asyncio
import email
import email.message
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from yarl import URL

from lib.errors import ModelTimedOut, ModelUnreachable
from lib.model.connection import LARGE_BODY_BYTES, ModelServer, ModelSession, make_form
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
        await ModelServer("http://m:1").kept.get("/")


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
