"""The gate: a client's request in, an authenticated envelope out (protocol.md §2).

Owns the order of the checks: shape, `auth_data`, signature, and only then the rest of the body. Nothing
that is refused here runs an author's code or changes a number that is reported.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from lib.access.body import BodyReader
from lib.access.envelope import Envelope, SealedEnvelope
from lib.access.signatures import BadSignature, Signatures
from lib.errors import Unavailable

RETRY_WITHOUT_KEY_S = 5.0


class Gate:
    """Lets requests in. `signatures` None: unsecured, envelopes are still checked.

    `refetch_key` looks for a rotated key and is awaited once before a signature is refused for good.
    """

    def __init__(
        self,
        bodies: BodyReader,
        signatures: Signatures | None,
        refetch_key: Callable[[], Awaitable[None]],
    ) -> None:
        self._bodies = bodies
        self._signatures = signatures
        self._refetch_key = refetch_key

    async def admit(self, request: web.Request) -> Envelope:
        """The request's envelope, its signature verified.

        Raises `Unavailable` (503) without a public key, `Invalid` (422), `Unauthorized` (401) and what
        `BodyReader.read` raises. A bad signature costs one parse and one verification, unless the key was
        rotated.
        """
        if self._signatures is not None and not self._signatures.has_key:
            raise Unavailable("no public key", "the engine's public key is not here yet", RETRY_WITHOUT_KEY_S)
        async with self._bodies.read(request) as body:
            if self._signatures is None:
                return SealedEnvelope(body).open()
            key = self._signatures.public_key
            envelope = _verified(body, self._signatures)
            if envelope is None:
                await self._refetch_key()
                if self._signatures.public_key != key:
                    envelope = _verified(body, self._signatures)
            if envelope is None:
                raise BadSignature("the signature does not hold")
            return envelope


def _verified(body: bytearray, signatures: Signatures) -> Envelope | None:
    """The envelope, or None when its signature does not hold: then nothing that was parsed is kept."""
    sealed = SealedEnvelope(body)
    try:
        signatures.check(sealed.raw_auth, sealed.auth.reqnum)
    except BadSignature:
        return None
    return sealed.open()
