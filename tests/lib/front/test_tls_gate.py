"""A port with TLS: handshakes begin with the first byte, and those that are not done are limited."""

from __future__ import annotations

import asyncio
import socket
import ssl
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
from tests.event_loop import until
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


@dataclass
class Gate:
    """A port with TLS, the budget of its strangers, and the clock of its limits."""

    tls: TlsPort
    shares: Shares
    clock: ManualClock
    port: int

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
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        with anyio.fail_after(GUARD_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=client)
            writer.write(request)
            answer = await reader.read()
            writer.close()
        return answer


@asynccontextmanager
async def gate(context: ssl.SSLContext, **limits: int) -> AsyncGenerator[Gate, None]:
    server, clock, shares = FrontServer(), ManualClock(), Shares(10 * 2**20)
    front = await server.open(60.0, shares=shares)
    tls = TlsPort(front, context, clock, **limits)
    listening = await asyncio.get_running_loop().create_server(tls, "127.0.0.1", 0)
    try:
        yield Gate(tls, shares, clock, listening.sockets[0].getsockname()[1])
    finally:
        listening.close()
        tls.close()
        server.release()
        await front.close()
    assert tls.waiting == 0
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
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client.wrap_bio(incoming, outgoing)
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
        assert (await here.answer()).endswith(b"abc")


async def test_silence_and_slow_handshakes_have_a_time_limit(context: ssl.SSLContext) -> None:
    async with gate(context) as here, AsyncExitStack() as stack:
        silent = await here.plain(stack)
        slow = await here.plain(stack, HELLO)
        await until(lambda: here.shares.held_bytes == CONNECTION_BYTES + TLS_BYTES)
        here.clock.advance(HEAD_LIMIT_S)
        await closed(slow)
        assert here.tls.waiting == 1
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
        greedy = [await here.plain(stack, first, "127.0.0.66") for _ in range(2)]
        other = await here.plain(stack, first, "127.0.0.7")
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
