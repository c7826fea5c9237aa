"""A port with TLS: handshakes begin with the first byte, and those that are not done are limited."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from lib.front.front import CONNECTION_BYTES, HEAD_LIMIT_S, IDLE_LIMIT_S, TLS_BYTES
from lib.front.tls_gate import TlsPort
from lib.http.shares import Shares
from lib.local.authority import Authority
from lib.runtime.clock import SystemClock
from tests.event_loop import run_event_loop_turns, until
from tests.fakes.front_server import FrontServer
from tests.fakes.raw_client import request_bytes
from tests.guard import GUARD_S
from tests.manual_clock import ManualClock

HELLO = b"\x16"  # the first byte of a handshake
REQUEST = request_bytes("/direct/echo", b"abc", {"Connection": "close"})


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).add_extension(names, critical=False)
    pem = Authority(SystemClock()).sign(request.sign(key, SHA256()).public_bytes(Encoding.PEM))
    cert_file, key_file = folder / "cert", folder / "key"
    cert_file.write_text(pem)
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(cert_file, key_file)
    return made


def unverifying() -> ssl.SSLContext:
    """A client's context, which takes any certificate."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    return client


@dataclass
class Gate:
    """A port with TLS, the budget of its strangers, and the clock of its limits."""

    tls: TlsPort
    shares: Shares
    clock: ManualClock
    port: int
    errors: list[Exception]  # those that have reached the event loop

    async def plain(
        self, stack: AsyncExitStack, first: bytes = b"", address: str = "127.0.0.1"
    ) -> socket.socket:
        """A connection that has sent `first`, and no more."""
        connection = stack.enter_context(socket.socket())
        connection.bind((address, 0))
        connection.setblocking(False)
        before = self.tls.waiting
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self.port))
        if first:
            await asyncio.get_running_loop().sock_sendall(connection, first)
        await until(lambda: self.tls.waiting != before)
        return connection

    async def answer(self, request: bytes = REQUEST) -> bytes:
        """The answer that a client with TLS gets for `request`."""
        with anyio.fail_after(GUARD_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=unverifying())
            writer.write(request)
            answer = await reader.read()
            writer.close()
        return answer


class Plain(asyncio.Transport):
    """A new connection from `address` to the port of `tls`, without a socket."""

    def __init__(self, tls: TlsPort, address: str = "192.0.2.1") -> None:
        super().__init__({"peername": (address, 1)})
        self.aborted = asyncio.Event()
        self.protocol = tls()
        self.protocol.connection_made(self)

    def pause_reading(self) -> None: ...

    def abort(self) -> None:
        self.aborted.set()


@asynccontextmanager
async def gate(
    context: ssl.SSLContext, max_connections: int = 1000, **limits: int
) -> AsyncGenerator[Gate, None]:
    server, clock, shares = FrontServer(), ManualClock(), Shares(10 * 2**20)
    errors = list[Exception]()
    asyncio.get_running_loop().set_exception_handler(lambda _, error: errors.append(error["exception"]))
    front = await server.open(60.0, shares=shares, max_connections=max_connections)
    tls = TlsPort(front, context, clock, **limits)
    listening = await asyncio.get_running_loop().create_server(tls, "127.0.0.1", 0)
    try:
        yield Gate(tls, shares, clock, listening.sockets[0].getsockname()[1], errors)
    finally:
        listening.close()
        tls.close()
        server.release()
        await front.close()
    assert (tls.waiting, front.handshakes, clock.pending) == (0, 0, 0)
    await until(lambda: shares.held_bytes == 0)


async def closed(connection: socket.socket) -> None:
    """Return once the other side has closed `connection`."""
    with anyio.fail_after(GUARD_S):
        with suppress(ConnectionError):
            assert await asyncio.get_running_loop().sock_recv(connection, 1) == b""


async def test_requests_are_served_after_the_handshake(context: ssl.SSLContext) -> None:
    async with gate(context) as here:
        for body in (b"abc", b"x" * 300_000):
            request = request_bytes("/direct/echo", body, {"Connection": "close"})
            assert (await here.answer(request)).endswith(b"\r\n\r\n" + body)
        assert here.tls.waiting == 0


async def test_a_handshake_may_come_byte_by_byte(context: ssl.SSLContext) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = unverifying().wrap_bio(incoming, outgoing)
    async with gate(context) as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)

        async def done(step: Callable[[], object]) -> None:
            while True:
                try:
                    step()
                except ssl.SSLWantReadError:
                    for byte in outgoing.read():
                        writer.write(bytes([byte]))
                        await writer.drain()
                        await asyncio.sleep(0)
                    incoming.write(await reader.read(65536))
                else:
                    return

        with anyio.fail_after(GUARD_S):
            await done(tls.do_handshake)
            tls.write(REQUEST)
            received: list[bytes] = []
            await done(lambda: received.append(tls.read(65536)))
        assert received[0].endswith(b"\r\n\r\nabc")
        writer.close()


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 2000, HELLO * 70_000])
async def test_what_is_no_handshake_is_closed(context: ssl.SSLContext, garbage: bytes) -> None:
    async with gate(context) as here, AsyncExitStack() as stack:
        connection = stack.enter_context(socket.socket())
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", here.port))
        with suppress(ConnectionError):
            await asyncio.get_running_loop().sock_sendall(connection, garbage)
        await until(lambda: here.tls.waiting == 0 and here.shares.held_bytes == 0)
        await run_event_loop_turns()
        gc.collect()  # an error of a task that nobody awaits reaches the event loop when the task is deleted
        assert not here.errors
        assert (await here.answer()).endswith(b"abc")


async def test_silence_and_slow_handshakes_have_a_time_limit(context: ssl.SSLContext) -> None:
    async with gate(context) as here, AsyncExitStack() as stack:
        silent = await here.plain(stack)
        slow = await here.plain(stack, HELLO)
        await until(lambda: here.shares.held_bytes == CONNECTION_BYTES + TLS_BYTES)
        here.clock.advance(HEAD_LIMIT_S)
        await closed(slow)
        assert here.tls.waiting == here.tls.front.handshakes == 1
        here.clock.advance(IDLE_LIMIT_S - HEAD_LIMIT_S)
        await closed(silent)
        assert here.tls.waiting == 0


async def test_a_client_that_leaves_is_forgotten(context: ssl.SSLContext) -> None:
    async with gate(context) as here, AsyncExitStack() as stack:
        for first in (b"", HELLO):
            (await here.plain(stack, first)).close()
            await until(lambda: here.tls.waiting == 0)


@pytest.mark.parametrize("first", [b"", HELLO])
async def test_beyond_the_limit_the_address_with_most_gives_way(
    context: ssl.SSLContext, first: bytes
) -> None:
    async with gate(context, max_silent=3, max_handshakes=3) as here, AsyncExitStack() as stack:
        other = await here.plain(stack, first, "127.0.0.7")
        greedy = [await here.plain(stack, first, "127.0.0.66") for _ in range(2)]
        if first:
            await until(lambda: here.shares.held_bytes == 3 * TLS_BYTES)
        last = stack.enter_context(socket.socket())
        last.bind(("127.0.0.8", 0))
        last.setblocking(False)
        await asyncio.get_running_loop().sock_connect(last, ("127.0.0.1", here.port))
        await asyncio.get_running_loop().sock_sendall(last, first)
        await closed(greedy[0])
        for connection in (greedy[1], other, last):
            with pytest.raises(BlockingIOError):
                connection.recv(1)
        assert (await here.answer()).endswith(b"abc")


@pytest.mark.parametrize(
    ("max_connections", "limit", "most"),
    [(16, 9, 4), (19, 9, 4), (20, 9, 5), (16, 4, 4), (16, 3, 3), (7, 9, 1), (4, 9, 1), (3, 9, 1)],
)
async def test_those_not_done_are_a_quarter_of_the_connections_at_most(
    context: ssl.SSLContext, max_connections: int, limit: int, most: int
) -> None:
    async with gate(context, max_connections, max_silent=limit, max_handshakes=limit) as here:
        silent = [Plain(here.tls) for _ in range(most + 2)]  # all in one turn of the event loop
        assert [plain.aborted.is_set() for plain in silent] == [True, True] + [False] * most
        assert here.tls.waiting == here.tls.front.handshakes == most
        here.tls.close()
        assert all(plain.aborted.is_set() for plain in silent)


async def test_those_whose_handshake_has_begun_are_not_silent(context: ssl.SSLContext) -> None:
    async with gate(context, max_silent=1, max_handshakes=1) as here, AsyncExitStack() as stack:
        connections = [await here.plain(stack, first) for first in (HELLO, b"")]
        await until(lambda: here.shares.held_bytes == CONNECTION_BYTES + TLS_BYTES)
        for connection in connections:
            with pytest.raises(BlockingIOError):
                connection.recv(1)
        here.tls.close()
        for connection in connections:
            await closed(connection)


async def test_one_that_has_left_takes_no_place(context: ssl.SSLContext) -> None:
    async with gate(context, max_silent=2) as here:
        left, *others = (Plain(here.tls, address) for address in ("192.0.2.1", "192.0.2.2"))
        left.protocol.connection_lost(None)
        others.append(Plain(here.tls, "192.0.2.2"))
        assert not any(plain.aborted.is_set() for plain in others)
        assert here.tls.front.handshakes == 2


async def test_the_limits_end_with_the_handshake(context: ssl.SSLContext) -> None:
    async with gate(context) as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port, ssl=unverifying())
        await until(lambda: here.tls.waiting == 0)
        here.clock.advance(IDLE_LIMIT_S)
        writer.write(REQUEST)
        with anyio.fail_after(GUARD_S):
            assert (await reader.read()).endswith(b"abc")
        writer.close()


class TlsClient:
    """A client on `connection` with TLS, whose bytes the test sends: `outgoing`."""

    def __init__(self, connection: socket.socket) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = unverifying().wrap_bio(self.incoming, self.outgoing)
        self.connection = connection

    async def shake_hands(self) -> None:
        """Do the handshake, but for the client's last bytes, which are left to send."""
        loop = asyncio.get_running_loop()
        with anyio.fail_after(GUARD_S):
            while True:
                try:
                    self.tls.do_handshake()
                except ssl.SSLWantReadError:
                    await loop.sock_sendall(self.connection, self.outgoing.read())
                    self.incoming.write(await loop.sock_recv(self.connection, 65536))
                else:
                    return


@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize("request_", [b"", REQUEST])
async def test_a_client_may_leave_with_the_end_of_its_handshake(
    context: ssl.SSLContext, request_: bytes, is_reset: bool
) -> None:
    async with gate(context) as here, AsyncExitStack() as stack:
        client = TlsClient(await here.plain(stack))
        await client.shake_hands()
        client.tls.write(request_)
        if is_reset:
            client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.connection.send(client.outgoing.read())
        client.connection.close()
        await until(lambda: here.shares.held_bytes == 0)


async def test_a_request_may_come_with_the_end_of_the_handshake(context: ssl.SSLContext) -> None:
    async with gate(context) as here, AsyncExitStack() as stack:
        client = TlsClient(await here.plain(stack))
        await client.shake_hands()
        client.tls.write(REQUEST)
        client.connection.send(client.outgoing.read())
        answer = b""
        with anyio.fail_after(GUARD_S):
            while not answer.endswith(b"\r\n\r\nabc"):
                data = await asyncio.get_running_loop().sock_recv(client.connection, 65536)
                assert data
                client.incoming.write(data)
                with suppress(ssl.SSLWantReadError):
                    answer += client.tls.read(65536)


async def test_a_handshake_that_cannot_begin_closes_the_connection(context: ssl.SSLContext) -> None:
    async with gate(context) as here:
        plain = Plain(here.tls)  # a transport that asyncio can't do handshakes on
        plain.protocol.data_received(HELLO)
        with anyio.fail_after(GUARD_S):
            await plain.aborted.wait()
        del plain
        gc.collect()
        assert [type(error) for error in here.errors] == [TypeError]
