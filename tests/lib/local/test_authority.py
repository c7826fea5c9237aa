"""The local engine's certificate authority over HTTP: requests that it signs and that it refuses."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address, ip_network
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification
from cryptography.x509.oid import NameOID

from lib.local.api import EngineApi
from lib.local.authority import BACKDATED_S, DEFAULT_LIFETIME_S, MAX_REQUEST_BYTES, NETWORKS
from lib.local.engine import LocalEngine
from lib.runtime.hosts import PRIVATE_DOMAINS
from tests.manual_clock import ManualClock
from tests.system import engine_key

SIGN = "/api/v0/sign_cert/"
KEY = ec.generate_private_key(ec.SECP256R1())
NAMES: Sequence[x509.GeneralName] = (
    x509.IPAddress(ip_address("10.0.0.1")),
    x509.DNSName("worker.a.internal"),
)

Client = TestClient[Any, Any]


def request_pem(key: Any = KEY, names: Sequence[x509.GeneralName] = NAMES) -> bytes:
    """A certificate request for `names`, signed by `key`."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an instance")])
    builder = x509.CertificateSigningRequestBuilder(name)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


@pytest.fixture
def engine() -> LocalEngine:
    return LocalEngine(clock=ManualClock(), key=engine_key())


@pytest.fixture
async def http(engine: LocalEngine) -> AsyncGenerator[Client, None]:
    async with TestClient(TestServer(EngineApi(engine).app())) as client:
        yield client


async def text_of(answer: aiohttp.ClientResponse, media_type: str) -> str:
    assert (answer.status, answer.content_type) == (200, media_type)
    return await answer.text()


@pytest.mark.parametrize("prefix", ["", "/e/chat"])
async def test_it_signs_for_the_requested_names(http: Client, engine: LocalEngine, prefix: str) -> None:
    answer = await http.post(f"{prefix}{SIGN}?instance_id=7", data=request_pem())
    pem = await text_of(answer, "application/octet-stream")
    root_pem = await text_of(
        await http.get(f"{prefix}/static/jvastai_root.cer"), "application/x-x509-ca-cert"
    )
    signed = x509.load_pem_x509_certificate(pem.encode())
    root = x509.load_pem_x509_certificate(root_pem.encode())
    signed.verify_directly_issued_by(root)
    root.verify_directly_issued_by(root)
    assert list(signed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == list(NAMES)
    assert signed.public_key() == KEY.public_key()
    assert not signed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    now = datetime.fromtimestamp(engine.clock.wall(), timezone.utc)
    assert signed.not_valid_before_utc == now - timedelta(seconds=BACKDATED_S)
    assert signed.not_valid_after_utc == now + timedelta(seconds=DEFAULT_LIFETIME_S)
    assert [(c.instance_id, c.pem) for c in engine.certificates] == [(7, pem)]


def tampered() -> bytes:
    """A certificate request with the signature of another request."""
    original = x509.load_pem_x509_csr(request_pem())
    other = x509.load_pem_x509_csr(request_pem(names=NAMES[:1]))
    der = original.public_bytes(Encoding.DER)
    at = der.index(original.signature)
    der = der[:at] + other.signature[: len(original.signature)].ljust(len(original.signature), b"\0")
    return x509.load_der_x509_csr(der).public_bytes(Encoding.PEM)


def names(*names: x509.GeneralName) -> bytes:
    return request_pem(names=[*NAMES, *names])


FOREIGN: list[x509.GeneralName] = [
    *(
        x509.DNSName(name)
        for name in (
            *(
                "google.com",
                "*.google.com",
                "localhost.google.com",
                "internal.example",
                "worker",
                "*",
                "",
                ".",
            ),
            *(
                "*.internal",
                "google.com.",
                "localhost.",
                "notlocalhost",
                "a..internal",
                "google.com\0.internal",
            ),
        )
    ),
    *(
        x509.IPAddress(ip_address(address))
        for address in (
            *("8.8.8.8", "172.32.0.1", "100.64.0.1", "0.0.0.0", "::", "2001:db8::1", "::ffff:127.0.0.1"),
            "ff02::1",
        )
    ),
    x509.IPAddress(ip_network("127.0.0.0/8")),
    x509.RFC822Name("a@localhost"),
    x509.UniformResourceIdentifier("https://localhost/"),
    x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])),
]


@pytest.mark.parametrize("name", FOREIGN, ids=str)
async def test_it_signs_for_no_other_host(http: Client, engine: LocalEngine, name: x509.GeneralName) -> None:
    answer = await http.post(SIGN + "?instance_id=1", data=names(name))
    assert answer.status == 400
    assert "no certificate for" in (await answer.json())["error"]
    assert engine.certificates == []


OWN: list[x509.GeneralName] = [
    *(
        x509.DNSName(name)
        for name in ("localhost", "a.localhost", "Worker-1.local", "ip-10-0-0-1.ec2.internal")
    ),
    *(
        x509.IPAddress(ip_address(address))
        for address in (
            *("127.0.0.1", "127.1.2.3", "10.1.2.3", "172.16.0.1", "172.31.0.1", "192.168.0.1", "169.254.1.1"),
            *("::1", "fd00::1", "fe80::1"),
        )
    ),
]


async def test_a_client_that_trusts_the_root_accepts_every_name_that_is_signed(
    http: Client, engine: LocalEngine
) -> None:
    answer = await http.post(SIGN + "?instance_id=1", data=request_pem(names=OWN))
    pem = await text_of(answer, "application/octet-stream")
    root = x509.load_pem_x509_certificate(engine.authority.root_pem.encode())
    certificate = x509.load_pem_x509_certificate(pem.encode())
    store = verification.Store([root])
    at = datetime.fromtimestamp(engine.clock.wall(), timezone.utc)
    for name in OWN:
        if isinstance(name, (x509.DNSName, x509.IPAddress)):
            verifier = verification.PolicyBuilder().store(store).time(at).build_server_verifier(name)
            assert verifier.verify(certificate, [])
    assert certificate.subject == x509.Name([])


async def test_the_root_is_good_for_no_other_host(engine: LocalEngine) -> None:
    root = x509.load_pem_x509_certificate(engine.authority.root_pem.encode())
    constraints = root.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    permitted = constraints.value.permitted_subtrees or []
    assert {name.value for name in permitted if isinstance(name, x509.DNSName)} == set(PRIVATE_DOMAINS)
    assert [name.value for name in permitted if isinstance(name, x509.IPAddress)] == list(NETWORKS)


WEAK = rsa.generate_private_key(public_exponent=65537, key_size=1024)


@pytest.mark.parametrize(
    ("query", "body", "message"),
    [
        ("", request_pem(), "instance_id"),
        ("?instance_id=-1", request_pem(), "instance_id"),
        ("?instance_id=1", b"", "not a PEM certificate request"),
        ("?instance_id=1", b"\xff", "not a PEM certificate request"),
        ("?instance_id=1", request_pem()[:200], "not a PEM certificate request"),
        ("?instance_id=1", request_pem(names=()), "no subject alternative name"),
        ("?instance_id=1", request_pem(WEAK), "1024 bits; at least 2048 are required"),
        (
            "?instance_id=1",
            request_pem(dsa.generate_private_key(1024)),
            "must be an RSA or an elliptic-curve key",
        ),
    ],
)
async def test_invalid_requests_are_refused(
    http: Client, engine: LocalEngine, query: str, body: bytes, message: str
) -> None:
    answer = await http.post(SIGN + query, data=body)
    assert answer.status == 400
    assert message in (await answer.json())["error"]
    assert engine.certificates == []


async def test_a_request_signed_by_another_key_is_refused(http: Client) -> None:
    answer = await http.post(SIGN + "?instance_id=1", data=tampered())
    assert answer.status == 400
    assert (await answer.json())["error"]


async def test_a_request_that_is_too_large_is_413(http: Client) -> None:
    answer = await http.post(SIGN + "?instance_id=1", data=b"x" * (MAX_REQUEST_BYTES + 1))
    assert answer.status == 413
