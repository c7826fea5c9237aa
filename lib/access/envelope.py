"""Parsing of the envelope and of `auth_data` in a header.

See docs/protocol.md, "Envelope" and "Header authentication". Owns the shape of both. It does not verify
signatures (signatures.py) or interpret payloads (the handler does). Any problem raises `Invalid` (422), which
names each wrong field.
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

# In larger bodies `auth_data` must come first, and is verified before the rest is parsed: deeply nested empty
# containers take a hundred times their size once parsed.
PARSED_WHOLE_BYTES = 1024 * 1024
# `auth_data` must lie within this many first bytes of a large body.
AUTH_DATA_BYTES = 64 * 1024

# The prefix of a bearer token that carries `auth_data`.
BEARER_PREFIX = "vast."
EMPTY = "empty: send JSON, or authenticate by a header"
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
        """The id of the session that the request names; None also while only `auth_data` is parsed."""
        return None if self._whole is None else self._whole.get("session_id")

    def parse(self) -> dict[str, Any]:
        """Return the whole envelope as JSON. Call it for a large body only after verifying `auth_data`."""
        if self._whole is None:
            whole = object_in(self._body)
            _check_shape(whole)
            if whole["auth_data"] != self.raw_auth:
                raise Invalid({"auth_data": "given twice"})
            self._whole = whole
        return self._whole

    def open(self) -> Admission:
        """Return the parts of the envelope. Call it only after verifying the signature."""
        whole = self.parse()
        return Admission(self.auth, self.raw_auth, whole["payload"], whole.get("session_id"))


def header_admission(headers: Mapping[str, str]) -> Admission | None:
    """Read `auth_data` from the headers; None if no header carries it. The payload is not read.

    The headers are `X-Vast-Auth: <base64url of auth_data>` and `Authorization: Bearer vast.<the same>`. Other
    bearer tokens are ignored (docs/protocol.md, "Header authentication"). Raises `Invalid` (422).
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
    except ValueError as e:  # wrong characters or length
        raise Invalid({"auth_data": f"not base64url of JSON: {e}"}) from e
    try:
        return object_in(text)
    except Invalid as e:
        raise Invalid({"auth_data": e.fields["body"]}) from e


def object_in(body: bytes | bytearray) -> dict[str, Any]:
    """Parse `body` as a JSON object. Raises `Invalid` (422)."""
    try:
        value = json.loads(body.decode("utf-8-sig"))
    except RecursionError as e:
        raise Invalid({"body": "nested too deeply"}) from e
    except ValueError as e:  # not UTF-8, not JSON, or a number with thousands of digits
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
                f"{AUTH_DATA_BYTES} bytes, if the body is larger than {PARSED_WHOLE_BYTES} bytes"
            }
        )
    return cast("dict[str, Any]", value)


def auth_data(raw: dict[str, Any]) -> AuthData:
    """Read `raw` as `AuthData`. Raises `Invalid` (422), which names each wrong field."""
    try:
        return AuthData.from_json_msg(raw)
    except JsonDataException as e:
        raise Invalid({"auth_data": e.message}) from e
