"""The interface of authentication: it turns a client's request into an `Admission`.

Owns the `Authenticator` protocol and its result. It does not implement it: signed.py checks the signatures of
the serverless engine, open.py serves workers without authentication.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from aiohttp import web

from lib.data_types import AuthData
from lib.request.sessions import Session


@dataclass
class Admission:
    """An authenticated request.

    `auth` is the value of `request["auth_data"]`; `raw_auth` is the same JSON object as it was received.
    `payload` is None if the body is the payload and has not been read. `session_id` is the id of the session
    that the request belongs to, or None; `session` is that session, or None if it has ended.
    `payload_text` is the JSON text of `payload` as it was received, for a consumer that forwards the payload
    unchanged. It is None where another JSON parser could refuse it, or read a number or a string differently.
    A key may be in it twice. It may keep the whole body in memory.
    `failure` is why the rest of the body was not read, or None: the request is then counted, and fails by it.
    """

    auth: AuthData
    raw_auth: dict[str, Any]
    payload: dict[str, Any] | None
    session_id: str | None = None
    session: Session | None = None
    payload_text: memoryview | bytes | bytearray | None = field(default=None, compare=False, repr=False)
    failure: BaseException | None = None


class Authenticator(Protocol):
    """Decides who may use the worker. A refused request runs no author code and is not counted.

    To add one, write a class with these members and pass it to `Backend(authenticator=…)`.
    """

    @property
    def needs_key(self) -> bool:
        """Whether a public key is required: the worker is then not ready before `use_key` was called."""
        ...

    def use_key(self, pem: str) -> None:
        """Verify with the public key in `pem` from now on. Raises `ValueError` if `pem` holds no key."""
        ...

    async def admit(self, request: web.Request) -> Admission:
        """Authenticate `request`.

        Raises `Unauthorized` (401), `Invalid` (422), `Unavailable` (503) or another `WorkerError`. An
        implementation must limit how much of the body it reads, and may leave the body unread.
        """
        ...

    async def session_in(self, request: web.Request) -> Session | None:
        """The session named in the body of a session route; None if it does not exist any more, or never did.

        Raises `Invalid` (422), or `Unauthorized` (401) if the session belongs to another client.
        """
        ...
