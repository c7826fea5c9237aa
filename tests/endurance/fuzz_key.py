"""Mutated public keys: the engine's answer is a key, or a failed fetch, and nothing else.

tests/lib/access/test_fuzz_key.py tries a few. By hand, many:

    python -m tests.endurance.fuzz_key 200000
"""

from __future__ import annotations

import base64
import random
import sys
from collections import Counter

from lib.access.signatures import Signatures
from lib.local.signer import Signer
from tests.endurance.fuzz_front import Change, changed
from tests.system import engine_key

# What readers of PEM and of DER take for structure.
PIECES = (
    *(b"", b"\n", b"\r\n", b" ", b"\x00", b"\xff", b"=", b"-----", b"A", b"ssh-rsa AAAA", b"\xc2\xa0"),
    *(b"-----BEGIN PUBLIC KEY-----\n", b"-----END PUBLIC KEY-----\n", b"-----BEGIN RSA PUBLIC KEY-----\n"),
    *(b"Proc-Type: 4,ENCRYPTED\n", b"-----BEGIN CERTIFICATE-----\n", b"-----BEGIN PRIVATE KEY-----\n"),
)
HEAD, TAIL = b"-----BEGIN PUBLIC KEY-----\n", b"-----END PUBLIC KEY-----\n"


def mutation(source: random.Random, pem: bytes) -> str:
    """`pem` with a few changes: of its text, or of the bytes that it encodes."""
    changes = [
        Change(
            source.random(),
            source.choice((0, 1, 1, 2, 10, 100)),
            source.choice(PIECES) if source.random() < 0.5 else source.randbytes(source.randint(1, 4)),
        )
        for _ in range(source.randint(1, 3))
    ]
    if source.random() < 0.5:
        der = base64.b64decode(b"".join(pem.splitlines()[1:-1]))
        pem = HEAD + base64.encodebytes(changed(der, changes)) + TAIL
    else:
        pem = changed(pem, changes)
    return pem.decode(errors="replace")


def try_keys(count: int, seed: int) -> Counter[str]:
    """Use `count` mutated keys; return how many were keys, and how many were not.

    Raises what `use_key` raises, except for `ValueError`. A text without a key changes nothing.
    """
    source, signatures, results = random.Random(seed), Signatures("auto", None), Counter[str]()
    pem = Signer(engine_key()).public_key.encode()
    signatures.use_key(pem.decode())
    for _ in range(count):
        text, before = mutation(source, pem), signatures.public_key
        try:
            signatures.use_key(text)
        except ValueError:
            assert signatures.public_key == before
            results["not a key"] += 1
        else:
            results["a key"] += 1
    return results


if __name__ == "__main__":
    print(dict(try_keys(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)))
