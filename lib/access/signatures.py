"""Verification of `auth_data`: signature, URL and replay (docs/protocol.md, "Signature").

Owns the public key in use, and the memory of what was verified with it. It does not fetch the key: that is
lib/engine/key.py.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Any, Protocol
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from lib.errors import Unauthorized, result_or_error
from lib.runtime.settings import AuthScheme
from lib.wire import full_signed_text, url_signed_text

# A reqnum further behind the highest accepted one is refused: its messages are not remembered.
WINDOW = 100
# Verified signatures of the `url` form that are remembered; one worker sees a handful at a time.
REMEMBERED_SIGNATURES = 256
# The bytes before a SHA-256 digest in a signature (RFC 8017, section 9.2): they name the hash function, with
# parameters that are NULL or, from some signers, absent.
_DIGEST_INFO_PREFIXES = (
    bytes.fromhex("3031300d060960864801650304020105000420"),
    bytes.fromhex("302f300b06096086480165030402010420"),
)
_DIGEST_BYTES = 32
_PADDING = PKCS1v15()
# Shorter keys can be broken; a check with a longer one takes too long.
MIN_KEY_BITS, MAX_KEY_BITS = 1024, 8192
# Bytes of signatures that keys may make.
_SIZES = range(MIN_KEY_BITS // 8, MAX_KEY_BITS // 8 + 1)
_DEFAULT_PORTS = {"http": 80, "https": 443}


class ReplayWindow:
    """Remembers the signed messages of the last `WINDOW` reqnums."""

    def __init__(self) -> None:
        self._highest: int | None = None
        self._seen: dict[int, set[bytes]] = {}

    def accept(self, reqnum: int, message: bytes) -> bool:
        """Whether `message` is new and inside the window; remember it if so."""
        if self._highest is None or reqnum > self._highest:
            self._forget_until(reqnum)
            self._highest = reqnum
        elif reqnum < self._highest - WINDOW:
            return False
        seen = self._seen.setdefault(reqnum, set())
        if message in seen:
            return False
        seen.add(message)
        return True

    @property
    def highest(self) -> int:
        """The highest reqnum accepted so far; -1 before the first."""
        return -1 if self._highest is None else self._highest

    def __len__(self) -> int:
        return len(self._seen)

    def messages(self) -> Iterator[tuple[int, bytes]]:
        """Each remembered message with its reqnum."""
        for reqnum, messages in self._seen.items():
            for message in messages:
                yield reqnum, message

    def _forget_until(self, reqnum: int) -> None:
        """Forget what is outside the window whose highest is `reqnum`."""
        floor, old_floor = reqnum - WINDOW, (self._highest or 0) - WINDOW
        if floor - old_floor <= WINDOW:
            for number in range(old_floor, floor):
                self._seen.pop(number, None)
        else:
            for number in [n for n in self._seen if n < floor]:
                del self._seen[number]


class BadSignature(Unauthorized):
    """401: the signature is invalid in every accepted form.

    `is_well_formed`: it may be one of another key. Then the engine's may have been rotated.
    """

    def __init__(self, message: str, is_well_formed: bool = True) -> None:
        super().__init__(message)
        self.is_well_formed = is_well_formed


class SignatureJournal(Protocol):
    """Records the keys, and the signatures that were used (lib/engine/journal.py)."""

    def key_changed(self, fingerprint: bytes) -> None: ...

    def signature_used(self, reqnum: int, digest: bytes) -> None: ...


class Signatures:
    """Verifies `auth_data` with the engine's key.

    `scheme` selects the accepted forms (AUTH_SCHEME). Signed URLs must have the scheme, host and port of
    `public_url`; None turns this check off.
    """

    def __init__(self, scheme: AuthScheme, public_url: str | None) -> None:
        self._scheme = scheme
        self._address = _address(public_url) if public_url is not None else None
        self._checks_url = public_url is not None
        self._pem = ""
        self._key: RSAPublicKey | None = None
        self._replay = ReplayWindow()
        self.fingerprint = b""  # of the key whose used signatures are remembered; b"" before there is one
        self.journal: SignatureJournal | None = None
        # Verified signatures of the `url` form with their URL; True if it is this worker's.
        self._verified: OrderedDict[tuple[str, str], bool] = OrderedDict()

    @property
    def has_key(self) -> bool:
        """Whether `use_key` was called with a key."""
        return self._key is not None

    @property
    def highest_reqnum(self) -> int:
        """The highest reqnum of the messages that were verified; -1 before the first, or with a new key."""
        return self._replay.highest

    @property
    def public_key(self) -> str:
        """The PEM text of the key in use; "" before there is one."""
        return self._pem

    def use_key(self, pem: str) -> None:
        """Verify with the key in `pem` from now on. Raises `ValueError` if it holds no key.

        A new key empties the replay window and the remembered signatures: messages that the old key signed
        are no longer accepted anyway. The same key in other words, with other white space, is no new key.
        """
        key = _public_key_in(pem)
        fingerprint = _fingerprint(key)
        if key != self._key:
            self._pem, self._key = pem, key
        if fingerprint != self.fingerprint:
            self.fingerprint = fingerprint
            self._replay = ReplayWindow()
            self._verified.clear()
            if self.journal is not None:
                self.journal.key_changed(fingerprint)

    def used(self) -> Iterable[tuple[int, bytes]]:
        """The used signatures that are remembered, each as reqnum and digest."""
        return self._replay.messages()

    def recall(self, fingerprint: bytes, used: Iterable[tuple[int, bytes]]) -> None:
        """Take over the used signatures of a worker that was killed; they count if its key comes again."""
        self.fingerprint = fingerprint
        for reqnum, digest in used:
            self._replay.accept(reqnum, digest)

    def check(self, raw: Mapping[str, Any], reqnum: int, *, once: bool = True) -> None:
        """Check that the engine signed `raw` for this worker and, if `once`, that it was not used before.

        `raw` is `auth_data` as received: the signed text contains the values as the client sent them. Raises
        `BadSignature` (401) if the signature is invalid, `Unauthorized` (401) for another worker's URL or a
        replay.
        """
        message: bytes | None = None
        verified = (raw["url"], raw["signature"])
        is_ours = self._verified.get(verified)
        if is_ours is None:
            message = self._verified_message(raw)
            is_ours = not self._checks_url or _address(raw["url"]) == self._address
            if message is None:
                self._remember(verified, is_ours)
        else:
            self._verified.move_to_end(verified)
        if not is_ours:
            raise Unauthorized("the signature is for another worker's URL")
        if once and message is not None:
            if not self._replay.accept(reqnum, message):
                raise Unauthorized("replay: this signature was used before, or is too old")
            if self.journal is not None:
                self.journal.signature_used(reqnum, message)

    def _verified_message(self, raw: Mapping[str, Any]) -> bytes | None:
        """Verify `raw`; return the digest that identifies a `full` message, or None for the `url` form."""
        signature = _decoded(raw["signature"])
        signed = None if signature is None else self._signed_digest(signature)
        if signed is not None:
            if self._scheme != "url" and signed == sha256(full_signed_text(raw).encode()).digest():
                return signed
            if self._scheme != "full" and signed == sha256(url_signed_text(raw["url"]).encode()).digest():
                return None
        raise BadSignature("the signature is invalid", signature is not None and len(signature) in _SIZES)

    def _remember(self, verified: tuple[str, str], is_ours: bool) -> None:
        self._verified[verified] = is_ours
        if len(self._verified) > REMEMBERED_SIGNATURES:
            self._verified.popitem(last=False)

    def _signed_digest(self, signature: bytes) -> bytes | None:
        """Return the SHA-256 digest that `signature` signs; None if it is no signature of the key.

        One RSA operation serves both forms: their digests are compared with the recovered one.
        """
        if self._key is None:
            return None
        try:
            digest_info = self._key.recover_data_from_signature(signature, _PADDING, None)
        except (ValueError, InvalidSignature):
            return None
        prefix, digest = digest_info[:-_DIGEST_BYTES], digest_info[-_DIGEST_BYTES:]
        return digest if prefix in _DIGEST_INFO_PREFIXES else None


def _decoded(signature: str) -> bytes | None:
    try:
        decoded = base64.b64decode(signature, validate=True)
    except ValueError:
        return None
    # Python 3.10 lets more padding pass than there may be (RFC 4648, section 4).
    return decoded if len(signature) == -(-len(decoded) // 3) * 4 else None


def _public_key_in(pem: str) -> RSAPublicKey:
    """The RSA public key in `pem`. Raises `ValueError` if there is none that can be used."""
    key = result_or_error(lambda: load_pem_public_key(pem.encode()))  # it raises more than it documents
    if isinstance(key, Exception):
        raise ValueError(f"not a public key: {key}") from key
    if not isinstance(key, RSAPublicKey):
        raise ValueError("not an RSA key")
    if not MIN_KEY_BITS <= key.key_size <= MAX_KEY_BITS:
        raise ValueError(f"an RSA key of {key.key_size} bits, not {MIN_KEY_BITS} to {MAX_KEY_BITS}")
    numbers = key.public_numbers()
    if numbers.e < 3 or not numbers.e & numbers.n & 1:
        raise ValueError("no RSA key: its numbers must be odd, and its exponent more than 1")
    return key


def _fingerprint(key: RSAPublicKey) -> bytes:
    """The same for the same key, however its PEM text is written."""
    numbers = key.public_numbers()
    return sha256(b"%x %x" % (numbers.n, numbers.e)).digest()


def _address(url: str) -> tuple[str, str, int | None] | None:
    """The scheme, host and port of `url`; None if it is not a URL with a host."""
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return None
    return (parts.scheme, parts.hostname, port) if parts.hostname else None
