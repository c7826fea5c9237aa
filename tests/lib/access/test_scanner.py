"""The scanner agrees with a parser about what it finds, however the text is cut, and builds nothing."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.access.scanner import (
    AUTH_DATA_BYTES,
    MAX_DEPTH,
    MAX_KEY_BYTES,
    MAX_KEYS,
    SLICE_BYTES,
    EnvelopeScanner,
    JsonMeter,
)
from lib.errors import BodyTooLarge, Invalid, WorkerError

TEXTS = st.text(st.sampled_from('ab"\\[]{},: \n\u00e9'), max_size=8) | st.text(max_size=5)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=4)
# Strings of which a cut may separate what belongs together.
ESCAPED: st.SearchStrategy[Any] = st.recursive(
    st.text(st.sampled_from('"\\\\a[{}],'), max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("\\"), inner, max_size=1),
    max_leaves=4,
)
LAYOUTS = st.sampled_from([(None, True), (2, False), (0, True)])


def cut(text: bytes, cuts: list[int]) -> list[bytes]:
    """`text` in pieces, cut at `cuts` taken modulo its length."""
    places = sorted({0, len(text), *(c % (len(text) + 1) for c in cuts)})
    return [text[start:end] for start, end in pairwise(places)]


def scanned(*pieces: bytes) -> EnvelopeScanner:
    scanner = EnvelopeScanner()
    for piece in pieces:
        scanner.feed(piece)
    return scanner


def inside(value: Any) -> list[Any]:
    """The members of an object or an array."""
    if isinstance(value, dict):
        return list(cast("dict[str, Any]", value).values())
    return cast("list[Any]", value) if isinstance(value, list) else []


def depth_of(value: Any) -> int:
    return 1 + max(map(depth_of, inside(value)), default=0) if isinstance(value, (dict, list)) else 0


def count_of(value: Any) -> int:
    """The meter's count of `value`: each container, and its members but the first."""
    members = inside(value)
    return isinstance(value, (dict, list)) + max(0, len(members) - 1) + sum(map(count_of, members))


@given(OBJECTS, OBJECTS, LAYOUTS, st.lists(st.integers(0, 10_000), max_size=8), st.data())
def test_auth_data_is_found_wherever_it_stands(
    auth: dict[str, Any], others: dict[str, Any], layout: tuple[int | None, bool], cuts: list[int], data: Any
) -> None:
    others = {name: value for name, value in others.items() if name != "auth_data"}
    names = data.draw(st.permutations(["auth_data", *others]))
    whole = {name: auth if name == "auth_data" else others[name] for name in names}
    text = json.dumps(whole, indent=layout[0], ensure_ascii=layout[1]).encode("utf-8", "surrogatepass")
    scanner = scanned(*cut(text, cuts))
    assert scanner.auth_text is not None
    found = json.loads(scanner.auth_text.decode("utf-8", "surrogatepass"))
    assert json.dumps(found) == json.dumps(auth)
    assert scanner.has_payload == ("payload" in others)


@given(ESCAPED)
def test_text_may_be_cut_anywhere(value: Any) -> None:
    text = json.dumps({"a": value, "auth_data": {"b": value}, "c": value}).encode()
    count = count_of({"a": value, "auth_data": {"b": value}, "c": value})
    for place in range(len(text) + 1):
        pieces = text[:place], text[place:]
        assert scanned(*pieces).auth_text == json.dumps({"b": value}).encode()
        meter = JsonMeter(count)
        assert [meter.feed(piece) for piece in pieces][-1] == meter.depth == 0


@pytest.mark.parametrize("scalar", [b"12345.5e+16", b"null", b"false"])
def test_a_scalar_may_arrive_byte_by_byte(scalar: bytes) -> None:
    text = b'{"a": %s, "auth_data": {"b": 1}, "c": %s}' % (scalar, scalar)
    assert scanned(*(bytes([byte]) for byte in text)).auth_text == b'{"b": 1}'


@given(VALUES, st.lists(st.integers(0, 10_000), max_size=8), st.booleans())
def test_depth_and_number_of_values_are_bounded_exactly(value: Any, cuts: list[int], is_ascii: bool) -> None:
    text = json.dumps([value], ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    pieces, depth, count = cut(text, cuts), depth_of([value]), count_of([value])

    def follow(max_values: int, max_depth: int) -> int:
        meter = JsonMeter(max_values, max_depth)
        for piece in pieces:
            meter.feed(piece)
        return meter.depth

    assert follow(count, depth) == 0
    with pytest.raises(Invalid):
        follow(count, depth - 1)
    with pytest.raises(BodyTooLarge):
        follow(count - 1, depth)


@given(OBJECTS, st.lists(st.integers(0, 10_000), min_size=1, max_size=4))
def test_text_that_is_cut_off_has_no_error(auth: dict[str, Any], cuts: list[int]) -> None:
    text = json.dumps({"x": auth, "auth_data": auth, "payload": auth}).encode()
    for end in cuts:
        scanned(text[: end % len(text)])


@given(st.binary(max_size=60) | st.text(st.sampled_from('{}[]",:\\ a1'), max_size=60).map(str.encode))
def test_any_bytes_are_followed_or_refused(data: bytes) -> None:
    def outcome(*pieces: bytes) -> object:
        try:
            return scanned(*pieces).auth_text
        except WorkerError as e:
            return e.status

    whole = outcome(data)
    assert whole in (413, 422) or outcome(*(data[i : i + 1] for i in range(len(data)))) == whole


def test_any_byte_may_stand_outside_of_strings() -> None:
    for byte in range(256):
        meter = JsonMeter()
        meter.feed(b"[" + bytes([byte]))
        assert meter.depth == {ord("["): 2, ord("{"): 2, ord("]"): 0, ord("}"): 0}.get(byte, 1)


@given(st.lists(st.integers(0, MAX_KEY_BYTES + 20), max_size=4), st.integers(-2, 2), st.booleans())
def test_a_key_is_too_long_or_not_however_it_is_cut(cuts: list[int], more: int, has_auth: bool) -> None:
    key = json.dumps("a" * (MAX_KEY_BYTES - 2 + more)).encode()
    text = b'{"auth_data": {}, %s: 1}' % key if has_auth else b'{%s: 1, "auth_data": {}}' % key
    if more <= 0:
        assert scanned(*cut(text, cuts)).auth_text == b"{}"
        return
    with pytest.raises(Invalid) as refused:
        scanned(*cut(text, cuts))
    assert refused.value.body() == {"body": "has a key of more than 1024 bytes"}


@given(VALUES, st.lists(st.integers(0, 10_000), max_size=8))
def test_what_is_kept_of_an_envelope_is_counted(value: Any, cuts: list[int]) -> None:
    text = json.dumps({"auth_data": {"a": value}, "payload": 1}).encode()
    end = text.index(b', "payload"')
    scanner, fed = EnvelopeScanner(), 0
    for piece in cut(text[:end], cuts):
        scanner.feed(piece)
        fed += len(piece)
        is_inside = len(b'{"auth_data": ') < fed < end
        assert not is_inside or scanner.held_bytes == fed - len(b'{"auth_data": ')
    assert scanner.held_bytes == 0


@pytest.mark.parametrize("value", [b'"', b"[", b'{"a": ', b'["', b"1"])
def test_nothing_is_kept_of_other_values(value: bytes) -> None:
    assert scanned(b'{"x": ' + value, b"1" * 1000, b"1").held_bytes == 0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"[1]", {"body": "must be a JSON object"}),
        (b'"x"', {"body": "must be a JSON object"}),
        (b'\xef\xbb {"auth_data": {}}', {"body": "must be a JSON object"}),
        (b'{"auth_data": 1}', {"auth_data": "must be an object"}),
        (b'{"auth_data": "{}"}', {"auth_data": "must be an object"}),
        (b'{"auth_data": {}, "auth_data": {}}', {"auth_data": "given twice"}),
        (b'{"auth_data": {}, "auth\\u005fdata": {}}', {"auth_data": "given twice"}),
        (b"{auth_data", {"body": "not JSON: a key is expected"}),
        (b'{"a" 1', {"body": "not JSON: a colon is expected"}),
        (b'{"a": ]', {"body": "not JSON: a value is expected"}),
        (b'{"a": 1 "b"', {"body": "not JSON: a comma is expected"}),
        (b"{} x", {"body": "not JSON: there is more behind the object"}),
        (b"{}x", {"body": "not JSON: there is more behind the object"}),
        (b'{"a":1}}', {"body": "not JSON: there is more behind the object"}),
        (b'{"' + b"a" * MAX_KEY_BYTES, {"body": "has a key of more than 1024 bytes"}),
        (b'{"a":1' + b',"a":1' * (MAX_KEYS - 1) + b',"a"', {"body": f"has more than {MAX_KEYS} keys"}),
        (b'{"payload":' + b"[" * MAX_DEPTH, {"body": "nested too deeply"}),
        (b'{"payload":' + b'{"a":' * MAX_DEPTH, {"body": "nested too deeply"}),
        (
            b'{"auth_data":{"a":"' + b"a" * (AUTH_DATA_BYTES - 7) + b'"}',
            {"auth_data": f"is larger than {AUTH_DATA_BYTES} bytes"},
        ),
    ],
)
def test_what_is_no_envelope_is_refused(text: bytes, problem: dict[str, str]) -> None:
    with pytest.raises(Invalid) as refused:
        scanned(*(text[i : i + SLICE_BYTES] for i in range(0, len(text), SLICE_BYTES)))
    assert refused.value.body() == problem


def test_what_is_just_within_the_bounds_is_followed() -> None:
    for text in (
        b'{"a":1' + b',"a":1' * (MAX_KEYS - 1) + b"}",
        b'{"payload":' + b"[" * (MAX_DEPTH - 1),
        b'{"a":"' + b"a" * MAX_KEY_BYTES + b'","b',  # a key whose end is far behind the beginning
    ):
        scanned(text)
    auth = b'{"a":"' + b"a" * (AUTH_DATA_BYTES - 8) + b'"}'
    assert scanned(b'{"auth_data":' + auth[:-1], auth[-1:] + b"}").auth_text == auth


def test_an_envelope_without_auth_data() -> None:
    for text in (b'{"payload": {}}', b'{"payload": {}, "x": 1}', b'{"x": 1, "payload": {}}'):
        assert scanned(text).missing().body() == {"auth_data": "field missing"}
    assert scanned(b"{}").missing().body() == {"auth_data": "field missing", "payload": "field missing"}


def test_a_byte_order_mark_is_skipped() -> None:
    text = b'\xef\xbb\xbf {"auth_data": {"a": 1}}'
    assert scanned(text).auth_text == b'{"a": 1}'
    assert scanned(*(text[i : i + 1] for i in range(len(text)))).auth_text == b'{"a": 1}'
    for late in (text, b"  " + text):
        for place in range(len(late)):
            assert scanned(late[:place], late[place:]).auth_text == b'{"a": 1}'
    assert scanned(text.replace(b" {", b"{")).auth_text == b'{"a": 1}'
    for spaces in (0, 9):
        assert scanned(b"\xef\xbb\xbf" + b" " * spaces).held_bytes == 0


@pytest.mark.parametrize("unit", [b"{},", b'"",', b"[1],", b'{"a":1},', b"0,"])
def test_a_body_of_nothing_but_values_is_refused(unit: bytes) -> None:
    scanner = EnvelopeScanner(JsonMeter(max_values=1000))
    scanner.feed(b'{"payload":[')
    with pytest.raises(BodyTooLarge, match="more than 1000 values"):
        scanner.feed(unit * 1001)
