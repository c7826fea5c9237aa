"""A custom authenticator: an API key in a header; the body is the payload."""

from __future__ import annotations

import hmac

from aiohttp import web

from lib.backend import Admission
from lib.data_types import UNSIGNED_AUTH_DATA, AuthData
from lib.errors import Unauthorized


class ApiKey:
    """Accepts requests with the API key `key`."""

    needs_key = False

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def use_key(self, pem: str) -> None:
        """Do nothing: API keys need no public key."""

    async def admit(self, request: web.Request) -> Admission:
        self._check(request)
        auth = {**UNSIGNED_AUTH_DATA, "endpoint": "mine"}
        return Admission(AuthData.from_json_msg(auth), auth, None)

    async def session_in(self, request: web.Request) -> None:
        self._check(request)

    def _check(self, request: web.Request) -> None:
        if not hmac.compare_digest(request.headers.get("X-Api-Key", "").encode(), self._key):
            raise Unauthorized("the API key is missing or wrong")
