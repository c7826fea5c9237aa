"""Requests without authentication: for a worker on a cluster of one's own (`ENGINE=none`).

Owns how a request without a signature is read (docs/kubernetes.md). Who reaches the worker is the network's
to decide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

from aiohttp import web

from lib.access.authenticator import Admission
from lib.access.body import BodyReader
from lib.access.envelope import auth_data, object_in
from lib.access.payload import is_json
from lib.data_types import UNSIGNED_AUTH_DATA, AuthData
from lib.errors import Invalid
from lib.request.sessions import Session, Sessions


@dataclass(frozen=True)
class OpenAccess:
    """The `Authenticator` that lets everyone in.

    The body is the payload. JSON with an object under "payload" beside "auth_data" or "session_id" is an
    envelope, as signed requests have it. Sessions go by their id alone.
    """

    bodies: BodyReader
    sessions: Sessions
    needs_key = False

    def use_key(self, pem: str) -> None:
        """Do nothing: there are no signatures."""

    async def admit(self, request: web.Request) -> Admission:
        """Read the envelope, where there is one; any body but JSON stays unread.

        Raises `Invalid` (422) for a body that is not a JSON object, or an envelope with wrong fields, and
        what `BodyReader.read` raises.
        """
        if not request.body_exists or not is_json(request.content_type):
            return Admission(_UNSIGNED, dict(UNSIGNED_AUTH_DATA), None)
        async with self.bodies.read(request) as body:
            content = object_in(body)
        if not _is_envelope(content):
            return Admission(_UNSIGNED, dict(UNSIGNED_AUTH_DATA), content)
        raw_auth = content.get("auth_data", dict(UNSIGNED_AUTH_DATA))
        session_id = content.get("session_id")
        if not isinstance(session_id, (str, type(None))):
            raise Invalid({"session_id": "must be a string or null"})
        session = None if session_id is None else self.sessions.find_by_id(session_id)
        auth = replace(auth_data(raw_auth), request_idx=None)  # nobody is told of it
        return Admission(auth, raw_auth, content["payload"], session_id, session)

    async def session_in(self, request: web.Request) -> Session | None:
        """The session in a body `{"session_id": …}`, or None. Raises `Invalid` (422)."""
        async with self.bodies.read(request) as body:
            session_id = object_in(body).get("session_id")
        if not isinstance(session_id, str):
            raise Invalid({"session_id": "missing parameter" if session_id is None else "must be a string"})
        return self.sessions.find_by_id(session_id)


_UNSIGNED = AuthData.from_json_msg(UNSIGNED_AUTH_DATA)


def _is_envelope(content: dict[str, Any]) -> bool:
    """Whether `content` is an envelope around a payload, and not a payload itself."""
    payload, auth = content.get("payload"), cast(Any, content.get("auth_data"))
    is_signed = isinstance(auth, dict)
    return isinstance(payload, dict) and (is_signed or (auth is None and "session_id" in content))
