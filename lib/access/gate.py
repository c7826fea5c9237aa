"""The gate: a client's request in, an authenticated envelope out, and then its body (protocol.md §2).

Owns the order of the checks: shape, `auth_data`, signature or session, and only then the rest of the body.
Nothing that is refused here runs an author's code or changes a number that is reported.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from aiohttp import web

from lib.access.body import BodyReader
from lib.access.envelope import PARSED_WHOLE_BYTES, Envelope, SealedEnvelope, envelope_in, object_in
from lib.access.signatures import BadSignature, Signatures
from lib.access.spool import spooled
from lib.errors import BodyTooLarge, Invalid, MediaTypeRefused, Unavailable
from lib.fields.json_fields import Parameters
from lib.request.sessions import Session, Sessions
from lib.uploads import Upload

RETRY_WITHOUT_KEY_S = 5.0
_Signed = TypeVar("_Signed", Envelope, SealedEnvelope)


@dataclass(frozen=True)
class Gate:
    """Lets requests in. `signatures` None: unsecured, envelopes are still checked.

    `bodies` reads JSON, `uploads` whatever else is sent with header authentication. `refetch_key` looks
    for a rotated key and is awaited once before a signature is refused for good.
    """

    bodies: BodyReader
    uploads: BodyReader
    signatures: Signatures | None
    sessions: Sessions
    refetch_key: Callable[[], Awaitable[None]]

    async def admit(self, request: web.Request) -> Envelope:
        """The request's envelope, authenticated by its signature or by the session it is in.

        Where a header authenticates, the body is not read yet: `payload` does that. Raises `Unavailable`
        (503) without a public key, `Invalid` (422), `Unauthorized` (401) and what `BodyReader.read` raises.
        A bad signature costs one parse and one verification, unless the key was rotated.
        """
        if self.signatures is not None and not self.signatures.has_key:
            raise Unavailable("no public key", "the engine's public key is not here yet", RETRY_WITHOUT_KEY_S)
        in_headers = envelope_in(request.headers)
        if in_headers is not None:
            return await self._let_in(partial(self._signed, in_headers))
        async with self.bodies.read(request) as body:
            return await self._let_in(partial(self._verified, body))

    async def json_payload(self, request: web.Request, envelope: Envelope) -> dict[str, Any]:
        """The payload of an admitted request: JSON, or the parameters of one without a body.

        Raises what `BodyReader.read` raises, `Invalid` (422), and `MediaTypeRefused` (415) for what is not
        JSON.
        """
        if envelope.payload is not None:
            return envelope.payload
        if not request.body_exists:
            return _parameters(request)
        if is_upload(request, envelope):
            raise MediaTypeRefused(f"this route takes application/json, not {request.content_type}")
        async with self.bodies.read(request) as body:
            return object_in(body)

    @asynccontextmanager
    async def payload(
        self, request: web.Request, envelope: Envelope, takes_uploads: bool
    ) -> AsyncGenerator[dict[str, Any] | Upload, None]:
        """The payload of an admitted request: as `json_payload` gives it, or an upload.

        An upload is on disk for as long as the block. Raises what `spooled` raises besides.
        """
        if not (takes_uploads and is_upload(request, envelope)):
            yield await self.json_payload(request, envelope)
            return
        async with spooled(self.uploads.parts(request)) as (path, size_bytes):
            query = {name: request.query.getall(name) for name in request.query}
            kind = request.headers.get("Content-Type") or request.content_type
            yield Upload(path, kind, size_bytes, query)

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

    async def _let_in(self, verify: Callable[[], Envelope | None]) -> Envelope:
        """What `verify` gives, at once or with a rotated key. Raises `BadSignature` (401)."""
        key = self._public_key
        envelope = verify()
        if envelope is None:
            await self.refetch_key()
            if self._public_key != key:
                envelope = verify()
        if envelope is None:
            raise BadSignature("the signature does not hold")
        return envelope

    @property
    def _public_key(self) -> str:
        return "" if self.signatures is None else self.signatures.public_key

    def _verified(self, body: bytearray) -> Envelope | None:
        """The envelope, or None when its signature does not hold: then nothing that was parsed is kept."""
        sealed = SealedEnvelope(body)
        if not sealed.parsed and self.sessions.remembers(sealed.raw_auth):
            sealed.parse()
        if sealed.session_id is None:
            if not self._signed(sealed):
                return None
            envelope = sealed.open()
        else:
            session = self.sessions.find(sealed.session_id, sealed.raw_auth)
            if session is None and not self._signed(sealed, once=False):
                return None
            envelope = sealed.open()
        if envelope.session_id is None:
            return envelope
        return replace(envelope, session=self.sessions.find(envelope.session_id, envelope.raw_auth))

    def _signed(self, what: _Signed, once: bool = True) -> _Signed | None:
        """`what`, if its signature holds."""
        try:
            if self.signatures is not None:
                self.signatures.check(what.raw_auth, what.auth.reqnum, once=once)
        except BadSignature:
            return None
        return what


def is_upload(request: web.Request, envelope: Envelope) -> bool:
    """Whether the body is the payload, and not JSON."""
    kind = request.content_type
    is_json = kind == "application/json" or kind.endswith("+json")
    return envelope.payload is None and request.body_exists and not is_json


def _parameters(request: web.Request) -> Parameters:
    """The parameters of the query and of the path; a name that comes more than once has a list."""
    query = {name: request.query.getall(name) for name in request.query}
    texts = {name: values if len(values) > 1 else values[0] for name, values in query.items()}
    return Parameters({**texts, **request.match_info})
