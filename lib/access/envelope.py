"""The envelope `{"auth_data", "payload"}`, or `auth_data` in a header: its parts out (protocol.md §2).

Owns the shape of both. Whether the signature holds is signatures.py's; what the payload means is the
handler's. Everything wrong raises `Invalid` (422) naming each wrong field.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from lib.data_types import AuthData
from lib.errors import Invalid
from lib.fields.json_fields import JsonDataException
from lib.request.sessions import Session

# Past this, `auth_data` comes first and is verified before the rest is parsed: nested nothing costs a
# hundred times its size once parsed.
PARSED_WHOLE_BYTES = 1024 * 1024
# As much of a large body is parsed to find `auth_data`.
AUTH_DATA_BYTES = 64 * 1024

# What a bearer token begins with that is header authentication.
BEARER_PREFIX = "vast."
EMPTY = "empty: JSON is expected, or authentication by a header"
_FIRST_KEY = re.compile(r'\s*\{\s*"auth_data"\s*:\s*')
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Envelope:
    """A request's parts: `raw_auth` as received, `auth` read from it, the payload as it came.

    `payload` None: authenticated by a header, the body is the payload and has not been read.
    `session_id` names the session that it says to be in; `session` is that session, or None when it is gone.
    """

    raw_auth: dict[str, Any]
    auth: AuthData
    payload: dict[str, Any] | None
    session_id: str | None = None
    session: Session | None = None

    def as_request(self, payload: dict[str, Any]) -> dict[str, Any]:
        """A whole envelope around `payload`, as `EndpointHandler.get_data_from_request` takes it."""
        whole: dict[str, Any] = {"auth_data": self.raw_auth, "payload": payload}
        return whole if self.session_id is None else {**whole, "session_id": self.session_id}


class SealedEnvelope:
    """An envelope of which only `auth_data` may be believed to be there, until its signature holds."""

    def __init__(self, body: bytes | bytearray) -> None:
        self._body = body
        self._whole: dict[str, Any] | None = None
        if len(body) > PARSED_WHOLE_BYTES:
            self.raw_auth = _leading_auth_data(body)
        else:
            self._whole = object_in(body)
            _check_shape(self._whole)
            self.raw_auth: dict[str, Any] = self._whole["auth_data"]
        self.auth = _auth_data(self.raw_auth)

    @property
    def parsed(self) -> bool:
        """Whether all of it is: a small one is at once."""
        return self._whole is not None

    @property
    def session_id(self) -> str | None:
        """The session that it says to be in; None as well while only `auth_data` is parsed."""
        return None if self._whole is None else self._whole.get("session_id")

    def parse(self) -> dict[str, Any]:
        """All of it as JSON; of a large one only once its `auth_data` is known to be good."""
        if self._whole is None:
            whole = object_in(self._body)
            _check_shape(whole)
            if whole["auth_data"] != self.raw_auth:
                raise Invalid({"auth_data": "given twice"})
            self._whole = whole
        return self._whole

    def open(self) -> Envelope:
        """The whole envelope; only once the signature holds."""
        whole = self.parse()
        return Envelope(self.raw_auth, self.auth, whole["payload"], whole.get("session_id"))


def envelope_in(headers: Mapping[str, str]) -> Envelope | None:
    """What header authentication gives; None: there is none, and the body has an envelope.

    `X-Vast-Auth: <base64url of auth_data>`, or the same as a bearer token after "vast.". Any other bearer
    token means nothing. Raises `Invalid` (422).
    """
    scheme, _, bearer = headers.get("Authorization", "").strip().partition(" ")
    tokens = {_unpadded(headers["X-Vast-Auth"])} if "X-Vast-Auth" in headers else set[str]()
    if scheme.lower() == "bearer" and bearer.strip().startswith(BEARER_PREFIX):
        tokens.add(_unpadded(bearer.strip()[len(BEARER_PREFIX) :]))
    if not tokens:
        return None
    if len(tokens) > 1:
        raise Invalid({"auth_data": "Authorization and X-Vast-Auth differ"})
    raw_auth = _decoded(tokens.pop())
    return Envelope(raw_auth, _auth_data(raw_auth), None)


def _unpadded(token: str) -> str:
    return token.strip().rstrip("=")


def _decoded(token: str) -> dict[str, Any]:
    try:
        text = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except ValueError as e:  # not of its alphabet, not ASCII, or of a length that can't be
        raise Invalid({"auth_data": f"not base64url of JSON: {e}"}) from e
    try:
        return object_in(text)
    except Invalid as e:
        raise Invalid({"auth_data": e.fields["body"]}) from e


def object_in(body: bytes | bytearray) -> dict[str, Any]:
    """The JSON object in `body`. Raises `Invalid` (422)."""
    try:
        value = json.loads(body.decode("utf-8-sig"))
    except RecursionError as e:
        raise Invalid({"body": "nested too deeply"}) from e
    except ValueError as e:  # not UTF-8, not JSON, or a number of thousands of digits
        raise Invalid({"body": f"not JSON: {e}" if body else EMPTY}) from e
    if not isinstance(value, dict):
        raise Invalid({"body": "must be a JSON object"})
    return cast("dict[str, Any]", value)


def _check_shape(whole: dict[str, Any]) -> None:
    problems = {
        name: "must be an object" if name in whole else "field missing"
        for name in ("auth_data", "payload")
        if not isinstance(whole.get(name), dict)
    }
    if not isinstance(whole.get("session_id"), (str, type(None))):
        problems["session_id"] = "must be a string or null"
    if problems:
        raise Invalid(problems)


def _leading_auth_data(body: bytes | bytearray) -> dict[str, Any]:
    text = body[:AUTH_DATA_BYTES].decode("utf-8-sig", errors="replace")
    start = _FIRST_KEY.match(text)
    try:
        value: Any = _DECODER.raw_decode(text, start.end())[0] if start else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Invalid(
            {
                "auth_data": "must be an object and the first key, within the first "
                f"{AUTH_DATA_BYTES} bytes, where the body is larger than {PARSED_WHOLE_BYTES} bytes"
            }
        )
    return cast("dict[str, Any]", value)


def _auth_data(raw: dict[str, Any]) -> AuthData:
    try:
        return AuthData.from_json_msg(raw)
    except JsonDataException as e:
        raise Invalid({"auth_data": e.message}) from e
