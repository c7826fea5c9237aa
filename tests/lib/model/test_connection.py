"""The connection to the model server: pooling, resending, failures."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from yarl import URL

from lib.errors import ModelTimedOut, ModelUnreachable
from lib.model.caller import ModelCaller
from lib.model.connection import ModelServer, ModelSession
from lib.model.messages import LARGE_BODY_BYTES
from tests.fakes.model_server import MaliciousModel, Received
from tests.lib.model.open_connection import connection


def requests_to(model: MaliciousModel, path: str) -> list[Received]:
    return [r for r in model.requests if r.path == path]


async def test_connections_are_kept_and_reused() -> None:
    async with connection() as here:
        for _ in range(5):
            assert (await here.post("/echo"))[0] == 200
        assert here.model.connections == 1


async def test_an_idempotent_request_whose_connection_was_closed_is_sent_again() -> None:
    async with connection() as here:
        for _ in range(4):
            status, body = await here.post("/stale", idempotent=True)
            assert (status, body) == (200, b'{"connection": %d}' % here.model.connections)
        # Each new connection carried one request, and each reused one a request that was lost.
        assert len(here.model.requests) > 4
        assert len({r.body for r in here.model.requests}) == 1


@pytest.mark.parametrize("message", [{"a": "x"}, {"a": "x" * LARGE_BODY_BYTES}])
async def test_the_whole_request_is_sent_again(message: Any) -> None:
    async with connection() as here:
        await here.post("/stale", message, {"X-Request-Id": "r"})
        assert (await here.post("/stale", message, {"X-Request-Id": "r"}, idempotent=True))[0] == 200
        first, *_, last = here.model.requests
        assert [h for h in last.headers if h != ("Connection", "close")] == first.headers
        assert last.body == first.body
        assert last.json() == message


async def test_a_whole_form_is_sent_again() -> None:
    async with connection() as here:
        caller = ModelCaller(here.server, {}, idempotent=True).with_headers("Accept")
        for _ in range(2):
            fields = {"file": ("a.bin", b"\x00\xff", "application/octet-stream")}
            async with caller.post_form("/stale", fields) as answer:
                assert answer.status == 200
        assert len(here.model.requests) == 3
        assert all(b"\x00\xff" in r.body for r in here.model.requests)


async def test_a_request_that_the_server_may_have_executed_is_not_sent_again() -> None:
    async with connection() as here:
        await here.post("/echo")
        with pytest.raises(ModelUnreachable):
            await here.post("/close")
        assert len(requests_to(here.model, "/close")) == 1


class BareServer:
    """A server whose sockets the test may use without the event loop. It answers `{}`."""

    def __init__(self) -> None:
        self.connections: list[socket.socket] = []
        self.bodies: list[bytes] = []

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[ModelServer, None]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, ModelServer(url) as model:
            async with ModelCaller(model, {}).get("/") as answer:
                assert await answer.read() == b"{}"
            yield model

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer.get_extra_info("socket"))
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                if b"chunked" in head:
                    self.bodies.append(await reader.readuntil(b"0\r\n\r\n"))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    def end(self) -> None:
        """End the first connection in order. The client's event loop has not read it when this returns."""
        self.connections[0].shutdown(socket.SHUT_RDWR)

    def send(self, data: bytes) -> None:
        """Send `data` on the first connection. The client's event loop has not read it when this returns."""
        assert os.write(self.connections[0].fileno(), data) == len(data)


LATE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate"


async def test_a_connection_with_an_unread_end_or_unread_bytes_is_not_used() -> None:
    for late in (b"", LATE):
        peer = BareServer()
        async with peer.listening() as model:
            peer.send(late) if late else peer.end()
            async with ModelCaller(model, {}).request("POST", "/", lambda: b"work") as answer:
                assert await answer.read() == b"{}"
            assert len(peer.connections) == 2


async def test_a_request_of_which_no_byte_was_taken_is_sent_again() -> None:
    peer = BareServer()

    async def body() -> AsyncGenerator[bytes, None]:
        if len(peer.connections) == 1:
            peer.end()  # after the connection was chosen, and before the first byte is written
        yield b"work"

    async with peer.listening() as model:
        async with ModelCaller(model, {}).request("POST", "/", body) as answer:
            assert await answer.read() == b"{}"
        assert len(peer.connections) == 2
        assert peer.bodies == [b"4\r\nwork\r\n0\r\n\r\n"]


@pytest.mark.parametrize("idempotent", [False, True])
async def test_an_answer_that_came_before_the_request_was_written_is_not_its_answer(idempotent: bool) -> None:
    peer = BareServer()

    async def body() -> AsyncGenerator[bytes, None]:
        peer.send(LATE)
        for _ in range(3):  # the client's event loop reads it
            await asyncio.sleep(0)
        yield b"work"

    async with peer.listening() as model:
        caller = ModelCaller(model, {}, idempotent=idempotent)
        with pytest.raises(ModelUnreachable, match="before the request"):
            async with caller.request("POST", "/", body):
                pass
        assert len(peer.connections) == 1


async def test_a_request_on_a_new_connection_that_is_closed_is_not_sent_again() -> None:
    async with connection() as here:
        with pytest.raises(ModelUnreachable) as failed:
            await here.post("/close")
        assert failed.value.status == 502
        assert len(here.model.requests) == 1


async def test_a_request_is_sent_twice_at_most() -> None:
    async with connection() as here:
        await here.post("/echo")
        with pytest.raises(ModelUnreachable):
            await here.post("/close", idempotent=True)
        assert len(requests_to(here.model, "/close")) == 2


@pytest.mark.parametrize("reused", [False, True])
async def test_a_request_whose_answer_has_begun_is_not_sent_again(reused: bool) -> None:
    async with connection() as here:
        if reused:
            await here.post("/echo")
        with pytest.raises(ModelUnreachable):
            await here.post("/half_head", idempotent=True)
        assert len(requests_to(here.model, "/half_head")) == 1


async def test_a_stopped_server_is_unreachable_until_it_is_started_again() -> None:
    async with connection() as here:
        assert await here.server.accepts_connections()
        await here.post("/echo")
        await here.model.stop()
        assert not await here.server.accepts_connections()
        with pytest.raises(ModelUnreachable, match=r"could not be reached: .+"):
            await here.post("/echo")
        await here.model.start()
        assert (await here.post("/echo"))[0] == 200


async def test_an_unknown_host_is_unreachable() -> None:
    async with ModelServer("http://nowhere.invalid:1") as server:
        with pytest.raises(ModelUnreachable):
            async with ModelCaller(server, {}).get("/"):
                pass


async def test_concurrent_calls_are_not_limited() -> None:
    async with connection() as here:
        calls = [asyncio.create_task(here.post("/held")) for _ in range(150)]
        await here.model.until(lambda: here.model.working == 150)
        here.model.release()
        assert {status for status, _ in await asyncio.gather(*calls)} == {200}


async def test_a_cancelled_call_closes_its_connection_immediately() -> None:
    async with connection() as here:
        call = asyncio.create_task(here.post("/held"))
        await here.model.until(lambda: here.model.working == 1)
        call.cancel()
        await here.model.until(lambda: here.model.cancelled == 1)
        async with ModelCaller(here.server, {}).post_json("/stream", {}) as answer:
            here.model.step()
            assert await answer.content.readany() == b"data: token 0\n\n"
        await here.model.until(lambda: here.model.cancelled == 2)


async def test_a_server_that_takes_too_long_times_out() -> None:
    async with connection(timeout_s=0.05) as here:
        with pytest.raises(ModelTimedOut) as failed:
            await here.post("/held")
        assert failed.value.status == 504
        await here.model.until(lambda: here.model.cancelled == 1)


async def test_a_time_limit_leaves_room_for_sending_a_request_again() -> None:
    async with connection(timeout_s=30.0) as here:
        await here.post("/stale")
        assert (await here.post("/stale", idempotent=True))[0] == 200


# URLs


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


def test_resolving_no_endpoint_raises() -> None:
    with pytest.raises(ValueError, match="endpoint is None"):
        ModelServer("http://m:1").resolve(None)


async def test_a_connection_that_is_not_open_raises() -> None:
    with pytest.raises(RuntimeError, match="when the worker starts"):
        await ModelServer("http://m:1").pooled.get("/")


# The author's session


async def test_the_authors_session_has_the_methods_of_an_http_client_below_the_servers_path() -> None:
    async with connection("/v1") as here:
        session = ModelSession(here.server)
        for method in ("get", "options", "post", "put", "patch", "delete"):
            async with getattr(session, method)("/echo") as answer:
                assert (await answer.json())["path"] == "/v1/echo"
            assert here.model.requests[-1].method == method.upper()
        async with session.head("/empty") as answer:
            assert answer.status == 204
        assert here.model.requests[-1].path == "/v1/empty"
        assert session.closed is False
        async with session.get(f"{here.model.url}/echo") as answer:
            assert (await answer.json())["path"] == "/echo"
