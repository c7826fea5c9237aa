"""The CPU time of one bare signature verification, with which a refused request is compared."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from benchmarks.signed_requests import RequestSigner
from lib.access.signatures import Signatures
from lib.errors import Unauthorized
from lib.wire import url_signed_text

_URL = "http://127.0.0.1:1"


@dataclass(frozen=True)
class VerificationCost:
    """CPU seconds of one verification by `cryptography`, and of this worker's check of a wrong signature."""

    verification_s: float
    check_s: float


def measure_verification(key_file: Path, count: int) -> VerificationCost:
    """Verify and check `count` times each; takes the thread for that long."""
    private = load_pem_private_key(key_file.read_bytes(), None)
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    public = load_pem_public_key(pem)
    assert isinstance(public, RSAPublicKey)
    signer = RequestSigner(key_file)
    signature = base64.b64decode(signer.auth_data(_URL, "url")["signature"])
    text, padding, digest = url_signed_text(_URL).encode(), PKCS1v15(), SHA256()
    refused = [signer.auth_data(_URL, "refused") for _ in range(count)]
    remaining = iter(refused)
    signatures = Signatures("auto", _URL)
    signatures.use_key(pem.decode())

    def check() -> None:
        auth = next(remaining)
        with contextlib.suppress(Unauthorized):
            signatures.check(auth, auth["reqnum"])
            raise AssertionError("a wrong signature was accepted")

    return VerificationCost(
        _cpu_s(count, lambda: public.verify(signature, text, padding, digest)), _cpu_s(count, check)
    )


def _cpu_s(count: int, call: Callable[[], object]) -> float:
    """This thread's CPU time for one of `count` calls."""
    before_s = time.thread_time()
    for _ in range(count):
        call()
    return (time.thread_time() - before_s) / count
