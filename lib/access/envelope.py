"""The envelope `{"auth_data", "payload"}`, or `auth_data` in a header: its parts out (protocol.md §2).

Owns the shape of both. Whether the signature holds is signatures.py's; what the payload means is the
handler's. Everything wrong raises `Invalid` (422) naming each wrong field.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, cast

from lib.access.authenticator import Admission
from lib.data_types import AuthData
from lib.errors import Invalid
from lib.fields.json_fields import JsonDataException

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


class SealedEnvelope:
    """An envelope not yet verified: only `auth_data` may be read."""

    def __init__(self, body: bytes | bytearray) -> None:
        self._body = body
        self._whole: dict[str, Any] | None = None
        if len(body) > PARSED_WHOLE_BYTES:
            self.raw_auth = _leading_auth_data(body)
        else:
            self._whole = object_in(body)
            _check_shape(self._whole)
            self.raw_auth: dict[str, Any] = self._whole["auth_data"]
        self.auth = auth_data(self.raw_auth)

    @property
    def parsed(self) -> bool:
        """Whether the whole envelope is parsed; bodies up to 1 MiB are parsed immediately."""
        return self._whole is not None

    @property
    def session_id(self) -> str | None:
        """The session that the request names; None also while only `auth_data` is parsed."""
        return None if self._whole is None else self._whole.get("session_id")

    def parse(self) -> dict[str, Any]:
        """The whole envelope as JSON. Of a large body, call it only once its `auth_data` is verified."""
        if self._whole is None:
            whole = object_in(self._body)
            _check_shape(whole)
            if whole["auth_data"] != self.raw_auth:
                raise Invalid({"auth_data": "given twice"})
            self._whole = whole
        return self._whole

    def open(self) -> Admission:
        """The whole envelope. Call it only once the signature holds."""
        whole = self.parse()
        return Admission(self.auth, self.raw_auth, whole["payload"], whole.get("session_id"))


def header_admission(headers: Mapping[str, str]) -> Admission | None:
    """The admission by header authentication, its payload unread; None without such a header.

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
    return Admission(auth_data(raw_auth), raw_auth, None)


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


def auth_data(raw: dict[str, Any]) -> AuthData:
    """The `AuthData` in `raw`. Raises `Invalid` (422) naming each wrong field."""
    try:
        return AuthData.from_json_msg(raw)
    except JsonDataException as e:
        raise Invalid({"auth_data": e.message}) from e
