"""Parsing of the envelope and of `auth_data` in a header.

See docs/protocol.md, "Envelope" and "Header authentication". Owns the shape of both. It does not verify
signatures (signatures.py) or interpret payloads (the handler does). Any problem raises `Invalid` (422), which
names each wrong field.
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Annotated, Any, cast

import msgspec

from lib.access.authenticator import Admission
from lib.access.scanner import MAX_VALUES, SLICE_BYTES, JsonMeter
from lib.data_types import AuthData
from lib.errors import Invalid
from lib.fields.json_fields import JsonDataException
from lib.request.incoming import DirectRequest, IncomingRequest
from lib.request.sessions import Session
from lib.request.verbatim import Text

# Larger bodies are scanned, and their `auth_data` is verified, before the rest is parsed: deeply nested empty
# containers take a hundred times their size once parsed.
PARSED_WHOLE_BYTES = 64 * 1024
# A payload's text up to this is copied.
COPIED_BYTES = 64 * 1024

# The prefix of a bearer token that carries `auth_data`.
BEARER_PREFIX = "vast."
EMPTY = "empty: send JSON, or authenticate by a header"
_STRICT_DECODER = msgspec.json.Decoder()
_REFUSED_BY_MSGSPEC = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class SealedEnvelope:
    """An envelope not yet verified: only `auth_data` may be read.

    `text` is a small envelope, or the text of the `auth_data` of a large one; `parse` reads the rest of it,
    and sets `content` to the whole envelope.
    """

    __slots__ = ("_payload", "_payload_text", "auth", "content", "raw_auth", "session_id")

    raw_auth: dict[str, Any]
    content: dict[str, Any]

    def __init__(self, text: bytes | bytearray, is_whole: bool = True) -> None:
        self._payload: dict[str, Any] = {}
        self._payload_text: Text | None = None
        # The id of the session that the request names; None also while only `auth_data` is parsed.
        self.session_id: str | None = None
        if is_whole:
            self.raw_auth, self._payload, self.session_id, self._payload_text, is_strict, _ = _parts(text)
        else:
            auth = JsonObject(text)
            self.raw_auth, is_strict = auth.content, auth.is_strict
        self.auth = auth_data(self.raw_auth, is_strict)

    def parse(self, body: bytes | bytearray) -> None:
        """Parse the whole envelope in `body`. Call it only after verifying `auth_data`."""
        raw_auth, self._payload, self.session_id, self._payload_text, _, content = _parts(body)
        if raw_auth != self.raw_auth:
            raise Invalid({"auth_data": "given twice"})
        if content is None:
            content = {"auth_data": raw_auth, "payload": self._payload}
            content |= {} if self.session_id is None else {"session_id": self.session_id}
        self.content = content

    def open(self, session: Session | None = None) -> Admission:
        """Return the parts of the envelope. Call it only after verifying the signature.

        `session` is the one named by `session_id`, if it is already found.
        """
        return Admission(
            self.auth, self.raw_auth, self._payload, self.session_id, session, self._payload_text
        )


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):  # the text of an unknown field is not checked
    auth_data: dict[str, Any]
    payload: msgspec.Raw
    session_id: str | None = None


_ENVELOPE_DECODER = msgspec.json.Decoder(_Envelope)
_OBJECT_DECODER = msgspec.json.Decoder(dict[str, Any])


def _parts(
    body: bytes | bytearray,
) -> tuple[dict[str, Any], dict[str, Any], str | None, Text | None, bool, dict[str, Any] | None]:
    """The `auth_data`, the payload, the id of the session and the payload's text in an envelope.

    Of a payload that is given twice, the first is only skipped, and may hold what is not JSON. The last two
    values are `JsonObject.is_strict`, and the envelope if it may have other fields. Raises `Invalid` (422).
    """
    try:
        envelope = _ENVELOPE_DECODER.decode(body)
        payload = _OBJECT_DECODER.decode(envelope.payload)
        return envelope.auth_data, payload, envelope.session_id, _text_in(envelope.payload), True, None
    except _REFUSED_BY_MSGSPEC:
        pass  # it is not valid, or not ordinary
    whole = JsonObject(body)
    _check_shape(whole.content)
    content, text = whole.content, whole.payload_text()
    session_id = content.get("session_id")
    return content["auth_data"], content["payload"], session_id, text, whole.is_strict, content


class JsonObject:
    """A JSON object in a request's body: `content`, and the text that it was parsed from.

    `is_strict`: it has neither NaN nor a number that no double holds, nor half of a surrogate pair.
    The text is parsed by msgspec, which is stricter than Python's json module, and then by json what msgspec
    refuses: clients of this protocol have always been free to send NaN or half of a surrogate pair. Both make
    the same of what both accept. Raises `Invalid` (422).
    """

    __slots__ = ("_body", "content", "is_strict")

    def __init__(self, body: bytes | bytearray) -> None:
        self._body = body
        try:
            value = _STRICT_DECODER.decode(body)
            self.is_strict = True
        except _REFUSED_BY_MSGSPEC:
            value = _by_json(body)
            self.is_strict = False
        if not isinstance(value, dict):
            raise Invalid({"body": "must be a JSON object"})
        self.content = cast("dict[str, Any]", value)

    def text(self) -> Text | None:
        """The text, unless other JSON parsers may refuse it, or read numbers or strings differently.

        They differ in NaN, numbers that no double holds, half surrogate pairs and byte order marks, which
        msgspec refuses. Numbers with more digits than a double are no reason for None: an integer keeps them
        all when json writes it, and a fraction is rounded to the same double by whoever uses doubles. A key
        that is given twice is found later (`Verbatim.of`).
        """
        return self._body if self.is_strict else None

    def payload_text(self) -> Text | None:
        """The part of `text` that is the value of "payload"."""
        try:
            return _text_in(_PAYLOAD_DECODER.decode(self._body).payload) if self.is_strict else None
        except _REFUSED_BY_MSGSPEC:  # nested one level too deeply for this decoder
            return None


class _WithPayload(msgspec.Struct):
    payload: msgspec.Raw


_PAYLOAD_DECODER = msgspec.json.Decoder(_WithPayload)


def _text_in(raw: msgspec.Raw) -> Text:
    """The text that `raw` stands for: a short one as a copy, which doesn't keep the whole body in memory."""
    view = memoryview(raw)
    return bytes(view) if len(view) <= COPIED_BYTES else view


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
    whole = _decoded(tokens.pop())
    return Admission(auth_data(whole.content, whole.is_strict), whole.content, None)


def _unpadded(token: str) -> str:
    return token.strip().rstrip("=")


def _decoded(token: str) -> JsonObject:
    try:
        text = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except ValueError as e:  # wrong characters or length
        raise Invalid({"auth_data": f"not base64url of JSON: {e}"}) from e
    try:
        return JsonObject(text)
    except Invalid as e:
        raise Invalid({"auth_data": e.fields["body"]}) from e


def object_in(body: bytes | bytearray) -> dict[str, Any]:
    """Parse `body` as a JSON object. Raises `Invalid` (422)."""
    return JsonObject(body).content


async def check_bounds(body: bytes | bytearray, max_values: int = MAX_VALUES) -> int:
    """Check the depth and the number of values of a large body before it is parsed as a whole.

    Returns that number, 0 for a small body. Other work has its turn meanwhile. Raises `Invalid` (422) and
    `BodyTooLarge` (413).
    """
    meter = JsonMeter(max_values)
    if len(body) > PARSED_WHOLE_BYTES:
        for start in range(0, len(body), SLICE_BYTES):
            meter.feed(bytes(body[start : start + SLICE_BYTES]))
            await asyncio.sleep(0)
    return meter.values


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


class _OrdinaryAuth(msgspec.Struct, gc=False):
    """The fields of an `AuthData` that is valid at first sight, as nearly all are."""

    signature: str
    cost: Annotated[float, msgspec.Meta(ge=0, lt=2**63)]
    endpoint: str
    reqnum: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
    url: str
    request_idx: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None


def auth_data(raw: dict[str, Any], is_strict: bool = False) -> AuthData:
    """Read `raw` as `AuthData`. Raises `Invalid` (422), which names each wrong field.

    `is_strict` says that all numbers in `raw` are known to be finite: then it takes a fifth of the time.
    """
    if is_strict:
        try:
            own = msgspec.convert(raw, _OrdinaryAuth)
        except msgspec.ValidationError:
            pass  # it is wrong, or not ordinary: a cost may be in a string
        else:
            return AuthData(
                own.signature, own.cost, own.endpoint, own.reqnum, own.url, own.request_idx or None
            )
    try:
        return AuthData.from_json_msg(raw)
    except JsonDataException as e:
        raise Invalid({"auth_data": e.message}) from e
