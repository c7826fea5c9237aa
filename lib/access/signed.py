"""Requests that the serverless engine has signed (docs/protocol.md, "Signature").

Owns the order of the checks: shape, `auth_data`, signature or session, and only then the rest of the body. It
does not verify signatures itself: that is signatures.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from lib.access.arriving import Arrivals
from lib.access.authenticator import Admission
from lib.access.body import let_read_again
from lib.access.envelope import PARSED_WHOLE_BYTES, SealedEnvelope, header_admission
from lib.access.payload import small_object
from lib.access.refusals import Refusals
from lib.access.signatures import BadSignature, Signatures
from lib.errors import ClientGone, Invalid, Unavailable, WorkerError, bare
from lib.request.exchange import connection_of, note_verified
from lib.request.incoming import IncomingRequest
from lib.request.sessions import Session, Sessions

T = TypeVar("T")

RETRY_WITHOUT_KEY_S = 5.0


@dataclass(frozen=True)
class SignedRequests:
    """The `Authenticator` for signed requests.

    `signatures` is None if signatures are not checked (UNSECURED); envelopes are always checked. `arrivals`
    receives them. `refetch_key` fetches a rotated key, and is awaited once before a signature is refused that
    may be one of another key. `refusals` counts those.
    """

    arrivals: Arrivals
    signatures: Signatures | None
    sessions: Sessions
    refetch_key: Callable[[], Awaitable[None]]
    refusals: Refusals

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
        connection = connection_of(request)
        if connection is None or not connection.is_known:
            await self.arrivals.turn_of(request)
        in_headers = header_admission(request)
        if in_headers is not None:
            admission = self._open_headers(in_headers) or await self._retry(
                partial(self._open_headers, in_headers)
            )
        else:
            arrived = self.arrivals.bodies.arrived(request)
            is_small = arrived is not None and len(arrived) <= PARSED_WHOLE_BYTES
            if arrived is not None and is_small:
                admission = self._open_envelope(arrived)
                if admission is None:
                    admission = await self._retry(partial(self._open_envelope, arrived))
                let_read_again(request, arrived)
            else:
                admission = await self._receive(request, arrived)
        return admission

    async def session_in(self, request: IncomingRequest) -> Session | None:
        """The session named in a body `{"session_id", "session_auth"}`; None if it is unknown or has ended.

        Raises `Invalid` (422), `BodyTooLarge` (413), and `Unauthorized` (401) if `session_auth` is not that
        of the session.
        """
        fields = await small_object(self.arrivals.bodies, request)
        problems = {
            name: f"must be {what}" if name in fields else "missing parameter"
            for name, kind, what in (("session_id", str, "a string"), ("session_auth", dict, "an object"))
            if not isinstance(fields.get(name), kind)
        }
        if problems:
            raise Invalid(problems)
        return self.sessions.find(fields["session_id"], fields["session_auth"])

    async def _receive(self, request: IncomingRequest, arrived: bytes | None) -> Admission:
        """Authenticate an envelope that is large, or that has not arrived."""
        async with self.arrivals.of(request, arrived) as arriving:
            auth_text = await arriving.find_auth_data()
            if auth_text is None:
                whole = await arriving.whole()
                verify = partial(self._open_envelope, whole)
                admission = verify() or await self._retry(verify)
                let_read_again(request, whole)
                return admission
            sealed = SealedEnvelope(auth_text, is_whole=False)
            is_session = self.sessions.remembers(sealed.raw_auth)
            if not is_session and not self._is_signed(sealed, once=True):
                await self._retry(lambda: self._is_signed(sealed, once=True) or None)
            note_verified(request)
            try:
                await arriving.note_verified()
                sealed.parse(await arriving.whole())
            except (WorkerError, ClientGone, asyncio.CancelledError) as e:
                if is_session:  # a request inside a session is not counted
                    raise
                # It is raised again as soon as the request's entry is open.
                return Admission(sealed.auth, sealed.raw_auth, None, failure=bare(e))
        session_id = sealed.session_id
        session = None if session_id is None else self.sessions.find(session_id, sealed.raw_auth)
        once = session_id is None
        if is_session and session is None and not self._is_signed(sealed, once=once):
            await self._retry(lambda: self._is_signed(sealed, once=once) or None)
        let_read_again(request, sealed.content)
        return sealed.open(session)

    async def _retry(self, verify: Callable[[], T | None]) -> T:
        """Return the result of `verify`, called once the key was rotated. Raises `BadSignature` (401)."""
        key = self._public_key
        await self.refetch_key()
        result = verify() if self._public_key != key else None
        if result is None:
            self.refusals.note()
            raise BadSignature("the signature is invalid")
        return result

    @property
    def _public_key(self) -> str:
        return "" if self.signatures is None else self.signatures.public_key

    def _open_headers(self, admission: Admission) -> Admission | None:
        """Verify `auth_data` of the headers; None if its signature is invalid."""
        return admission if self._is_signed(admission, once=True) else None

    def _open_envelope(self, body: bytes | bytearray) -> Admission | None:
        """Verify a small envelope; None if its signature is invalid. Nothing that was parsed is kept then."""
        sealed = SealedEnvelope(body)
        session_id = sealed.session_id
        session = None if session_id is None else self.sessions.find(session_id, sealed.raw_auth)
        if session is None and not self._is_signed(sealed, once=session_id is None):
            return None
        return sealed.open(session)

    def _is_signed(self, message: Admission | SealedEnvelope, once: bool) -> bool:
        """Whether the signature of `message` is valid.

        Raises `Unauthorized` for a replay, and `BadSignature` for what no key makes.
        """
        try:
            if self.signatures is not None:
                self.signatures.check(message.raw_auth, message.auth.reqnum, once=once)
        except BadSignature as e:
            if not e.is_well_formed:
                raise
            return False
        return True
