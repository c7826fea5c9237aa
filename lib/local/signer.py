"""The local engine's signatures. In production, the serverless engine makes them.

Owns the RSA key pair and the making of signatures (docs/protocol.md, "Signature"). Does not own what is
signed (engine.py).
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import Any, Literal

from Crypto.Hash import SHA256
from Crypto.PublicKey import RSA
from Crypto.Signature import pkcs1_15

from lib.wire import full_signed_text, url_signed_text

Scheme = Literal["full", "url"]

KEY_BITS = 2048


class Signer:
    """Signs with `key`, or with a key that is made when it is first needed.

    Making a key takes up to a second of CPU time. `prepare` makes it in a thread; `sign` blocks.
    """

    def __init__(self, key: RSA.RsaKey | None = None) -> None:
        self._key = key

    @property
    def public_key(self) -> str:
        """The public key as in the answer of `/pubkey/`: PEM text that ends in a newline."""
        return self._private().public_key().export_key().decode() + "\n"

    async def prepare(self) -> None:
        """Make the key in a thread if there is none."""
        if self._key is None:
            await self.rotate()

    async def rotate(self, key: RSA.RsaKey | None = None) -> None:
        """Sign with `key`, or with a new one, from now on. While a new key is made, the old one is used."""
        self._key = key or await asyncio.to_thread(RSA.generate, KEY_BITS)

    def sign(self, auth_data: Mapping[str, Any], scheme: Scheme) -> str:
        """The base64 signature of `auth_data`. The scheme `url` signs only its `url`, `full` all fields."""
        text = full_signed_text(auth_data) if scheme == "full" else url_signed_text(auth_data["url"])
        signature = pkcs1_15.new(self._private()).sign(SHA256.new(text.encode()))
        return base64.b64encode(signature).decode()

    def _private(self) -> RSA.RsaKey:
        if self._key is None:
            self._key = RSA.generate(KEY_BITS)
        return self._key
