"""A certificate that is renewed while the worker runs: which one new connections get."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from lib.errors import SettingsError
from lib.local.authority import Authority
from lib.runtime.tls import CHECK_INTERVAL_S, Certificate
from tests.guard import GUARD_S
from tests.manual_clock import ManualClock


class Pair:
    """A key and its certificate; `shown` is the certificate in the form that clients see."""

    def __init__(self, authority: Authority) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName("worker.internal")])
        request = x509.CertificateSigningRequestBuilder(x509.Name([])).add_extension(names, critical=False)
        self.key = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        self.cert = authority.sign(request.sign(key, SHA256()).public_bytes(Encoding.PEM))
        self.shown = ssl.PEM_cert_to_DER_cert(self.cert)


class Server:
    """A TLS server that follows its two files on a manual clock."""

    def __init__(self, folder: Path, clock: ManualClock) -> None:
        self.cert, self.key = folder / "instance.crt", folder / "instance.key"
        self.clock = clock
        self.port = 0

    def write(self, cert: str, key: str) -> None:
        self.cert.write_text(cert)
        self.key.write_text(key)

    async def reload(self) -> None:
        """Have the files read again."""
        await self.clock.wait_for_timers()
        self.clock.advance(CHECK_INTERVAL_S)
        await self.clock.wait_for_timers()

    async def shown(self, server_name: str = "") -> bytes:
        """The certificate that a new connection gets."""
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        with anyio.fail_after(GUARD_S):
            _, writer = await asyncio.open_connection(
                "127.0.0.1", self.port, ssl=client, server_hostname=server_name
            )
        shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.transport.abort()
        return shown


@asynccontextmanager
async def serving(folder: Path, pair: Pair) -> AsyncGenerator[Server, None]:
    server = Server(folder, ManualClock())
    server.write(pair.cert, pair.key)
    certificate = Certificate(server.cert, server.key, server.clock)
    listening = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=certificate.context)
    server.port = listening.sockets[0].getsockname()[1]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(certificate.follow)
        yield server
        tasks.cancel_scope.cancel()
    listening.close()


async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority(ManualClock())


async def test_new_connections_get_a_renewed_certificate(tmp_path: Path, authority: Authority) -> None:
    old, new = Pair(authority), Pair(authority)
    async with serving(tmp_path, old) as server:
        assert await server.shown() == old.shown
        server.write(new.cert, new.key)
        assert await server.shown() == old.shown
        await server.reload()
        for name in ("", "worker", "another"):  # clients that ask for an address name no server
            assert await server.shown(name) == new.shown


async def test_a_mismatched_pair_is_logged_once_and_the_old_one_stays(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = Pair(authority), Pair(authority)
    async with serving(tmp_path, old) as server:
        for cert in (new.cert, new.cert[:300], "", "no PEM"):
            caplog.clear()
            server.write(cert, old.key)
            for _ in range(3):
                await server.reload()
                assert await server.shown() == old.shown
            assert [r.levelno for r in caplog.records if r.name == "lib.runtime.tls"] == [logging.WARNING]
            assert "the old pair stays in use" in caplog.text
        server.cert.unlink()
        await server.reload()
        server.write(new.cert, new.key)
        await server.reload()
        assert await server.shown() == new.shown


async def test_an_unchanged_pair_is_not_loaded_again(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lib.runtime.tls")
    pair = Pair(authority)
    async with serving(tmp_path, pair) as server:
        server.write(pair.cert, pair.key)
        await server.reload()
        assert not [r for r in caplog.records if r.name == "lib.runtime.tls"]


def test_a_key_that_asks_for_a_password_cannot_be_used(tmp_path: Path, authority: Authority) -> None:
    pair = Pair(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "crt").write_text(pair.cert)
    (tmp_path / "key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    with pytest.raises(SettingsError, match="can't be used"):
        Certificate(tmp_path / "crt", tmp_path / "key", ManualClock())
