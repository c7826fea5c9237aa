"""The seam for authentication: a client's request in, who sent it and what of its body has been read out.

Owns the `Authenticator` protocol and what it gives. Signatures of the serverless engine are signed.py's,
a worker without authentication is open.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import web

from lib.data_types import AuthData
from lib.request.sessions import Session


@dataclass(frozen=True)
class Admission:
    """An authenticated request.

    `auth` is what an author finds in `request["auth_data"]`; `raw_auth` is the same as it was received.
    `payload` None: the body is the payload, and has not been read. `session_id` names the session that the
    request is inside; `session` is that session, or None where it has ended.
    """

    auth: AuthData
    raw_auth: dict[str, Any]
    payload: dict[str, Any] | None
    session_id: str | None = None
    session: Session | None = None


class Authenticator(Protocol):
    """Decides who may use the worker. Nothing that it refuses runs an author's code or is counted.

    A new one is a class with these members, given to `Backend(authenticator=…)`.
    """

    @property
    def needs_key(self) -> bool:
        """Whether requests can be authenticated only once `use_key` was called: until then none is ready."""
        ...

    def use_key(self, pem: str) -> None:
        """Verify with the engine's public key in `pem` from now on. Raises `ValueError` if it has none."""
        ...

    async def admit(self, request: web.Request) -> Admission:
        """Authenticate `request`.

        Raises a `WorkerError`: `Unauthorized` (401), `Invalid` (422), `Unavailable` (503), or one of an
        authenticator's own. It must bound what it reads of the body, and may leave the body unread.
        """
        ...

    async def session_in(self, request: web.Request) -> Session | None:
        """The session that the body of a session route names, or None where there is none, or no longer.

        Raises `Invalid` (422), `Unauthorized` (401) where the session is somebody else's.
        """
        ...
