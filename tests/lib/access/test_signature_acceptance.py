"""Signatures are accepted exactly when pycryptodome, an independent implementation, accepts them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from functools import cache

import pytest
from Crypto.Hash import SHA256
from Crypto.PublicKey import RSA
from Crypto.Signature import pkcs1_15
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from lib.access.signatures import BadSignature, Signatures
from lib.wire import url_signed_text
from tests.keys import new_key

URL = "http://worker.example:3000"
TEXT = url_signed_text(URL).encode()
DIGEST = hashlib.sha256(TEXT).digest()
# The DER encoding of a DigestInfo up to its digest, by hash function and form of the parameters.
SHA256_NULL = bytes.fromhex("3031300d060960864801650304020105000420")
SHA256_ABSENT = bytes.fromhex("302f300b06096086480165030402010420")
SHA256_LONG_FORM = bytes.fromhex("308131300d060960864801650304020105000420")
SHA1_NULL = bytes.fromhex("3021300906052b0e03021a05000414")
SHA512_NULL = bytes.fromhex("3051300d060960864801650304020305000440")

SIZES = (1024, 1536, 2048, 3072, 4096)


@cache
def key_of(bits: int) -> RSA.RsaKey:
    return new_key(bits)


def is_accepted(key: RSA.RsaKey, signature: bytes) -> bool:
    signatures = Signatures("url", URL)
    signatures.use_key(key.public_key().export_key().decode())
    raw = {"url": URL, "signature": base64.b64encode(signature).decode()}
    try:
        signatures.check(raw, 1)
    except BadSignature:
        return False
    return True


def is_valid_for_pycryptodome(key: RSA.RsaKey, signature: bytes) -> bool:
    try:
        pkcs1_15.new(key.public_key()).verify(SHA256.new(TEXT), signature)
    except ValueError:
        return False
    return True


def encrypted(key: RSA.RsaKey, encoded: bytes) -> bytes:
    """The private key's operation on `encoded`, whatever that holds."""
    number = int.from_bytes(encoded, "big") % key.n
    return pow(number, key.d, key.n).to_bytes(key.size_in_bytes(), "big")


def encoded(
    size: int, info: bytes, *, head: bytes = b"\x00\x01", fill: bytes = b"\xff", end: bytes = b"\x00"
) -> bytes:
    """`info` padded to `size` bytes, by default as EMSA-PKCS1-v1_5 has it (RFC 8017, section 9.2)."""
    return head + fill * (size - len(info) - len(head) - len(end)) + end + info


Encode = Callable[[int], bytes]
ENCODINGS: dict[str, Encode] = {
    "valid": lambda size: encoded(size, SHA256_NULL + DIGEST),
    "parameters absent": lambda size: encoded(size, SHA256_ABSENT + DIGEST),
    "length in the long form": lambda size: encoded(size, SHA256_LONG_FORM + DIGEST),
    "another digest": lambda size: encoded(size, SHA256_NULL + hashlib.sha256(b"other").digest()),
    "the digest of another function": lambda size: encoded(size, SHA1_NULL + hashlib.sha1(TEXT).digest()),
    "a longer digest": lambda size: encoded(size, SHA512_NULL + hashlib.sha512(TEXT).digest()),
    "no digest info": lambda size: encoded(size, DIGEST),
    "a truncated digest": lambda size: encoded(size, SHA256_NULL + DIGEST[:-1]),
    "block type 2": lambda size: encoded(size, SHA256_NULL + DIGEST, head=b"\x00\x02"),
    "block type 0": lambda size: encoded(size, SHA256_NULL + DIGEST, head=b"\x00\x00"),
    "other padding": lambda size: encoded(size, SHA256_NULL + DIGEST, fill=b"\xfe"),
    "no end of the padding": lambda size: encoded(size, SHA256_NULL + DIGEST, end=b"\xff"),
    "two ends of the padding": lambda size: encoded(size, SHA256_NULL + DIGEST, end=b"\x00\x00"),
    "short padding and garbage": lambda size: (
        b"\x00\x01" + b"\xff" * 8 + b"\x00" + SHA256_NULL + DIGEST
    ).ljust(size, b"\x5a"),
    "garbage before the digest info": lambda size: encoded(size, b"\x30\x00" + SHA256_NULL + DIGEST),
    "zeros": bytes,
    "one": lambda size: bytes(size - 1) + b"\x01",
    "all ones": lambda size: b"\xff" * size,
}


@pytest.mark.parametrize("bits", SIZES)
@pytest.mark.parametrize("name", ENCODINGS)
def test_each_encoding(bits: int, name: str) -> None:
    key = key_of(bits)
    signature = encrypted(key, ENCODINGS[name](key.size_in_bytes()))
    expected = is_valid_for_pycryptodome(key, signature)
    assert expected is (name in ("valid", "parameters absent"))
    assert is_accepted(key, signature) is expected


CHANGES: dict[str, Callable[[bytes, RSA.RsaKey], bytes]] = {
    "none": lambda signature, key: signature,
    "empty": lambda signature, key: b"",
    "a byte less": lambda signature, key: signature[:-1],
    "a byte more": lambda signature, key: signature + b"\x00",
    "a leading zero": lambda signature, key: b"\x00" + signature,
    "the modulus added": lambda signature, key: (int.from_bytes(signature, "big") + key.n).to_bytes(
        len(signature) + 1, "big"
    ),
    "the modulus": lambda signature, key: key.n.to_bytes(len(signature), "big"),
    "of another key": lambda signature, key: encrypted(new_key(), encoded(128, SHA256_NULL + DIGEST)),
}


@pytest.mark.parametrize("bits", SIZES[:3])
@pytest.mark.parametrize("name", CHANGES)
def test_each_length_and_range(bits: int, name: str) -> None:
    key = key_of(bits)
    valid = encrypted(key, ENCODINGS["valid"](key.size_in_bytes()))
    signature = CHANGES[name](valid, key)
    expected = is_valid_for_pycryptodome(key, signature)
    assert expected is (name == "none")
    assert is_accepted(key, signature) is expected


@given(data=st.data())
def test_any_signature_and_any_flipped_bits(data: st.DataObject) -> None:
    key = key_of(1024)
    size = key.size_in_bytes()
    kind = data.draw(st.sampled_from(["bytes", "flipped signature", "flipped encoding"]))
    flips = data.draw(st.lists(st.integers(0, 8 * size - 1), max_size=3))
    if kind == "bytes":
        signature = data.draw(st.binary(max_size=2 * size))
    elif kind == "flipped signature":
        signature = flipped(encrypted(key, ENCODINGS["valid"](size)), flips)
    else:
        signature = encrypted(key, flipped(ENCODINGS["valid"](size), flips))
    assert is_accepted(key, signature) is is_valid_for_pycryptodome(key, signature)


def flipped(value: bytes, bits: list[int]) -> bytes:
    number = int.from_bytes(value, "big")
    for bit in bits:
        number ^= 1 << bit
    return number.to_bytes(len(value), "big")


@pytest.mark.parametrize(
    "signature", ["", "A", "====", "not base64!", " " * 172, "é" * 172, "A" * 171, "-_" * 86, "A" * 10_000]
)
def test_what_is_not_base64_of_a_signature_is_invalid(signature: str) -> None:
    signatures = Signatures("auto", URL)
    signatures.use_key(key_of(1024).public_key().export_key().decode())
    raw = {"cost": 1, "endpoint": "e", "reqnum": 1, "url": URL, "signature": signature}
    with pytest.raises(BadSignature):
        signatures.check(raw, 1)


@pytest.mark.parametrize(
    "pem",
    [
        "",
        "no key",
        "-----BEGIN PUBLIC KEY-----\nabc\n-----END PUBLIC KEY-----\n",
        "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n"
        "-----END PUBLIC KEY-----\n",  # of Ed25519
        "-----BEGIN PUBLIC KEY-----\nMAswBQYDKgMEAwIAAQ==\n-----END PUBLIC KEY-----\n",  # of no known kind
    ],
)
def test_a_text_without_an_rsa_key_is_a_value_error(pem: str) -> None:
    signatures = Signatures("auto", URL)
    with pytest.raises(ValueError):  # noqa: PT011 - each cause has a text of its own
        signatures.use_key(pem)
    assert not signatures.has_key


def test_a_key_in_pkcs1_form_is_accepted_too() -> None:
    key = key_of(1024)
    signatures = Signatures("url", URL)

    public = serialization.load_pem_public_key(key.public_key().export_key())
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.PKCS1)
    assert b"RSA PUBLIC KEY" in pem
    signatures.use_key(pem.decode())
    valid = encrypted(key, ENCODINGS["valid"](key.size_in_bytes()))
    signatures.check({"url": URL, "signature": base64.b64encode(valid).decode()}, 1)
