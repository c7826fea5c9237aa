"""Requests that the serverless engine has signed (docs/protocol.md, "Signature").

Owns the order of the checks: shape, `auth_data`, signature or session, and only then the rest of the body. It
does not verify signatures itself: that is signatures.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial

from lib.access.authenticator import Admission
from lib.access.body import BodyReader
from lib.access.envelope import SealedEnvelope, header_admission
from lib.access.payload import small_object
from lib.access.signatures import BadSignature, Signatures
from lib.errors import Invalid, Unavailable
from lib.request.incoming import IncomingRequest
from lib.request.sessions import Session, Sessions

RETRY_WITHOUT_KEY_S = 5.0


@dataclass(frozen=True)
class SignedRequests:
    """The `Authenticator` for signed requests.

    `signatures` is None if signatures are not checked (UNSECURED); envelopes are always checked. `bodies`
    reads JSON. `refetch_key` fetches a rotated key, and is awaited once before a signature is refused.
    """

    bodies: BodyReader
    signatures: Signatures | None
    sessions: Sessions
    refetch_key: Callable[[], Awaitable[None]]

    @property
    def needs_key(self) -> bool:
        """Whether signatures are checked, which takes a public key."""
        return self.signatures is not None

    def use_key(self, pem: str) -> None:
        """Verify with the public key in `pem`. Raises `ValueError` if it holds no key."""
        if self.signatures is not None:
            self.signatures.use_key(pem)

    async def admit(self, request: IncomingRequest) -> Admission:
        """Authenticate `request` by its signature, or by the session that it belongs to.

        With header authentication the body stays unread. Raises `Unavailable` (503) without a public key,
        `Invalid` (422), `Unauthorized` (401), and what `BodyReader.read` raises. An invalid signature is
        verified once, and a second time only if the key was rotated meanwhile.
        """
        if self.signatures is not None and not self.signatures.has_key:
            raise Unavailable(
                "no public key", "the engine's public key has not been received yet", RETRY_WITHOUT_KEY_S
            )
        in_headers = header_admission(request)
        if in_headers is not None:
            return self._open_headers(in_headers) or await self._retry(
                partial(self._open_headers, in_headers)
            )
        arrived = self.bodies.arrived(request)
        if arrived is not None and (admission := self._open_envelope(arrived)) is not None:
            return admission
        async with self.bodies.read(request, arrived) as body:
            if arrived is None and (admission := self._open_envelope(body)) is not None:
                return admission
            return await self._retry(partial(self._open_envelope, body))

    async def session_in(self, request: IncomingRequest) -> Session | None:
        """The session named in a body `{"session_id", "session_auth"}`; None if it is unknown or has ended.

        Raises `Invalid` (422), `BodyTooLarge` (413), and `Unauthorized` (401) if `session_auth` is not that
        of the session.
        """
        fields = await small_object(self.bodies, request)
        problems = {
            name: f"must be {what}" if name in fields else "missing parameter"
            for name, kind, what in (("session_id", str, "a string"), ("session_auth", dict, "an object"))
            if not isinstance(fields.get(name), kind)
        }
        if problems:
            raise Invalid(problems)
        return self.sessions.find(fields["session_id"], fields["session_auth"])

    async def _retry(self, verify: Callable[[], Admission | None]) -> Admission:
        """Return the result of `verify`, called once the key was rotated. Raises `BadSignature` (401)."""
        key = self._public_key
        await self.refetch_key()
        admission = verify() if self._public_key != key else None
        if admission is None:
            raise BadSignature("the signature is invalid")
        return admission

    @property
    def _public_key(self) -> str:
        return "" if self.signatures is None else self.signatures.public_key

    def _open_headers(self, admission: Admission) -> Admission | None:
        """Verify `auth_data` of the headers; None if its signature is invalid."""
        return admission if self._is_signed(admission, once=True) else None

    def _open_envelope(self, body: bytes | bytearray) -> Admission | None:
        """Verify an envelope; None if its signature is invalid. Nothing that was parsed is kept then."""
        sealed = SealedEnvelope(body)
        if not sealed.parsed and self.sessions.remembers(sealed.raw_auth):
            sealed.parse()
        session_id = sealed.session_id
        session = None if session_id is None else self.sessions.find(session_id, sealed.raw_auth)
        if session is None and not self._is_signed(sealed, once=session_id is None):
            return None
        opened = sealed.open(session)
        if opened.session_id is None or session_id is not None:
            return opened
        # A large body, with the `auth_data` of no session that is known: the id was read only now.
        return replace(opened, session=self.sessions.find(opened.session_id, opened.raw_auth))

    def _is_signed(self, message: Admission | SealedEnvelope, once: bool) -> bool:
        """Whether the signature of `message` is valid. Raises `Unauthorized` for a replay."""
        try:
            if self.signatures is not None:
                self.signatures.check(message.raw_auth, message.auth.reqnum, once=once)
        except BadSignature:
            return False
        return True
