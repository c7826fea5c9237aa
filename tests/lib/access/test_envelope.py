"""The envelope's shape, and reading `AuthData` from any JSON (docs/protocol.md, "Envelope")."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.access.envelope import PARSED_WHOLE_BYTES, SealedEnvelope, check_bounds, object_in
from lib.access.scanner import MAX_DEPTH, SLICE_BYTES, EnvelopeScanner
from lib.data_types import AuthData, JsonDataException
from lib.errors import BodyTooLarge, Invalid

AUTH = {"signature": "s", "cost": 2.5, "endpoint": "e", "reqnum": 3, "url": "http://w:1"}
MISSING = "missing parameter"


def large(body: bytes) -> SealedEnvelope:
    """The envelope in `body`, read as a large one: `auth_data` is found by a scanner."""
    scanner = EnvelopeScanner()
    scanner.feed(body)
    if scanner.auth_text is None:
        raise scanner.missing()
    sealed = SealedEnvelope(scanner.auth_text, is_whole=False)
    sealed.parse(body)
    return sealed


def wrong_with(body: bytes, read: Callable[[bytes], SealedEnvelope] = SealedEnvelope) -> dict[str, Any]:
    with pytest.raises(Invalid) as refused:
        read(body).open()
    assert refused.value.status == 422
    return dict(refused.value.fields)


def wrong_with_json(value: object) -> dict[str, Any]:
    return wrong_with(json.dumps(value).encode())


def wrong_with_auth(**changes: object) -> Any:
    answer = wrong_with_json({"auth_data": {**AUTH, **changes}, "payload": {}})
    assert list(answer) == ["auth_data"]
    return answer["auth_data"]


# The shape


def test_the_parts_of_an_envelope_are_unchanged() -> None:
    raw = {**AUTH, "cost": "2.5", "request_idx": 0, "__request_id": "r"}
    sealed = SealedEnvelope(json.dumps({"payload": {"a": 1}, "auth_data": raw, "more": []}).encode())
    assert sealed.raw_auth == raw
    assert sealed.auth == AuthData("s", 2.5, "e", 3, "http://w:1", None)
    envelope = sealed.open()
    assert envelope.payload == {"a": 1}
    assert (envelope.raw_auth, envelope.session_id) == (raw, None)


def test_a_byte_order_mark_is_ignored() -> None:
    envelope = b"\xef\xbb\xbf" + json.dumps({"auth_data": AUTH, "payload": {"a": 1}}).encode()
    for read in (SealedEnvelope, large):
        assert read(envelope).open().payload == {"a": 1}


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "empty: send JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b'{"auth_data": {"endpoint": "\xe9"}}', "not JSON"),
        (b"{", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"1" * 5000, "not JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 150_000, "nested too deeply"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"NaN", "must be a JSON object"),
    ],
)
def test_a_body_that_is_no_json_object_is_invalid(body: bytes, problem: str) -> None:
    answer = wrong_with(body)
    assert list(answer) == ["body"]
    assert problem in answer["body"]


@pytest.mark.parametrize(
    ("envelope", "answer"),
    [
        ({}, {"auth_data": "field missing", "payload": "field missing"}),
        ({"auth_data": AUTH}, {"payload": "field missing"}),
        ({"payload": {}}, {"auth_data": "field missing"}),
        (
            {"auth_data": [], "payload": "p"},
            {"auth_data": "must be an object", "payload": "must be an object"},
        ),
        ({"auth_data": None, "payload": None}, dict.fromkeys(("auth_data", "payload"), "must be an object")),
        ({"auth_data": {}, "payload": []}, {"payload": "must be an object"}),
        (
            {"auth_data": {}, "payload": {}},
            {"auth_data": dict.fromkeys(("signature", "cost", "endpoint", "reqnum", "url"), MISSING)},
        ),
    ],
)
def test_each_wrong_part_is_named(envelope: object, answer: object) -> None:
    assert wrong_with_json(envelope) == answer


# Envelopes that are not ordinary: Python's json module reads them, msgspec refuses them


@pytest.mark.parametrize("other", ['"x": 1', '"x": NaN', r'"x": "\ud800"', '"payload": {"a": NaN}'])
@pytest.mark.parametrize(("sent", "read"), [('"abc"', "abc"), ("null", None)])
def test_a_session_is_named_in_any_envelope(other: str, sent: str, read: str | None) -> None:
    body = f'{{"auth_data": {json.dumps(AUTH)}, "payload": {{}}, "session_id": {sent}, {other}}}'
    assert SealedEnvelope(body.encode()).open().session_id == read


@pytest.mark.parametrize("session_id", [5, True, ["abc"], {}, 0, False])
def test_a_session_id_that_is_no_string_is_named(session_id: object) -> None:
    wrong = {"session_id": "must be a string or null"}
    assert wrong_with_json({"auth_data": AUTH, "payload": {}, "session_id": session_id}) == wrong
    assert wrong_with_json({"auth_data": AUTH, "session_id": session_id}) == {
        "payload": "field missing",
        **wrong,
    }


@pytest.mark.parametrize("text", ['{"a": 1}', '{"a": NaN}'])
def test_an_object_without_an_envelope_is_parsed(text: str) -> None:
    assert repr(object_in(text.encode())) == repr(json.loads(text))


# Large bodies: nothing but `auth_data` is parsed before its signature holds


def test_a_large_body_is_parsed_when_it_is_opened() -> None:
    body = json.dumps({"payload": {"a": 1}, "auth_data": AUTH, "session_id": "s"}, indent=2).encode()
    opened = large(body).open()
    assert (opened.raw_auth, opened.payload, opened.session_id) == (AUTH, {"a": 1}, "s")


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b"{}", {"auth_data": "field missing", "payload": "field missing"}),
        (b'{"payload": {}}', {"auth_data": "field missing"}),
        (b'{"auth_data": [], "payload": {}}', {"auth_data": "must be an object"}),
        (b'{"auth_data": %s}' % json.dumps(AUTH).encode(), {"payload": "field missing"}),
        (b'{"auth_data": ' + b"[" * MAX_DEPTH, {"auth_data": "must be an object"}),
        (b'{"auth_data": {"a": ' + b"[" * MAX_DEPTH, {"body": "nested too deeply"}),
        (b"\xff" * 10, {"body": "must be a JSON object"}),
    ],
)
def test_wrong_parts_of_a_large_body_are_named(body: bytes, answer: object) -> None:
    assert wrong_with(body, large) == answer


@pytest.mark.parametrize("second", [{"cost": 0}, AUTH])
def test_a_second_auth_data_is_refused(second: object) -> None:
    once = json.dumps({"auth_data": AUTH, "payload": {}})
    twice = f'{once[:-1]}, "auth_data": {json.dumps(second)}}}'.encode()
    assert wrong_with(twice, large) == {"auth_data": "given twice"}


# `auth_data`


def test_every_wrong_field_is_named_at_once() -> None:
    answer = wrong_with_auth(signature=5, cost=-1, endpoint=None, reqnum=True, url=[], request_idx="7")
    assert answer == {
        "signature": "must be a string",
        "cost": "must be 0 or more",
        "endpoint": "must be a string",
        "reqnum": "must be an integer",
        "url": "must be a string",
        "request_idx": "must be an integer or null",
    }


@pytest.mark.parametrize(
    ("sent", "cost"),
    [(0, 0.0), (256, 256.0), ("256", 256.0), ("1e3", 1000.0), (1e-300, 1e-300), (2**1000, float(2**1000))],
)
def test_a_cost_is_a_number_or_a_string_with_one(sent: object, cost: float) -> None:
    read = AuthData.from_json_msg({**AUTH, "cost": sent}).cost
    assert (read, type(read)) == (cost, float)


@pytest.mark.parametrize("cost", [True, None, "", "many", [1], {}, "0x10", "1,5"])
def test_any_other_cost_is_refused(cost: object) -> None:
    assert wrong_with_auth(cost=cost) == {"cost": "must be a number"}


@pytest.mark.parametrize(
    "cost", [math.nan, math.inf, -math.inf, "nan", "-Infinity", "1e999", 10**400, "9" * 400]
)
def test_an_infinite_cost_is_refused(cost: object) -> None:
    assert wrong_with_auth(cost=cost) == {"cost": "must be finite"}


def test_a_number_too_large_for_json_text_is_infinite() -> None:
    body = json.dumps({"auth_data": {**AUTH, "cost": 0.5}, "payload": {}}).replace("0.5", "1e999").encode()
    assert wrong_with(body) == {"auth_data": {"cost": "must be finite"}}


@pytest.mark.parametrize("value", [math.nan, [math.inf], {"a": [{"b": -math.inf}]}])
def test_infinity_in_ignored_fields_is_refused(value: object) -> None:
    assert wrong_with_auth(other=value) == {"other": "must be finite"}


@pytest.mark.parametrize("reqnum", [3.0, "3", None, 1e3])
def test_a_reqnum_is_an_integer(reqnum: object) -> None:
    assert wrong_with_auth(reqnum=reqnum) == {"reqnum": "must be an integer"}


@pytest.mark.parametrize("number", [2**63, 10**400])
def test_integers_have_64_bits(number: int) -> None:
    assert wrong_with_auth(reqnum=number, request_idx=number) == {
        "reqnum": "must fit into 64 bits",
        "request_idx": "must fit into 64 bits",
    }
    assert wrong_with_auth(reqnum=-number - 1) == {"reqnum": "must fit into 64 bits"}


@pytest.mark.parametrize(("sent", "read"), [(0, None), (None, None), (1, 1), (2**63 - 1, 2**63 - 1)])
def test_a_request_idx_of_0_is_none(sent: int | None, read: int | None) -> None:
    raw = {**AUTH, "request_idx": sent}
    assert AuthData.from_json_msg(raw).request_idx == read
    assert SealedEnvelope(json.dumps({"auth_data": raw, "payload": {}}).encode()).auth.request_idx == read


def test_a_negative_request_idx_is_refused() -> None:
    assert wrong_with_auth(request_idx=-1) == {"request_idx": "must be 0 or more"}


# Whatever comes

SCALARS = st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
FIELDS = ["signature", "cost", "endpoint", "reqnum", "url", "request_idx", "other"]
INT64 = st.integers(-(2**63) - 1, 2**63) | st.sampled_from([-(2**63) - 1, -(2**63), -1, 0, 2**63 - 1, 2**63])
COSTS = st.floats(0) | st.integers(0) | st.sampled_from([-1, -0.0, 10**400, "1e400", "nan", " 2.50 "])


def changed(near: dict[str, Any], far: dict[str, Any]) -> dict[str, Any]:
    return {**AUTH, **near, **far}


# Near misses: a good message with some of its fields changed, of which about half are good too.
MESSAGES = st.builds(
    changed,
    st.fixed_dictionaries(
        {},
        optional={
            "signature": st.text(max_size=8),
            "cost": COSTS | COSTS.map(str),
            "reqnum": INT64,
            "url": st.text(max_size=8),
            "request_idx": INT64 | st.none(),
            "other": JSON,
        },
    ),
    st.just(dict[str, Any]()) | st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=2),
)
ENVELOPES = st.fixed_dictionaries(
    {"auth_data": MESSAGES, "payload": st.dictionaries(st.text(max_size=5), JSON, max_size=3) | JSON},
    optional={"session_id": st.none() | st.text(max_size=3) | JSON, "other": JSON},
)


@given(MESSAGES | st.dictionaries(st.text(max_size=9), JSON, max_size=4))
def test_auth_data_is_read_exactly_or_refused(message: dict[str, Any]) -> None:
    problems = dict[str, Any]()
    auth = None
    try:
        auth = AuthData.from_json_msg(message)
    except JsonDataException as e:
        problems = e.message
    assert all(isinstance(problem, str) for problem in problems.values())
    if auth is None:
        assert problems
        return
    json.dumps(message, allow_nan=False)
    assert math.isfinite(auth.cost)
    assert auth.cost >= 0
    assert auth.cost == float(message["cost"])
    assert -(2**63) <= auth.reqnum < 2**63
    assert auth.request_idx is None or 1 <= auth.request_idx < 2**63


@given(st.binary(max_size=200) | (JSON | ENVELOPES).map(lambda value: json.dumps(value).encode()))
def test_any_body_is_an_envelope_or_invalid(body: bytes) -> None:
    try:
        SealedEnvelope(body).open()
    except Invalid as e:
        json.dumps(e.body(), allow_nan=False)


@given(st.data())
def test_a_mutilated_envelope_is_an_envelope_or_invalid(data: st.DataObject) -> None:
    good = json.dumps({"auth_data": AUTH, "payload": {"a": [1, {"b": "ü"}]}}, indent=4).encode()
    start = data.draw(st.integers(0, len(good)))
    end = min(len(good), start + data.draw(st.sampled_from([0, 0, 0, 1, 2, len(good)])))
    pieces = st.sampled_from([b" ", b"\n", b"0", b"a", b'"', b",", b"}", b"\\", b"\xc3"])
    body = good[:start] + data.draw(pieces | st.binary(max_size=6)) + good[end:]
    try:
        SealedEnvelope(body).open()
    except Invalid as e:
        json.dumps(e.body(), allow_nan=False)


@pytest.mark.parametrize(
    "size",
    [*(PARSED_WHOLE_BYTES + more for more in (-1, 0, 1)), *(3 * SLICE_BYTES + more for more in (0, 1))],
)
async def test_the_values_of_a_large_body_are_bounded_exactly(size: int) -> None:
    commas = 1000  # all along the body
    unit = b",%s1" % (b" " * (size // commas - 2))
    body = (b"[1" + commas * unit).ljust(size - 1) + b"]"
    assert len(body) == size
    await check_bounds(body, commas + 1)
    if size <= PARSED_WHOLE_BYTES:
        await check_bounds(body, commas)
        return
    with pytest.raises(BodyTooLarge):
        await check_bounds(body, commas)


def test_a_large_envelope_has_the_auth_data_that_was_verified() -> None:
    sealed = SealedEnvelope(json.dumps(AUTH).encode(), is_whole=False)
    with pytest.raises(Invalid) as refused:
        sealed.parse(json.dumps({"payload": {}, "auth_data": {**AUTH, "cost": 2}}).encode())
    assert refused.value.fields == {"auth_data": "given twice"}


@pytest.mark.parametrize("more", [{}, {"more": [1]}, {"session_id": "s"}])
def test_a_large_envelope_is_kept_as_what_was_parsed_of_it(more: dict[str, Any]) -> None:
    body = json.dumps({"payload": {"a": "x" * 100_000}, "auth_data": AUTH, **more}).encode()
    sealed = SealedEnvelope(json.dumps(AUTH).encode(), is_whole=False)
    sealed.parse(body)
    assert sealed.content == json.loads(body)
    assert sealed.content["payload"] is sealed.open().payload
