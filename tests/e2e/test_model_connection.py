"""What a model server does to its connections, and what the client gets.

The rules are in docs/protocol.md, "Passing the answer on". The model server is a script for each connection,
in bytes, so that it can do what no HTTP library does.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
import struct
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import anyio
import pytest
from aiohttp import web

from lib.backend import Backend
from lib.model.checked_connector import MAX_INTERIM_ANSWERS
from lib.runtime.settings import CarrierKind
from tests.fakes import varied_routes
from tests.fakes.raw_client import Head, RawClient, connected, request_bytes
from tests.fakes.worker import Setup
from tests.guard import GUARD_S
from tests.system import System, engine_and_model_server, with_worker_task, worker_process

MIB = 1024 * 1024
OK = b"HTTP/1.1 200 OK\r\n"
GZIP = b"Content-Encoding: gzip\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CODED = b"Transfer-Encoding: gzip\r\n"
SECRET = b"secret"  # in what a model server says, and never in what a client gets


def whole(body: bytes, status: bytes = b"200 OK", extra: bytes = b"") -> bytes:
    """An answer of known length."""
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(body), extra, body)


def chunks(*parts: bytes) -> bytes:
    """A chunked body."""
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))


class Peer:
    """One connection, as its script in the model server sees it."""

    def __init__(
        self, model: ScriptedModel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.model = model
        self.reader = reader
        self._writer = writer

    async def request(self) -> None:
        """Receive a whole request; it counts as executed."""
        head = await self.head()
        length = next((int(v) for k, v in head.items() if k == "content-length"), 0)
        await self.reader.readexactly(length)
        self.model.executed += 1

    async def head(self) -> dict[str, str]:
        """Receive the head of a request."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self, data: bytes) -> None:
        """Receive a request, then send `data`."""
        await self.request()
        await self.send(data)

    async def left(self) -> None:
        """Return once the worker has closed the connection."""
        with suppress(ConnectionError):
            while await self.reader.read(MIB):
                pass

    def reset(self) -> None:
        """Close the connection with a RST."""
        sock: socket.socket = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def half_close(self) -> None:
        self._writer.write_eof()


Script = Callable[[Peer], Awaitable[None]]


class NotingReader(asyncio.StreamReader):
    """Notes whether anything was received."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._is_empty = True
        self._noted = asyncio.Event()

    async def has_begun(self) -> bool:
        """Whether anything is received; waits for the first byte, or for the end."""
        await self._noted.wait()
        return not self._is_empty

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        self._is_empty = False
        self._noted.set()
        super().feed_data(data)

    def feed_eof(self) -> None:
        self._noted.set()
        super().feed_eof()

    def set_exception(self, exc: Exception) -> None:
        self._noted.set()
        super().set_exception(exc)


@dataclass
class ScriptedModel:
    """A model server: the first connection is served by the first of `scripts`, and so on.

    Connections on which nothing is sent don't count. One is closed in order (FIN) when its script ends.
    `executed` counts the requests that were received whole. `go` is for scripts that wait for the test;
    `done` is set when a script ends.
    """

    scripts: list[Script] = field(default_factory=list[Script])
    executed: int = 0
    connections: int = 0
    errors: list[BaseException] = field(default_factory=list[BaseException])
    go: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if isinstance(reader, NotingReader) and not await reader.has_begun():
            writer.close()  # the worker has only looked whether somebody listens
            return
        script = self.scripts[self.connections] if self.connections < len(self.scripts) else _unexpected
        self.connections += 1
        try:
            await script(Peer(self, reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the worker closed the connection
        except Exception as e:  # noqa: BLE001 - raised by the test
            self.errors.append(e)
        finally:
            self.done.set()
            writer.close()


async def _unexpected(peer: Peer) -> None:
    await peer.request()
    raise AssertionError("a connection without a script")


@asynccontextmanager
async def scripted_model(*scripts: Script) -> AsyncGenerator[ScriptedModel, None]:
    model = ScriptedModel(list(scripts))
    server = await asyncio.get_running_loop().create_server(
        lambda: asyncio.StreamReaderProtocol(NotingReader(64 * 1024), model.connected), "127.0.0.1", 0
    )
    model.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield model
    finally:
        server.close()
    assert model.errors == []


Kind = Literal["task", "process"]


@asynccontextmanager
async def worker_for(
    tmp_path: Path,
    *scripts: Script,
    kind: Kind = "task",
    timeout_s: float | None = None,
    carrier: CarrierKind | None = None,
    **handler: Any,
) -> AsyncGenerator[tuple[System, ScriptedModel], None]:
    """A worker whose model server follows `scripts`; health checks go to another server.

    `timeout_s` is `MODEL_TIMEOUT_S`, `carrier` is `CARRIER`, `handler` has the fields of every handler. A
    process runs on uvloop.
    """
    async with scripted_model(*scripts) as model:

        def make(health_url: str, setup: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
            return varied_routes.build(model.url, Setup(health=f"{health_url}/health", handler=setup.handler))

        if kind == "task":
            setup = Setup(handler=handler)
            settings: dict[str, Any] = {"model_timeout_s": timeout_s}
            if carrier is not None:
                settings["carrier"] = carrier
            async with with_worker_task(tmp_path, setup, make=make, **settings) as system:
                yield system, model
            return
        async with engine_and_model_server(tmp_path) as system:
            setup = Setup(health=f"{system.model.url}/health", handler=handler)
            env = {"TEST_MODEL_URL": model.url}
            if timeout_s is not None:
                env["MODEL_TIMEOUT_S"] = str(timeout_s)
            module = "tests.fakes.varied_routes"
            async with worker_process(system, tmp_path, setup, env, module=module) as worker:
                system.worker = worker
                await system.ready()
                yield system, model


@dataclass(frozen=True)
class Got:
    """An answer as a client got it: head and body; no head for a connection that closed before it.

    `is_whole`: the answer came to its end.
    """

    head: Head | None
    body: bytes
    is_whole: bool

    @property
    def status(self) -> int:
        return 0 if self.head is None else self.head.status


async def ask(system: System, headers: dict[str, str] | None = None, path: str = "/echo") -> Got:
    """POST a signed request on a connection of its own, and read all that comes."""
    async with connected(system.url, limit=4 * MIB) as client:
        await client.post(path, system.envelope(), headers)
        return await read(client)


async def read(client: RawClient) -> Got:
    try:
        head = await client.head()
    except ConnectionError:
        return Got(None, b"", is_whole=False)
    body = bytearray()
    try:
        if "content-length" in head.headers:
            body += await client.exactly(int(head.headers["content-length"]))
        else:
            body += await rest_of_chunks(client)
    except (ConnectionError, asyncio.IncompleteReadError):
        return Got(head, bytes(body), is_whole=False)
    return Got(head, bytes(body), is_whole=True)


async def rest_of_chunks(client: RawClient) -> bytes:
    """The rest of a chunked body. Raises `ConnectionError` if it has no end."""
    body = b""
    while part := await client.chunk():
        body += part
    return body


async def assert_outcomes(system: System, *statuses: str) -> None:
    await system.engine.wait_for(lambda: len(system.engine.finished) == len(statuses))
    assert [f.request.status for f in system.engine.finished] == list(statuses)


# One answer, on a new connection


def answering(data: bytes) -> Script:
    """Answer with `data`, then close the connection in order."""

    async def script(peer: Peer) -> None:
        await peer.answer(data)

    return script


def ending(data: bytes, last: bytes | None) -> Script:
    """Answer with `data`; once the test says so, send `last`, or reset the connection if it is None."""

    async def script(peer: Peer) -> None:
        await peer.answer(data)
        await peer.model.go.wait()
        if last is None:
            peer.reset()
        else:
            await peer.send(last)

    return script


HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
PACKED = gzip.compress(b"a text " * 1000)
DEFLATED = zlib.compress(b"a text " * 1000)
TEXT = b"a text " * 1000
DEFLATE = b"Content-Encoding: deflate\r\n"


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        pytest.param(OK + b"\r\nto the end", b"to the end", id="unknown length, ended by FIN"),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\nold", b"old", id="HTTP/1.0, ended by FIN"),
        pytest.param(whole(PACKED, extra=GZIP), TEXT, id="gzip"),
        pytest.param(whole(PACKED + PACKED, extra=GZIP), TEXT * 2, id="gzip of two members"),
        pytest.param(OK + GZIP + b"\r\n" + PACKED, TEXT, id="gzip of unknown length"),
        pytest.param(whole(DEFLATED, extra=DEFLATE), TEXT, id="deflate"),
        pytest.param(whole(b"", extra=GZIP), b"", id="an empty body labelled gzip"),
        pytest.param(HINT * 3 + whole(b"final"), b"final", id="interim answers"),
        pytest.param(OK + CHUNKED.upper() + b"\r\n" + chunks(b"a", b"b"), b"ab", id="a coding in capitals"),
    ],
)  # fmt: skip
async def test_a_whole_answer_is_served(sent: bytes, body: bytes, tmp_path: Path) -> None:
    async with worker_for(tmp_path, answering(sent)) as (system, model):
        got = await ask(system)
        assert (got.status, got.body, got.is_whole) == (200, body, True)
        assert got.head is not None
        assert got.head.headers.get("content-length", str(len(body))) == str(len(body))
        assert not {"content-encoding", "link"} & set(got.head.names)
        await assert_outcomes(system, "Success")
        assert model.executed == 1


# What `Connection` may name: header fields, options, and empty elements (RFC 9110, section 5.6.1).
@pytest.mark.parametrize("connection", [b"", b"close,", b",x", b" , keep-alive ,", b"x, x-b", b"close"])
@pytest.mark.parametrize("date", [b"", b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"])
async def test_a_head_keeps_its_other_fields_whatever_connection_names(
    connection: bytes, date: bytes, tmp_path: Path
) -> None:
    extra = b"X-A: 1\r\nConnection: %s\r\n%sX-B: 2\r\nX-C: 3\r\n" % (connection, date)
    async with worker_for(tmp_path, answering(whole(b"body", extra=extra))) as (system, _):
        got = await ask(system)
        assert (got.status, got.body, got.is_whole) == (200, b"body", True)
        assert got.head is not None
        kept = {name: value for name, value in got.head.headers.items() if name.startswith("x-")}
        assert kept == {"x-a": "1", **({} if b"x-b" in connection else {"x-b": "2"}), "x-c": "3"}
        assert got.head.names.count("date") == 1
        assert "connection" not in got.head.headers


async def test_chunks_win_over_a_length(tmp_path: Path) -> None:
    """Or the answer is refused, as RFC 9112, section 6.3, allows."""
    for framing in (b"Content-Length: 5\r\n" + CHUNKED, CHUNKED + b"Content-Length: 5\r\n"):
        for body in (b"more than 5", b"less", b"five!"):
            sent = OK + framing + b"\r\n" + chunks(body)
            async with worker_for(tmp_path, answering(sent)) as (system, _):
                got = await ask(system)
                assert got.head is not None
                assert got.is_whole
                if got.status != 502:
                    assert (got.status, got.body) == (200, body)
                    assert "content-length" not in got.head.names


@pytest.mark.parametrize(
    ("sent", "last"),
    [
        pytest.param(OK + b"\r\na part", None, id="unknown length, ended by RST"),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\na part", None, id="HTTP/1.0, ended by RST"),
        pytest.param(OK + CHUNKED + b"\r\n6\r\na part\r\n", None, id="chunks, ended by RST"),
        pytest.param(OK + CHUNKED + b"\r\n6\r\na part\r\n", b"", id="chunks, ended by FIN"),
        pytest.param(OK + CHUNKED + b"\r\n6\r\na part\r\n", b"0\r\n", id="chunks, ended in the last"),
        pytest.param(OK + CHUNKED + b"\r\n6\r\na part\r\n", b"none\r\n", id="an invalid chunk"),
        pytest.param(OK + CHUNKED + b"\r\n6\r\na part\r\n", b"1\r\nxx0\r\n\r\n", id="a chunk too long"),
        pytest.param(OK + b"Content-Length: 999999\r\n\r\na part", b"", id="long, ended by FIN"),
        pytest.param(OK + b"Content-Length: 999999\r\n\r\na part", None, id="long, ended by RST"),
    ],
)
async def test_an_answer_that_breaks_off_is_aborted(sent: bytes, last: bytes | None, tmp_path: Path) -> None:
    async with (
        worker_for(tmp_path, ending(sent, last)) as (system, model),
        connected(system.url) as client,
    ):
        await client.post("/echo", system.envelope())
        head = await client.head()
        assert head.status == 200
        if "content-length" in head.headers:
            assert await client.exactly(6) == b"a part"
            model.go.set()
            assert await client.rest() == b""
        else:
            assert await client.chunk() == b"a part"
            model.go.set()
            with pytest.raises(ConnectionError):
                await rest_of_chunks(client)
        await assert_outcomes(system, "Error")
        assert model.executed == 1


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(whole(PACKED[:-9], extra=GZIP), id="cut in its data"),
        pytest.param(whole(PACKED[:-1], extra=GZIP), id="cut in its trailer"),
        pytest.param(whole(PACKED[:5], extra=GZIP), id="cut in its header"),
        pytest.param(whole(PACKED[:-8] + bytes(8), extra=GZIP), id="a wrong checksum"),
        pytest.param(OK + CHUNKED + GZIP + b"\r\n" + chunks(PACKED[:-9]), id="chunked, cut"),
        pytest.param(OK + GZIP + b"\r\n" + PACKED[:-9], id="of unknown length, cut by FIN"),
        pytest.param(whole(PACKED + b"more", extra=GZIP), id="bytes after it"),
        pytest.param(whole(PACKED + PACKED[:-1], extra=GZIP), id="a second member that is cut"),
        pytest.param(whole(DEFLATED[:-1], extra=DEFLATE), id="deflate, cut"),
        pytest.param(whole(DEFLATED + b"more", extra=DEFLATE), id="deflate, bytes after it"),
        pytest.param(whole(DEFLATED * 2, extra=DEFLATE), id="deflate, twice"),
        pytest.param(whole(b"plain", extra=GZIP), id="not compressed at all"),
    ],
)
async def test_an_answer_whose_compressed_stream_is_not_whole_is_aborted(sent: bytes, tmp_path: Path) -> None:
    async with worker_for(tmp_path, answering(sent)) as (system, _):
        got = await ask(system)
        assert not got.is_whole
        assert got.status in (0, 200)  # what is wrong at once is found before anything is sent
        await assert_outcomes(system, "Error")


def header(name: bytes, value: bytes) -> bytes:
    return whole(b"{}", extra=b"%s: %s\r\n" % (name, value))


@pytest.mark.parametrize(
    "sent",
    [
        *(
            pytest.param(header(b"X-A", b"%s%c" % (SECRET, character)), id=f"{character:#x} in a value")
            for character in (0, 1, 8, 0x0B, 0x0C, 0x0D, 0x1B, 0x7F)
        ),
        pytest.param(header(b"X-\x01" + SECRET, b"1"), id="a control character in a name"),
        pytest.param(header(b"X " + SECRET, b"1"), id="a space in a name"),
        pytest.param(header(b"", SECRET), id="no name"),
        pytest.param(header(b"Content-Type", b"text/\x01" + SECRET), id="a control character in the type"),
        pytest.param(whole(b"{}", b"200 O\x01K" + SECRET), id="a control character in the reason"),
        pytest.param(whole(b"{}", b"200 O\x1bK" + SECRET), id="an escape in the reason"),
        pytest.param(whole(b"{}", b"2000 OK " + SECRET), id="a status of four digits"),
        pytest.param(SECRET + b" is not HTTP\r\n\r\n", id="not HTTP"),
        pytest.param(OK + b"Content-Length: 2\r\nContent-Length: 9\r\n\r\n{}" + SECRET, id="two lengths"),
        pytest.param(OK + b"Content-Length: 2, 9\r\n\r\n{}" + SECRET, id="two lengths in one field"),
        pytest.param(OK + b"Content-Length: -2\r\n\r\n{}" + SECRET, id="a negative length"),
        pytest.param(OK + b"Content-Length: 2%s\r\n\r\n{}" % SECRET, id="a length that is no number"),
        pytest.param(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + chunks(PACKED), id="gzip, chunked"),
        pytest.param(OK + CODED + CHUNKED + b"\r\n" + chunks(PACKED), id="gzip and chunked"),
        pytest.param(OK + CODED + b"\r\n" + PACKED, id="gzip only"),
        pytest.param(OK + b"Transfer-Encoding: chunked, a\r\n\r\n" + chunks(b"{}"), id="chunked, a"),
        pytest.param(OK + b"X-A: " + SECRET * 100_000 + b"\r\n\r\n", id="an endless field"),
        pytest.param(OK + b"X-A: 1\r\n" * 100_000 + SECRET + b"\r\n\r\n", id="endless fields"),
    ],
)  # fmt: skip
async def test_an_answer_that_cannot_be_passed_on_is_a_502(
    sent: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with worker_for(tmp_path, answering(sent)) as (system, model):
        with caplog.at_level(logging.DEBUG, "lib"):
            got = await ask(system, {"X-Request-Id": "mine"})
        assert (got.status, got.is_whole) == (502, True)
        assert got.head is not None
        assert set(got.head.names) <= {"content-type", "content-length", "date", "server", "connection"}
        assert list(json.loads(got.body)) == ["error"]
        assert SECRET not in got.body
        assert all(SECRET.decode() not in r.getMessage() for r in caplog.records if r.levelno > logging.DEBUG)
        sent_bytes = [r.getMessage() for r in caplog.records if "has sent invalid HTTP" in r.getMessage()]
        assert all(text.isascii() and text.isprintable() and len(text) < 900 for text in sent_bytes)
        lines = [r for r in caplog.records if "mine" in r.getMessage() and r.levelno > logging.INFO]
        assert [(r.levelname, r.exc_info) for r in lines] == [("WARNING", None)]
        assert SECRET.decode() not in lines[0].getMessage()
        assert lines[0].getMessage().isprintable()
        await assert_outcomes(system, "Error")
        assert model.executed == 1


# Interim answers


@pytest.mark.parametrize("status", [b"100 Continue", b"102 Processing", b"103 Early Hints"])
async def test_interim_answers_that_never_end_are_a_502(status: bytes, tmp_path: Path) -> None:
    hint = b"HTTP/1.1 %s\r\nX-A: %s\r\n\r\n" % (status, b"a" * 1000)

    async def endless(peer: Peer) -> None:
        await peer.request()
        while True:
            await peer.send(hint * 60)

    async with worker_for(tmp_path, endless, kind="process") as (system, model):
        assert system.worker is not None
        before = system.worker.peak_memory_kib()
        assert (await ask(system)).status == 502
        with anyio.fail_after(GUARD_S):
            await model.done.wait()
        assert system.worker.peak_memory_kib() - before < 16 * 1024
        await assert_outcomes(system, "Error")


@pytest.mark.parametrize("carrier", ["direct", "aiohttp"])
@pytest.mark.parametrize(("count", "status"), [(MAX_INTERIM_ANSWERS, 200), (MAX_INTERIM_ANSWERS + 1, 502)])
async def test_the_number_of_interim_answers_is_limited(
    carrier: CarrierKind, count: int, status: int, tmp_path: Path
) -> None:
    script = answering(HINT * count + whole(b"final"))
    async with worker_for(tmp_path, script, carrier=carrier) as (system, _):
        assert (await ask(system)).status == status


async def test_interim_answers_do_not_extend_the_time_limit(tmp_path: Path) -> None:
    async def hinting(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 8)
        await peer.left()

    async with worker_for(tmp_path, hinting, timeout_s=0.1) as (system, model):
        assert (await ask(system)).status == 504
        with anyio.fail_after(GUARD_S):
            await model.done.wait()
        await assert_outcomes(system, "Error")


# Bytes and ends on an idle connection


@dataclass(frozen=True)
class Late:
    """An event on a connection after a whole answer: these bytes, then the end of the connection."""

    data: bytes
    end: Literal["", "FIN", "RST"] = ""
    in_one_segment: bool = False


@pytest.mark.parametrize("kind", ["task", "process"])
@pytest.mark.parametrize(
    "late",
    [
        pytest.param(Late(whole(b"for nobody")), id="a second answer"),
        pytest.param(Late(whole(b"for nobody"), in_one_segment=True), id="a second answer, in one segment"),
        pytest.param(Late(whole(b"idle", b"408 Request Timeout"), "FIN"), id="a late 408"),
        pytest.param(Late(whole(b"bug", b"500 Oops")), id="a late 500"),
        pytest.param(Late(OK + b"Content-"), id="a part of a head"),
        pytest.param(Late(OK + b"Content-", in_one_segment=True), id="a part of a head, in one segment"),
        pytest.param(Late(HINT), id="a late interim answer"),
        pytest.param(Late(b"\r\n"), id="an empty line"),
        pytest.param(Late(b"", "FIN"), id="its end"),
        pytest.param(Late(b"", "RST"), id="its reset"),
    ],
)  # fmt: skip
async def test_no_client_gets_what_comes_on_an_idle_connection(
    late: Late, kind: Kind, tmp_path: Path
) -> None:
    async def first(peer: Peer) -> None:
        await peer.answer(whole(b"for A") + (late.data if late.in_one_segment else b""))
        await peer.model.go.wait()
        peer.model.go.clear()
        if not late.in_one_segment:
            await peer.send(late.data)
        if late.end == "RST":
            peer.reset()
        elif late.end == "FIN":
            peer.half_close()
        peer.model.done.set()
        if late.in_one_segment:
            await peer.answer(whole(b"for B"))  # the connection may be used: nothing is unread on it
        await peer.left()

    async with worker_for(tmp_path, first, answering(whole(b"for B")), kind=kind) as (system, model):
        assert (await ask(system)).body == b"for A"
        model.go.set()
        with anyio.fail_after(GUARD_S):
            await model.done.wait()
        got = await ask(system)
        assert (got.status, got.body) == (200, b"for B")
        assert model.executed == 2
        await assert_outcomes(system, "Success", "Success")


# Sending a request again


async def answer_a(peer: Peer) -> None:
    """Serve a first request; the connection is then a reused one for the next."""
    await peer.answer(whole(b"for A"))


async def die(peer: Peer) -> None:
    await peer.request()


async def die_by_reset(peer: Peer) -> None:
    await peer.request()
    peer.reset()


async def die_while_reading(peer: Peer) -> None:
    await peer.reader.readexactly(1)
    peer.reset()


async def die_within_the_head(peer: Peer) -> None:
    await peer.answer(b"HTTP/1.1 200 O")


async def die_after_an_interim_answer(peer: Peer) -> None:
    await peer.answer(b"HTTP/1.1 100 Continue\r\n\r\n")


def after_a(end: Script) -> Script:
    async def script(peer: Peer) -> None:
        await answer_a(peer)
        await end(peer)

    return script


@pytest.mark.parametrize(
    ("method", "kind"), [("POST", "task"), ("POST", "process"), ("GET", "task"), ("PUT", "task")]
)
@pytest.mark.parametrize("reused", [True, False])
@pytest.mark.parametrize(
    ("end", "idempotent", "is_sent_again"),
    [
        (die, False, False),
        (die_by_reset, False, False),
        (die_while_reading, False, False),
        (die_within_the_head, False, False),
        (die_after_an_interim_answer, False, False),
        (die, True, True),
        (die_by_reset, True, True),
        (die_while_reading, True, True),
        (die_within_the_head, True, False),
        (die_after_an_interim_answer, True, False),
    ],
)
async def test_a_request_that_may_have_been_executed_is_sent_again_only_if_the_handler_says_so(
    end: Script, idempotent: bool, is_sent_again: bool, reused: bool, method: str, kind: Kind, tmp_path: Path
) -> None:
    first = after_a(end) if reused else end
    async with (
        worker_for(
            tmp_path,
            first,
            answering(whole(b"again")),
            kind=kind,
            carrier=None if method == "POST" else "aiohttp",  # one that also carries the first request
            idempotent=idempotent,
        ) as (system, model),
        connected(system.url) as client,
    ):
        if reused:
            assert (await ask(system)).body == b"for A"
        if method == "POST":
            await client.post("/echo", system.envelope())
        else:
            lines = "".join(f"{name}: {value}\r\n" for name, value in system.header().items())
            await client.send(f"{method} /items/1/echo HTTP/1.1\r\nHost: worker\r\n{lines}\r\n".encode())
        got = await read(client)
        if is_sent_again:
            assert (got.status, got.body) == (200, b"again")
        else:
            assert got.status == 502
        assert model.connections == (2 if is_sent_again else 1)
        outcomes = ["Success"] if reused else []
        await assert_outcomes(system, *outcomes, "Success" if is_sent_again else "Error")


async def test_a_request_is_sent_twice_at_most(tmp_path: Path) -> None:
    async with worker_for(tmp_path, after_a(die), die, die, idempotent=True) as (system, model):
        await ask(system)
        assert (await ask(system)).status == 502
        assert model.connections == 2
        assert model.executed == 3


async def test_the_second_attempt_has_the_rest_of_the_time_limit(tmp_path: Path) -> None:
    async def stall(peer: Peer) -> None:
        await peer.request()
        await peer.left()

    async with worker_for(tmp_path, after_a(die), stall, idempotent=True, timeout_s=0.2) as (system, _):
        await ask(system)
        assert (await ask(system)).status == 504


# Uploads


@pytest.mark.parametrize("kind", ["task", "process"])
@pytest.mark.parametrize(
    ("answer", "closes"),
    [
        pytest.param(whole(b"too much", b"413 Too Large"), False, id="of known length"),
        pytest.param(whole(b"x" * MIB), False, id="long"),
        pytest.param(OK + CHUNKED + b"\r\n" + chunks(b"too much"), False, id="chunked"),
        pytest.param(whole(b"too much", b"413 Too Large"), True, id="of known length, then closed"),
        pytest.param(OK + CHUNKED + b"\r\n" + chunks(b"too much"), True, id="chunked, then closed"),
    ],
)
async def test_an_early_answer_to_an_unread_upload_is_served(
    answer: bytes, closes: bool, kind: Kind, tmp_path: Path
) -> None:
    async def early(peer: Peer) -> None:
        await peer.head()
        await peer.send(answer)
        if closes:
            return  # with bytes unread: by a reset
        await peer.model.go.wait()  # without reading more
        await peer.left()

    size = 20 * MIB
    async with (
        worker_for(tmp_path, early, kind=kind) as (system, model),
        connected(system.url, limit=4 * MIB) as client,
    ):
        head = {**system.header(), "Content-Type": "audio/wav"}
        await client.send(request_bytes("/sound/echo", bytes(size), head))
        got = await read(client)
        assert (got.status, got.is_whole) == (413 if b"413" in answer else 200, True)
        client.leave()
        await assert_outcomes(system, "Success")
        model.go.set()
        with anyio.fail_after(GUARD_S):
            await model.done.wait()


# Errors after a heartbeat


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"Content-Length: %d\r\n" % (200 * MIB), id="of known length"),
        pytest.param(b"", id="of unknown length"),
        pytest.param(b"Content-Length: %d\r\n" % (200 * MIB) + GZIP, id="compressed"),
    ],
)
async def test_a_late_error_with_a_large_body_is_cut(head: bytes, tmp_path: Path) -> None:
    packed = gzip.compress(bytes(64 * MIB)) if GZIP in head else b""

    async def fail_late(peer: Peer) -> None:
        await peer.request()
        await peer.model.go.wait()
        await peer.send(b"HTTP/1.1 500 Oops\r\nContent-Type: text/plain\r\n" + head + b"\r\n" + packed)
        for _ in range(200):
            await peer.send(b"x" * MIB)

    async with (
        worker_for(tmp_path, fail_late, kind="process", keepalive_s=0.1) as (system, model),
        connected(system.url) as client,
    ):
        assert system.worker is not None
        await client.post("/echo", system.envelope())
        assert (await client.head()).status == 200
        assert await client.chunk() == b"\n"
        before = system.worker.peak_memory_kib()
        model.go.set()
        error = json.loads(await rest_of_chunks(client))["error"]
        assert 1024 <= len(error) <= 64 * 1024
        with anyio.fail_after(GUARD_S):
            await model.done.wait()
        assert system.worker.peak_memory_kib() - before < 16 * 1024
        await assert_outcomes(system, "Error")
