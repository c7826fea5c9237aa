"""Bodies are read as the json module reads them, and text to forward as every parser reads it."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.access.envelope import COPIED_BYTES, JsonObject, SealedEnvelope, auth_data
from lib.data_types import AuthData
from lib.errors import Invalid
from lib.fields.json_fields import JsonDataException
from lib.request.verbatim import Text, Verbatim

AUTH = {"signature": "c2ln", "cost": 2.5, "endpoint": "e", "reqnum": 3, "url": "http://w:1"}


# The same envelope, by the json module alone


def by_json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body.decode("utf-8-sig"))
    except RecursionError as e:
        raise Invalid({"body": "nested too deeply"}) from e
    except ValueError as e:
        nothing = "empty: send JSON, or authenticate by a header"
        raise Invalid({"body": f"not JSON: {e}" if body else nothing}) from e
    if not isinstance(value, dict):
        raise Invalid({"body": "must be a JSON object"})
    return cast("dict[str, Any]", value)


def envelope_by_json(body: bytes) -> tuple[Any, ...]:
    whole = by_json(body)
    problems = {
        name: "must be an object" if name in whole else "field missing"
        for name in ("auth_data", "payload")
        if not isinstance(whole.get(name), dict)
    }
    if not isinstance(whole.get("session_id"), (str, type(None))):
        problems["session_id"] = "must be a string or null"
    if problems:
        raise Invalid(problems)
    try:
        auth = AuthData.from_json_msg(whole["auth_data"])
    except JsonDataException as e:
        raise Invalid({"auth_data": e.message}) from e
    return asdict(auth), whole["auth_data"], whole["payload"], whole.get("session_id")


def envelope(body: bytes | bytearray) -> tuple[Any, ...]:
    opened = SealedEnvelope(body).open()
    assert opened.session is None
    return asdict(opened.auth), opened.raw_auth, opened.payload, opened.session_id


def exact(value: Any) -> Any:
    """Distinguishes 1, 1.0 and True, 0.0 and -0.0, and orders of keys; NaN equals itself."""
    if isinstance(value, dict):
        return "dict", [(key, exact(item)) for key, item in cast("dict[str, Any]", value).items()]
    if isinstance(value, (list, tuple)):
        items = cast("Sequence[Any]", value)
        return type(items).__name__, [exact(item) for item in items]
    return type(value).__name__, repr(value)


def result(read: Callable[[Any], Any], body: bytes | bytearray) -> Any:
    try:
        return exact(read(body))
    except Invalid as e:
        return "Invalid", exact(dict(e.fields))


def strictly(text: bytes) -> Any:
    """Parse `text`; refuse what not every parser reads in the same way."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs)
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    value = json.loads(text.decode(), object_pairs_hook=once, parse_constant=refuse)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # no half surrogate pair, no infinity
    return value


def forwarded(text: Text | None, content: dict[str, Any]) -> bytes | None:
    """The text that would be forwarded in place of `content`."""
    verbatim = None if text is None else Verbatim.of(text, content)
    return None if verbatim is None else bytes(verbatim.text)


def forwarded_payload(body: bytes) -> bytes | None:
    opened = SealedEnvelope(body).open()
    assert opened.payload is not None
    return forwarded(opened.payload_text, opened.payload)


# JSON as text, with all that a writer of JSON may do and some that it may not

# What is not JSON is rare: a body consists of so many parts that it would be in nearly each of them.
SPACES = st.sampled_from([""] * 280 + [" ", "\n", "\r\n\t "] * 20 + ["\x0b", "\xa0"])
NUMBERS = st.one_of(
    st.integers().map(str),
    st.floats().map(json.dumps),
    st.sampled_from(["-0", "-0.0", "1e5", "1E+5", "1e400", "-1e400", "1e-400", "0e999", "1e999999999999"]),
    st.sampled_from(["18446744073709551615", "18446744073709551616", "-9223372036854775809", "1" * 400]),
    st.sampled_from(["9" * 4300, "-" + "9" * 4300, "1" * 309 + ".5", "9007199254740993.0"]),
    st.sampled_from(["123456789012345678901234567890.5", "2.2250738585072011e-308", "0." + "0" * 400 + "1"]),
    st.sampled_from(["Infinity", "-Infinity", "NaN"]),
)
STRINGS = st.one_of(
    st.text(max_size=5).map(json.dumps),
    st.text(st.characters(codec="utf-8"), max_size=5).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.sampled_from([r'"\ud800"', r'"\udc00\ud800"', r'"\ud83d\ude00"', r'"\u0000"', r'"\u0022:"']),
    st.sampled_from([r'"\":"', r'"{\"a\": 1}"', r'"\\"', r'"\\\":"', '":"', '":a"', '" :"', r'"a\u0022 :"']),
    st.sampled_from(['"\x7f"', r'"\/"']),
)
NOT_JSON = st.sampled_from(
    ["01", "1.", ".5", "+1", "-", "1_0", "0x1", "9" * 4301, "", "nul", "True"]
) | st.sampled_from(['"\t"', '"\x00"', r'"\x"', r'"\u12"', '"'])
KEYS = st.one_of(
    st.sampled_from(['"a"', '"b"', r'"\u0061"', r'"a\\"', r'"\""', r'"\":"', '":"', '""', '"é"', '"a" ']),
    STRINGS,
)
SCALARS = st.integers(0, 39).flatmap(
    lambda number: (
        NOT_JSON if number == 39 else st.sampled_from(["true", "false", "null"]) | NUMBERS | STRINGS
    )
)


@st.composite
def joined(draw: st.DrawFn, brackets: str, members: Sequence[str]) -> str:
    parts = [draw(SPACES) + member + draw(SPACES) for member in members]
    return brackets[0] + ",".join(parts) + brackets[1]


def members(keys: st.SearchStrategy[str], values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds("{}{}:{}{}".format, keys, SPACES, SPACES, values)


def objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(members(KEYS, values), max_size=4).flatmap(lambda parts: joined("{}", parts))


def arrays(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(values, max_size=4).flatmap(lambda parts: joined("[]", parts))


VALUES = st.recursive(SCALARS, lambda values: objects(values) | arrays(values), max_leaves=6)
AUTH_MEMBERS = st.one_of(
    members(st.sampled_from([json.dumps(name) for name in (*AUTH, "request_idx", "status", "x")]), VALUES),
    members(st.sampled_from(['"request_idx"', '"reqnum"', '"cost"']), st.integers().map(str)),
)


@st.composite
def auth_texts(draw: st.DrawFn) -> str:
    parts = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in AUTH.items()]
    return draw(joined("{}", parts + draw(st.lists(AUTH_MEMBERS, max_size=1))))


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Envelopes, most of them valid or nearly so."""
    parts = [f'"auth_data": {draw(auth_texts())}', f'"payload":{draw(objects(VALUES))}']
    more = st.sampled_from(['"auth_data"', '"payload"', '"session_id"', '"x"', r'"pay\u006coad"'])
    parts += draw(st.lists(members(more, VALUES), max_size=2))
    text = draw(st.sampled_from([""] * 9 + ["\ufeff"])) + draw(joined("{}", draw(st.permutations(parts))))
    return text.encode(errors="surrogatepass")


@st.composite
def mutilated(draw: st.DrawFn) -> bytes:
    body = draw(bodies())
    start = draw(st.integers(0, len(body)))
    end = draw(st.integers(start, min(len(body), start + 6)))
    return body[:start] + draw(st.binary(max_size=4)) + body[end:]


@settings(max_examples=150)
@given(st.one_of(bodies(), mutilated(), st.binary(max_size=20), VALUES.map(str.encode)))
def test_an_envelope_is_read_as_the_json_module_reads_it(body: bytes) -> None:
    assert result(envelope, bytearray(body)) == result(envelope_by_json, body)


@settings(max_examples=150)
@given(st.one_of(bodies(), objects(VALUES).map(str.encode)))
def test_the_text_of_an_object_means_the_same_to_every_parser(body: bytes) -> None:
    try:
        whole = JsonObject(body)
    except Invalid:
        return
    text = forwarded(whole.text(), whole.content)
    if text is not None:
        assert exact(strictly(text)) == exact(whole.content)
    if isinstance(whole.content.get("payload"), dict):
        part = forwarded(whole.payload_text(), whole.content["payload"])
        if part is not None:
            assert exact(strictly(part)) == exact(whole.content["payload"])


@settings(max_examples=150)
@given(bodies())
def test_the_text_of_an_envelope_s_payload_means_the_same_to_every_parser(body: bytes) -> None:
    try:
        opened = SealedEnvelope(body).open()
    except Invalid:
        return
    assert opened.payload is not None
    text = forwarded(opened.payload_text, opened.payload)
    if text is not None:
        assert exact(strictly(text)) == exact(opened.payload)


@given(st.lists(AUTH_MEMBERS, max_size=2), st.sampled_from(["cost", "reqnum", "url", "x"]))
def test_auth_data_is_read_as_its_fields_are_checked(more: list[str], left_out: str) -> None:
    parts = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in AUTH.items() if name != left_out]
    try:
        whole = JsonObject(("{" + ",".join(parts + more) + "}").encode())
    except Invalid:
        return
    assert auth_fields(whole.content, whole.is_strict) == auth_fields(whole.content, False)


def auth_fields(raw: dict[str, Any], is_strict: bool) -> Any:
    try:
        return exact(asdict(auth_data(raw, is_strict)))
    except Invalid as e:
        return exact(dict(e.fields))


@pytest.mark.parametrize(
    ("piece", "times"),
    [("x", 2), ("\n", 2), ('"', 2), ("é", 2), ("€", 3)],  # CPython decodes UTF-8 into too large a buffer
)
def test_a_large_string_is_not_copied_to_be_read(piece: str, times: int) -> None:
    data = piece * (4 * 1024 * 1024 // len(piece.encode()))
    message = {"auth_data": AUTH, "payload": {"image": data}}
    body = json.dumps(message, ensure_ascii=False).encode()
    del message
    tracemalloc.start()
    try:
        opened = SealedEnvelope(body).open()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert opened.payload == {"image": data}
    assert opened.payload_text is not None
    assert peak_bytes < (times + 0.1) * len(body)


# Which payloads can be forwarded as they came

FORWARDED = [
    "{}",
    '{\n"a" : 1 }',
    '{"a": ":", "b": "\\": \\u0022:"}',
    '{"model": "m", "messages": [{"role": "user", "content": "Hello: \\"you\\""}], "stream": true}',
    '{"arguments": "{\\"city\\": \\"Rome\\", \\"days\\": 2}"}',
    '{"a": {"a": {"a": 1}}, "b": [{"a": 1}, {"a": 2}]}',
    '{"a": "\\u005c"}',
    '{"text": "\\ud83d\\ude00 é 😀"}',
    '{"numbers": [18446744073709551615, -9223372036854775808, -0.0, 1e-7, 1e-400, 0.1234567890123456789]}',
    json.dumps({"a": [{"b": 1}, [[{"c": 1}]]]}, indent=2),
    json.dumps({"input": list(range(5000)), "options": {"a": {"b": 1}}}),
]
NOT_FORWARDED = [
    '{"a": NaN}',
    '{"a": 1e400}',
    '{"a": "\\ud800"}',
    '{"a": 1, "a": 2}',
    '{"a": 1, "\\u0061": 2}',
    '{"x": [{"a": 1, "a": {"b": 1}}]}',
    '{"a": 1, "a": "\\"", "b": "\\u0022"}',
    '{"a": 1, "a": "\\u0022"}',
    '{"a": "\\\\"}',  # uncertain
]


@pytest.mark.parametrize("payload", FORWARDED)
def test_the_text_of_a_payload_is_unchanged(payload: str) -> None:
    body = f'{{"auth_data":{json.dumps(AUTH)}, "payload":\n{payload} }}'.encode()
    assert forwarded_payload(body) == payload.encode()
    whole = JsonObject(payload.encode())
    assert forwarded(whole.text(), whole.content) == payload.encode()


@pytest.mark.parametrize("payload", NOT_FORWARDED)
def test_a_payload_that_may_be_read_in_two_ways_has_no_text(payload: str) -> None:
    body = f'{{"auth_data":{json.dumps(AUTH)}, "payload":{payload}}}'.encode()
    assert forwarded_payload(body) is None
    whole = JsonObject(payload.encode())
    assert forwarded(whole.text(), whole.content) is None


@pytest.mark.parametrize(
    ("rest", "text"),
    [
        ('"payload": {"b": 1}', b'{"b": 1}'),
        ('"pay\\u006coad": {"b": 1}', b'{"b": 1}'),
        ('"x": {"a": 1, "a": 2}', b'{"a": 1}'),
        ('"payload": {"b": "\\ud800"}', None),
        ('"x": "\\ud800"', None),
    ],
)
def test_the_text_is_that_of_the_payload_which_was_read(rest: str, text: bytes | None) -> None:
    body = f'{{"auth_data":{json.dumps(AUTH)}, "payload":{{"a": 1}}, {rest}}}'.encode()
    assert forwarded_payload(body) == text


@pytest.mark.parametrize("size", [1, 100_000])
def test_the_text_outlives_its_body(size: int) -> None:
    payload = {"a": "x" * size}
    body = bytearray(json.dumps({"auth_data": AUTH, "payload": payload}).encode())
    text = SealedEnvelope(body).open().payload_text
    assert text is not None
    try:
        body.clear()
    except BufferError:  # a long text is a view
        assert size > COPIED_BYTES
    del body
    assert bytes(text) == json.dumps(payload).encode()


def is_read(body: bytes) -> bool:
    """Whether a deeply nested `body` is read; its text is looked for too."""
    try:
        JsonObject(body).payload_text()
    except Invalid as e:
        if dict(e.fields) == {"body": "nested too deeply"}:
            return False
        raise
    return True


def test_no_depth_that_is_read_is_too_deep_for_the_text() -> None:
    def nested(depth: int) -> bytes:
        return b'{"payload":' * depth + b"1" + b"}" * depth

    low, high = 1, 1_000_000
    while high - low > 1:  # up to the limit, which differs from one Python to the next
        middle = (low + high) // 2
        low, high = (middle, high) if is_read(nested(middle)) else (low, middle)
    assert low > 500
