"""The local engine's certificate authority. In production, Vast.ai's console signs workers' certificates.

Owns the authority's key, its root certificate and the contents of workers' certificates. Does not own the
route that receives requests (api.py). The root is for development only; each engine makes a new one.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from ipaddress import IPv4Address, IPv6Address, ip_network

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lib.local.messages import BadMessage
from lib.runtime.clock import Clock
from lib.runtime.hosts import PRIVATE_DOMAINS

NAME = "PyWorker local engine"
# The addresses that it signs for, beside names in private domains. Its root certificate is good for no
# others: who trusts it for development must not have to trust it for the rest of the world.
NETWORKS = tuple(
    ip_network(network)
    for network in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
        *("::1/128", "fc00::/7", "fe80::/10"),
    )
)
_HOST_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
# Certificates are valid from this long before now, in seconds, because clocks differ.
BACKDATED_S = 3600.0
ROOT_LIFETIME_S = 10 * 365 * 86400.0
DEFAULT_LIFETIME_S = 90 * 86400.0
# A certificate request for one name is about 1 KB.
MAX_REQUEST_BYTES = 64 * 1024
MIN_RSA_BITS = 2048


@dataclass(frozen=True)
class IssuedCertificate:
    """A certificate that was signed for an instance, as PEM text."""

    instance_id: int
    pem: str


class Authority:
    """Signs certificate requests. Certificates are valid for `lifetime_s` seconds from now by `clock`."""

    def __init__(self, clock: Clock, lifetime_s: float = DEFAULT_LIFETIME_S) -> None:
        self.lifetime_s = lifetime_s
        self._clock = clock
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._root = self._make_root()

    @property
    def root_pem(self) -> str:
        """The root certificate, as PEM text; clients must trust it."""
        return _pem(self._root)

    def trusting_context(self) -> ssl.SSLContext:
        """Return a client's TLS context that trusts this authority only.

        Blocking: call it in a thread.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.root_pem)
        return context

    def sign(self, request_pem: bytes) -> str:
        """Return the PEM certificate for a PEM certificate request, with the alternative names it asks for.

        Raises `BadMessage` (400) if the request can't be parsed, isn't signed by its own key, has a key of
        another kind than RSA of at least 2048 bits or an elliptic curve, has no alternative name, or one that
        is neither in `NETWORKS` nor in a private domain. The subject is not taken over: some clients would
        read a name from there.
        """
        request = _read(request_pem)
        key = request.public_key()
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return _pem(
            self._builder(x509.Name([]), self.lifetime_s)
            .public_key(key)
            .add_extension(names.value, critical=True)  # without a subject (RFC 5280, section 4.2.1.6)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, SHA256())
        )

    def _make_root(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
        key = self._key.public_key()
        usage = x509.KeyUsage(
            key_cert_sign=True,
            crl_sign=True,
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        return (
            self._builder(name, ROOT_LIFETIME_S)
            .public_key(key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(_constraints(), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .sign(self._key, SHA256())
        )

    def _builder(self, subject: x509.Name, lifetime_s: float) -> x509.CertificateBuilder:
        now = datetime.fromtimestamp(self._clock.wall(), timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)]))
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=BACKDATED_S))
            .not_valid_after(now + timedelta(seconds=lifetime_s))
        )


def _constraints() -> x509.NameConstraints:
    names = [x509.DNSName(domain) for domain in PRIVATE_DOMAINS]
    return x509.NameConstraints([*names, *(x509.IPAddress(network) for network in NETWORKS)], None)


def _is_signed_for(name: x509.GeneralName) -> bool:
    """Whether `name` is an address or a name that the authority signs for."""
    if isinstance(name, x509.IPAddress):
        address = name.value
        is_one = isinstance(address, (IPv4Address, IPv6Address))
        return is_one and any(address in network for network in NETWORKS)
    domain = name.value.lower() if isinstance(name, x509.DNSName) else ""
    return _HOST_NAME.fullmatch(domain) is not None and domain.rpartition(".")[2] in PRIVATE_DOMAINS


def _read(request_pem: bytes) -> x509.CertificateSigningRequest:
    try:
        request = x509.load_pem_x509_csr(request_pem)
        names = [e for e in request.extensions if isinstance(e.value, x509.SubjectAlternativeName)]
        key, is_its_own = request.public_key(), request.is_signature_valid
    except ValueError as e:
        raise BadMessage(f"the body is not a PEM certificate request: {e}") from e
    if not is_its_own:
        raise BadMessage("the certificate request is not signed by its own key")
    if not isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)):
        raise BadMessage("the key must be an RSA or an elliptic-curve key")
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        raise BadMessage(f"the RSA key has {key.key_size} bits; at least {MIN_RSA_BITS} are required")
    if not names:
        raise BadMessage("the certificate request has no subject alternative name: add one")
    for name in names[0].value:
        if not _is_signed_for(name):
            raise BadMessage(
                f"no certificate for {name.value!s}: this authority signs for loopback and private "
                f"addresses, and for names in {', '.join(PRIVATE_DOMAINS)}"
            )
    return request


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
