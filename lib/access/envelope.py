"""Parsing of the envelope and of `auth_data` in a header.

See docs/protocol.md, "Envelope" and "Header authentication". Owns the shape of both. It does not verify
signatures (signatures.py) or interpret payloads (the handler does). Any problem raises `Invalid` (422), which
names each wrong field.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from typing import Any, cast

import msgspec

from lib.access.authenticator import Admission
from lib.data_types import AuthData
from lib.errors import Invalid
from lib.fields.json_fields import JsonDataException
from lib.request.incoming import DirectRequest, IncomingRequest
from lib.request.sessions import Session

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
_STRICT_DECODER = msgspec.json.Decoder()
_REFUSED_BY_MSGSPEC = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class SealedEnvelope:
    """An envelope not yet verified: only `auth_data` may be read.

    `auth_data` is read of a body of at most 1 MiB after all of it was parsed, of a larger one before.
    """

    __slots__ = ("_body", "_whole", "auth", "parsed", "raw_auth", "session_id")

    def __init__(self, body: bytes | bytearray) -> None:
        self._body = body
        self._whole: JsonObject | None = None
        self.parsed = len(body) <= PARSED_WHOLE_BYTES  # the whole envelope, and not only `auth_data`
        # The id of the session that the request names; None also while only `auth_data` is parsed.
        self.session_id: str | None = None
        if self.parsed:
            self._whole = JsonObject(body)
            content = self._whole.content
            _check_shape(content)
            self.raw_auth: dict[str, Any] = content["auth_data"]
            self.session_id = content.get("session_id")
        else:
            self.raw_auth = _leading_auth_data(body)
        self.auth = auth_data(self.raw_auth)

    def parse(self) -> JsonObject:
        """Return the whole envelope. Call it for a large body only after verifying `auth_data`."""
        if self._whole is None:
            whole = JsonObject(self._body)
            _check_shape(whole.content)
            if whole.content["auth_data"] != self.raw_auth:
                raise Invalid({"auth_data": "given twice"})
            self._whole, self.parsed = whole, True
            self.session_id = whole.content.get("session_id")
        return self._whole

    def open(self, session: Session | None = None) -> Admission:
        """Return the parts of the envelope. Call it only after verifying the signature.

        `session` is the one named by `session_id`, if it is already found.
        """
        whole = self._whole or self.parse()
        session_id, payload = whole.content.get("session_id"), whole.content["payload"]
        return Admission(self.auth, self.raw_auth, payload, session_id, session, whole.payload_text())


class JsonObject:
    """A JSON object in a request's body: `content`, and the text that it was parsed from.

    The text is parsed by msgspec, which is stricter than Python's json module, and then by json what msgspec
    refuses: clients of this protocol have always been free to send NaN or half of a surrogate pair. Both make
    the same of what both accept. Raises `Invalid` (422).
    """

    __slots__ = ("_body", "_is_strict", "content")

    def __init__(self, body: bytes | bytearray) -> None:
        self._body = body
        try:
            value = _STRICT_DECODER.decode(body)
            self._is_strict = True
        except _REFUSED_BY_MSGSPEC:
            value = _by_json(body)
            self._is_strict = False
        if not isinstance(value, dict):
            raise Invalid({"body": "must be a JSON object"})
        self.content = cast("dict[str, Any]", value)

    def text(self) -> bytes | bytearray | None:
        """The text, if every JSON parser reads `content` in it; None if it might not, or that is uncertain.

        Parsers differ in NaN, numbers that no double holds, half surrogate pairs and byte order marks, which
        msgspec refuses, and in which value they take of a key that is given twice. Numbers with more digits
        than a double are no reason for None: an integer keeps them all when json writes it, and a fraction is
        rounded to the same double by whoever uses doubles.
        """
        return self._body if self._is_strict and _has_each_key_once(self._body, self.content) else None

    def payload_text(self) -> memoryview | None:
        """The part of `text` that is the value of "payload"."""
        try:
            return None if self.text() is None else memoryview(_PAYLOAD_DECODER.decode(self._body).payload)
        except _REFUSED_BY_MSGSPEC:  # nested one level too deeply for this decoder
            return None


class _WithPayload(msgspec.Struct):
    payload: msgspec.Raw


_PAYLOAD_DECODER = msgspec.json.Decoder(_WithPayload)


def _has_each_key_once(body: bytes | bytearray, content: dict[str, Any]) -> bool:
    """Whether no object in `body`, parsed as `content`, has a key twice; False also where that is uncertain.

    A key that is given twice is twice in the text, but once in `content`, which then has fewer strings.
    """
    try:
        return _quotes_of_strings(body) == 2 * _strings_in((content,))
    except RecursionError:
        return False


def _strings_in(values: Iterable[Any]) -> int:
    """Count the strings among JSON values and in them, keys included."""
    count = 0
    for value in values:
        kind = cast("type[object]", type(value))
        if kind is str:
            count += 1
        elif kind is dict:
            count += len(value) + _strings_in(value.values())
        elif kind is list:
            count += _strings_in(value)
    return count


def _quotes_of_strings(text: bytes | bytearray) -> int | None:
    """Count the quotes around strings in the JSON `text`; None if they can't be told from those inside."""
    quotes = text.count(b'"')
    if b"\\" in text:
        if b'\\\\"' in text:  # an escaped backslash may come before the end of a string
            return None
        quotes -= text.count(b'\\"')
    return quotes


def header_admission(request: IncomingRequest) -> Admission | None:
    """Read `auth_data` from the headers; None if no header carries it. The payload is not read.

    The headers are `X-Vast-Auth: <base64url of auth_data>` and `Authorization: Bearer vast.<the same>`. Other
    bearer tokens are ignored (docs/protocol.md, "Header authentication"). Raises `Invalid` (422).
    """
    if isinstance(request, DirectRequest):
        own, authorization = (
            request.header_values.get("x-vast-auth"),
            request.header_values.get("authorization", ""),
        )
    else:
        own, authorization = request.headers.get("X-Vast-Auth"), request.headers.get("Authorization", "")
    if own is None and BEARER_PREFIX not in authorization:
        return None
    tokens = set[str]() if own is None else {_unpadded(own)}
    scheme, _, bearer = authorization.strip().partition(" ")
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
    return JsonObject(body).content


def _by_json(body: bytes | bytearray) -> Any:
    """Parse `body` by the json module, whose words clients get for what is wrong. Raises `Invalid` (422)."""
    try:
        return json.loads(body.decode("utf-8-sig"))
    except RecursionError as e:
        raise Invalid({"body": "nested too deeply"}) from e
    except ValueError as e:  # not UTF-8, not JSON, or a number with thousands of digits
        raise Invalid({"body": f"not JSON: {e}" if body else EMPTY}) from e


def _check_shape(whole: dict[str, Any]) -> None:
    has_parts = isinstance(whole.get("auth_data"), dict) and isinstance(whole.get("payload"), dict)
    session_id = whole.get("session_id")
    has_session_id = session_id is None or isinstance(session_id, str)
    if has_parts and has_session_id:
        return
    problems = {
        name: "must be an object" if name in whole else "field missing"
        for name in ("auth_data", "payload")
        if not isinstance(whole.get(name), dict)
    }
    if not has_session_id:
        problems["session_id"] = "must be a string or null"
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
