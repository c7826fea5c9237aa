"""Requests without authentication, for a worker that has no serverless engine (`ENGINE=none`).

Owns how a request without a signature is read (docs/kubernetes.md). It does not restrict who can reach the
worker: that is up to the network. Whoever has sent a whole request is a client, and no stranger any more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

from lib.access.arriving import Arrivals
from lib.access.authenticator import Admission
from lib.access.body import let_read_again
from lib.access.envelope import JsonObject, auth_data, check_bounds
from lib.access.payload import is_json, small_object
from lib.data_types import UNSIGNED_AUTH_DATA, AuthData
from lib.errors import Invalid, NoMemory, bare
from lib.request.incoming import IncomingRequest
from lib.request.sessions import Session, Sessions


@dataclass(frozen=True)
class OpenAccess:
    """The `Authenticator` that accepts every request.

    The body is the payload. A JSON object is read as an envelope if its "payload" is an object and it has an
    object as "auth_data", or no "auth_data" and a "session_id". A session is found by its id alone.
    """

    arrivals: Arrivals
    sessions: Sessions
    needs_key = False

    def use_key(self, pem: str) -> None:
        """Do nothing: there are no signatures."""

    async def admit(self, request: IncomingRequest) -> Admission:
        """Read a JSON body, as a payload or an envelope; leave any other body unread.

        Raises `Invalid` (422) for JSON that is not an object or an envelope with wrong fields, and what
        `ArrivingEnvelope.unverified` raises.
        """
        if not request.body_exists or not is_json(request.content_type):
            return Admission(_UNSIGNED, dict(UNSIGNED_AUTH_DATA), None)
        try:
            body = await self._receive(request)
            self.arrivals.bodies.verified.keep(request, len(body), await check_bounds(body))
        except NoMemory as e:
            return Admission(_UNSIGNED, dict(UNSIGNED_AUTH_DATA), None, failure=bare(e))
        whole = JsonObject(body)
        content = whole.content
        let_read_again(request, body, content)
        if not _is_envelope(content):
            return Admission(_UNSIGNED, dict(UNSIGNED_AUTH_DATA), content, payload_text=whole.text())
        raw_auth = content.get("auth_data")
        if raw_auth is None:
            raw_auth = dict(UNSIGNED_AUTH_DATA)
        session_id = content.get("session_id")
        if not isinstance(session_id, (str, type(None))):
            raise Invalid({"session_id": "must be a string or null"})
        session = None if session_id is None else self.sessions.find_by_id(session_id)
        auth = replace(
            auth_data(raw_auth, whole.is_strict), request_idx=None
        )  # completions have no recipient
        return Admission(auth, raw_auth, content["payload"], session_id, session, whole.payload_text())

    async def session_in(self, request: IncomingRequest) -> Session | None:
        """The session named in a body `{"session_id": …}`; None if it is unknown or has ended.

        Raises `Invalid` (422), `BodyTooLarge` (413), and what `BodyReader.read` raises.
        """
        session_id = (await small_object(self.arrivals.bodies, request)).get("session_id")
        if not isinstance(session_id, str):
            raise Invalid({"session_id": "missing parameter" if session_id is None else "must be a string"})
        return self.sessions.find_by_id(session_id)

    async def _receive(self, request: IncomingRequest) -> bytes | bytearray:
        arrived = self.arrivals.bodies.arrived(request)
        if arrived is not None:
            return arrived
        async with self.arrivals.of(request, None) as arriving:
            return await arriving.unverified()


_UNSIGNED = AuthData.from_json_msg(UNSIGNED_AUTH_DATA)


def _is_envelope(content: dict[str, Any]) -> bool:
    """Whether `content` is an envelope and not a payload itself (see `OpenAccess`)."""
    payload, auth = content.get("payload"), cast(Any, content.get("auth_data"))
    has_auth = isinstance(auth, dict)
    return isinstance(payload, dict) and (has_auth or (auth is None and "session_id" in content))
