"""Did the engine send this client here: signature, URL and replay (protocol.md §2).

Owns the public key in use and what has been verified with it. Where the key comes from is engine/key.py's.
"""

from __future__ import annotations

import base64
import binascii
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from Crypto.Hash import SHA256
from Crypto.PublicKey import RSA
from Crypto.Signature import pkcs1_15

from lib.errors import Unauthorized
from lib.runtime.settings import AuthScheme
from lib.wire import full_signed_text, url_signed_text

# A reqnum further behind the highest accepted one is refused: what was seen of it is forgotten.
WINDOW = 100
# Verified `url`-form signatures that are remembered: a fleet has a handful at a time.
REMEMBERED_SIGNATURES = 256
_DEFAULT_PORTS = {"http": 80, "https": 443}


class ReplayWindow:
    """Remembers the signed messages of the last `WINDOW` reqnums."""

    def __init__(self) -> None:
        self._highest: int | None = None
        self._seen: dict[int, set[bytes]] = {}

    def accept(self, reqnum: int, message: bytes) -> bool:
        """Whether `message` is new and not too far behind; if so it is remembered."""
        if self._highest is None or reqnum > self._highest:
            self._highest = reqnum
            self._forget_before(reqnum - WINDOW)
        elif reqnum < self._highest - WINDOW:
            return False
        seen = self._seen.setdefault(reqnum, set())
        if message in seen:
            return False
        seen.add(message)
        return True

    def __len__(self) -> int:
        return len(self._seen)

    def _forget_before(self, floor: int) -> None:
        # Sorted by arrival, not by number: at most WINDOW + 1 entries are ever there to look at.
        for reqnum in [n for n in self._seen if n < floor]:
            del self._seen[reqnum]


class BadSignature(Unauthorized):
    """No accepted form of the signature holds: the key may have been rotated."""


class Signatures:
    """Checks `auth_data` against the engine's key. `public_url` None: signed URLs are not compared."""

    def __init__(self, scheme: AuthScheme, public_url: str | None) -> None:
        self._scheme = scheme
        self._address = _address(public_url) if public_url is not None else None
        self._checks_url = public_url is not None
        self._pem = ""
        self._verifier: pkcs1_15.PKCS115_SigScheme | None = None
        self._replay = ReplayWindow()
        self._verified: OrderedDict[tuple[str, str], None] = OrderedDict()

    @property
    def has_key(self) -> bool:
        return self._verifier is not None

    @property
    def public_key(self) -> str:
        """The PEM text in use; "" before there is one."""
        return self._pem

    def use_key(self, pem: str) -> None:
        """Verify with the key in `pem` from now on. Raises `ValueError` when there is none in it.

        With another key what was verified with the old one is forgotten, the replay window included: none
        of those messages would be accepted again.
        """
        verifier = pkcs1_15.new(RSA.import_key(pem))
        if pem != self._pem:
            self._pem, self._verifier = pem, verifier
            self._replay = ReplayWindow()
            self._verified.clear()

    def check(self, raw: Mapping[str, Any], reqnum: int, *, once: bool = True) -> None:
        """Return if the engine signed `raw`, for this worker, and, if `once`, it was not used before.

        `raw` is `auth_data` as received: the signed text holds its values as the client sent them.
        Raises `Unauthorized`; `BadSignature` when no form of the signature holds.
        """
        message = self._verified_message(raw)
        if self._checks_url and _address(raw["url"]) != self._address:
            raise Unauthorized("the signature is for another worker's URL")
        if once and message is not None and not self._replay.accept(reqnum, message):
            raise Unauthorized("replay: this signature was used before, or is too old")

    def _verified_message(self, raw: Mapping[str, Any]) -> bytes | None:
        """The digest that replay is told by, for the `full` form; None for the `url` form."""
        signature: str = raw["signature"]
        remembered = (raw["url"], signature)
        if self._scheme != "full" and remembered in self._verified:
            self._verified.move_to_end(remembered)
            return None
        if self._scheme != "url":
            digest = SHA256.new(full_signed_text(raw).encode())
            if self._holds(digest, signature):
                return digest.digest()
        if self._scheme != "full" and self._holds(
            SHA256.new(url_signed_text(raw["url"]).encode()), signature
        ):
            self._verified[remembered] = None
            if len(self._verified) > REMEMBERED_SIGNATURES:
                self._verified.popitem(last=False)
            return None
        raise BadSignature("the signature does not hold")

    def _holds(self, digest: SHA256.SHA256Hash, signature: str) -> bool:
        if self._verifier is None:
            return False
        try:
            self._verifier.verify(digest, base64.b64decode(signature, validate=True))
        except (ValueError, binascii.Error):
            return False
        return True


def _address(url: str) -> tuple[str, str, int | None] | None:
    """Scheme, host and port of `url`, or None when it has none."""
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return None
    return (parts.scheme, parts.hostname, port) if parts.hostname else None
