"""The gate: a client's request in, an authenticated envelope out (protocol.md §2).

Owns the order of the checks: shape, `auth_data`, signature or session, and only then the rest of the body.
Nothing that is refused here runs an author's code or changes a number that is reported.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from aiohttp import web

from lib.access.body import BodyReader
from lib.access.envelope import PARSED_WHOLE_BYTES, Envelope, SealedEnvelope, object_in
from lib.access.sessions import Session, Sessions
from lib.access.signatures import BadSignature, Signatures
from lib.errors import BodyTooLarge, Invalid, Unavailable

RETRY_WITHOUT_KEY_S = 5.0


@dataclass(frozen=True)
class Gate:
    """Lets requests in. `signatures` None: unsecured, envelopes are still checked.

    `refetch_key` looks for a rotated key and is awaited once before a signature is refused for good.
    """

    bodies: BodyReader
    signatures: Signatures | None
    sessions: Sessions
    refetch_key: Callable[[], Awaitable[None]]

    async def admit(self, request: web.Request) -> Envelope:
        """The request's envelope, authenticated by its signature or by the session it is in.

        Raises `Unavailable` (503) without a public key, `Invalid` (422), `Unauthorized` (401) and what
        `BodyReader.read` raises. A bad signature costs one parse and one verification, unless the key was
        rotated.
        """
        if self.signatures is not None and not self.signatures.has_key:
            raise Unavailable("no public key", "the engine's public key is not here yet", RETRY_WITHOUT_KEY_S)
        async with self.bodies.read(request) as body:
            key = self._public_key
            envelope = self._verified(body)
            if envelope is None:
                await self.refetch_key()
                if self._public_key != key:
                    envelope = self._verified(body)
            if envelope is None:
                raise BadSignature("the signature does not hold")
            return envelope

    async def session_in(self, request: web.Request) -> Session | None:
        """The session in a body `{"session_id", "session_auth"}`, or None when it is gone.

        Raises `Invalid` (422), `Unauthorized` (401) for another `session_auth` than the session's.
        """
        async with self.bodies.read(request) as body:
            if len(body) > PARSED_WHOLE_BYTES:
                raise BodyTooLarge(f"the body is larger than {PARSED_WHOLE_BYTES} bytes")
            fields = object_in(body)
        problems = {
            name: f"must be {what}" if name in fields else "missing parameter"
            for name, kind, what in (("session_id", str, "a string"), ("session_auth", dict, "an object"))
            if not isinstance(fields.get(name), kind)
        }
        if problems:
            raise Invalid(problems)
        return self.sessions.find(fields["session_id"], fields["session_auth"])

    @property
    def _public_key(self) -> str:
        return "" if self.signatures is None else self.signatures.public_key

    def _verified(self, body: bytearray) -> Envelope | None:
        """The envelope, or None when its signature does not hold: then nothing that was parsed is kept."""
        sealed = SealedEnvelope(body)
        if self.sessions.remembers(sealed.raw_auth):
            sealed.parse()
        if sealed.session_id is None:
            return sealed.open() if self._signed(sealed) else None
        session = self.sessions.find(sealed.session_id, sealed.raw_auth)
        if session is None and not self._signed(sealed, once=False):
            return None
        return replace(sealed.open(), session=session)

    def _signed(self, sealed: SealedEnvelope, once: bool = True) -> bool:
        if self.signatures is None:
            return True
        try:
            self.signatures.check(sealed.raw_auth, sealed.auth.reqnum, once=once)
        except BadSignature:
            return False
        return True
