"""JSON into dataclasses, with every wrong field named (lesson 36)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.json_fields import JsonDataException, read_dataclass, read_fields

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@dataclass
class Voice:
    name: str
    pitch: float = 1.0


@dataclass
class Upper:
    text: str

    @classmethod
    def from_json_msg(cls, json_msg: dict[str, Any]) -> Upper:
        return cls(json_msg["text"].upper())


@dataclass
class Everything:
    text: str
    count: int
    share: float
    flag: bool
    items: list[int]
    options: dict[str, Any]
    mode: Literal["fast", "slow", 1]
    voice: Voice
    upper: Upper
    maybe: int | None
    old_style: Optional[str]  # noqa: UP045 - authors write it
    either: int | str
    anything: Any
    untyped_list: list  # type: ignore[type-arg]
    defaulted: int = 7
    made: list[str] = field(default_factory=list[str])
    computed: int = field(default=3, init=False)


GOOD: dict[str, Any] = {
    "text": "hi",
    "count": 3,
    "share": 1,
    "flag": True,
    "items": [1, 2],
    "options": {"a": None},
    "mode": "slow",
    "voice": {"name": "alto", "unknown": 1},
    "upper": {"text": "loud"},
    "maybe": None,
    "old_style": "x",
    "either": "y",
    "anything": [object],
    "untyped_list": [1, "two"],
}


def problems(**changes: Any) -> dict[str, Any]:
    with pytest.raises(JsonDataException) as raised:
        read_dataclass(Everything, {**GOOD, **changes})
    return raised.value.message


def test_a_good_message() -> None:
    read = read_dataclass(Everything, {**GOOD, "computed": 9, "unknown": 1})
    assert (read.voice, read.upper) == (Voice("alto"), Upper("LOUD"))
    assert (read.defaulted, read.made, read.computed) == (7, [], 3)
    assert "unknown" not in read_fields(Everything, {**GOOD, "unknown": 1})


def test_every_missing_field_is_named() -> None:
    with pytest.raises(JsonDataException) as raised:
        read_dataclass(Everything, {"voice": {}})
    assert raised.value.message == {
        **dict.fromkeys(GOOD, "missing parameter"),
        "voice": {"name": "missing parameter"},
    }


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("text", 1, "must be a string"),
        ("count", 1.5, "must be an integer"),
        ("count", True, "must be an integer"),
        ("share", "1", "must be a number"),
        ("share", False, "must be a number"),
        ("flag", 1, "must be true or false"),
        ("items", [1, "2"], "must be a list, each item an integer"),
        ("items", {}, "must be a list, each item an integer"),
        ("options", [], "must be an object"),
        ("mode", "medium", "must be one of 'fast', 'slow', 1"),
        ("mode", True, "must be one of 'fast', 'slow', 1"),
        ("voice", "alto", "must be an object"),
        ("voice", {"name": 1}, {"name": "must be a string"}),
        ("maybe", "x", "must be an integer or null"),
        ("old_style", 1, "must be a string or null"),
        ("either", None, "must be an integer or a string"),
        ("untyped_list", {}, "must be a list"),
    ],
)
def test_a_wrong_type_says_which_is_wanted(name: str, value: Any, said: Any) -> None:
    assert problems(**{name: value}) == {name: said}


def test_all_that_is_wrong_is_told_at_once() -> None:
    assert set(problems(text=1, count="x", voice=2)) == {"text", "count", "voice"}


@given(st.dictionaries(st.sampled_from([*GOOD, "defaulted", "made", "unknown"]), JSON))
def test_no_message_raises_anything_else(message: dict[str, Any]) -> None:
    message.pop("upper", None)  # that one's reader is the author's
    with pytest.raises(JsonDataException) as raised:
        read_dataclass(Everything, message)
    assert set(raised.value.message) <= {*GOOD, "defaulted", "made"}
