"""RSA keys for tests, made by OpenSSL: it takes a tenth of the time that PyCryptodome does for large ones."""

from __future__ import annotations

from Crypto.PublicKey import RSA
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


def new_key(bits: int = 1024) -> RSA.RsaKey:
    """Return a new private key of `bits` bits, at least 1,024."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    return RSA.import_key(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
