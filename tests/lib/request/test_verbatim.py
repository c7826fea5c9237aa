"""A payload's text is sent as it came exactly if the message is still what the text says."""

from __future__ import annotations

import copy
import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.request.verbatim import Verbatim

CHARACTERS = st.characters(exclude_characters="\\")  # before a quote it makes a text uncertain
LEAVES = st.one_of(
    st.sampled_from([None, True, False, 0, 1, 0.0, -0.0, 1.0, 2**53]),
    st.integers() | st.floats(),
    st.text(CHARACTERS, max_size=5),
)
KEYS = st.text(CHARACTERS, max_size=3)
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=4)


def places(value: Any) -> list[Any]:
    """All objects and lists in `value`, itself included."""
    found = [value]
    inner = cast("dict[str, Any]", value).values() if isinstance(value, dict) else value
    for item in list(inner):
        if isinstance(item, (dict, list)):
            found += places(item)
    return found


def written(value: Any) -> str:
    """The JSON text, by which 1, 1.0 and true differ."""
    return json.dumps(value, sort_keys=True)


def kept(content: dict[str, Any]) -> Verbatim:
    verbatim = Verbatim.of(json.dumps(content).encode(), content)
    assert verbatim is not None
    return verbatim


def keys(place: Any) -> list[Any]:
    return list(cast("dict[str, Any]", place)) if isinstance(place, dict) else list(range(len(place)))


def lookalikes(value: Any) -> list[Any]:
    """The values that Python takes for `value`, but JSON does not."""
    if not isinstance(value, (bool, int, float)) or not -(2**53) <= value <= 2**53:
        return []
    others = (float(value), int(value), bool(value), -0.0, 0.0)
    return [other for other in others if other == value and repr(other) != repr(value)]


@given(content=OBJECTS, data=st.data())
def test_no_change_in_place_is_missed(content: dict[str, Any], data: st.DataObject) -> None:
    verbatim, before = kept(content), written(content)
    spots = [(place, key) for place in places(content) for key in keys(place)]
    alike = [(place, key, other) for place, key in spots for other in lookalikes(place[key])]
    kind = data.draw(st.sampled_from(["lookalike", "lookalike", "copy", "value", "member"]))
    if kind == "lookalike" and alike:
        place, key, place[key] = data.draw(st.sampled_from(alike))
    elif kind != "member" and spots:
        place, key = data.draw(st.sampled_from(spots))
        place[key] = copy.deepcopy(place[key]) if kind == "copy" else data.draw(VALUES)
    else:
        place = data.draw(st.sampled_from(places(content)))
        if isinstance(place, dict):
            cast("dict[str, Any]", place)[data.draw(KEYS)] = data.draw(VALUES)
        else:
            place.append(data.draw(VALUES))
    if verbatim.says(content):
        assert written(content) == before


@given(content=OBJECTS)
def test_an_unchanged_message_is_recognized(content: dict[str, Any]) -> None:
    verbatim = kept(content)
    assert verbatim.says(content)
    assert verbatim.says(dict(content))
    assert verbatim.says(dict(reversed(content.items())))  # the order of keys has no meaning in JSON


class OwnDict(dict[str, Any]):
    """A payload class that keeps the client's JSON, like those of ready-made workers."""


def test_a_dict_of_the_author_s_own_class_is_recognized() -> None:
    content = {"a": {"b": ["c"]}}
    assert kept(content).says(OwnDict(content))


LARGE = 1000
CONTENT: dict[str, Any] = {"n": 1, "list": [LARGE, "a"], "object": {"deep": {"x": LARGE}}}


@pytest.mark.parametrize(
    "message",
    [
        {**CONTENT, "n": 1.0},
        {**CONTENT, "n": True},
        {**CONTENT, "new": None},
        {"list": CONTENT["list"], "object": CONTENT["object"]},
        {**CONTENT, "list": [*CONTENT["list"], 1]},
        {**CONTENT, "list": tuple(CONTENT["list"])},
        {**CONTENT, "object": []},
        {**CONTENT, "object": {"deep": {"x": 2000}}},
        None,
        [CONTENT],
    ],
)
def test_another_message_is_not_what_the_text_says(message: Any) -> None:
    assert kept(CONTENT).says(CONTENT)
    assert not kept(CONTENT).says(message)


def test_what_is_copied_deeply_is_still_the_same() -> None:
    content = {"text": "a", "object": {"numbers": [1, 2.5], "none": None}}
    assert kept(content).says(copy.deepcopy(content))  # `dataclasses.asdict` copies like this


@given(
    pieces=st.lists(st.sampled_from(["a" * 65533, "b" * 30000, '\\"', '"', "\\", "é", "c"]), max_size=8),
    twice=st.booleans(),
)
def test_long_texts_are_searched_in_pieces(pieces: list[str], twice: bool) -> None:
    content = {"x": pieces, "y": 1}
    text = json.dumps(content, ensure_ascii=False).encode()
    if twice:
        text = text[:-1] + b', "y": 1}'
    is_uncertain = b'\\\\"' in text
    assert (Verbatim.of(text, content) is None) == (twice or is_uncertain)
    assert (Verbatim.of(memoryview(text), content) is None) == (twice or is_uncertain)


def test_a_text_of_backslashes_only_is_not_searched_for_ever() -> None:
    content = {"x": "\\" * 1_000_000}
    assert Verbatim.of(json.dumps(content).encode(), content) is None
