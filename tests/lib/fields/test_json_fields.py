"""JSON and URL parameters into dataclasses, with every wrong field named at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field, fields, make_dataclass
from typing import Annotated, Any, Literal, Optional

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.fields.json_fields import JsonDataException, Parameters, read_dataclass, read_fields, read_typed
from tests.lib.fields.typed_examples import Colour, Count, Point, Size, Tokens

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


def test_values_that_only_the_constructor_takes_are_checked() -> None:
    # Python 3.10 can't resolve an `InitVar` in quotes, or with annotations from __future__.
    made = make_dataclass(
        "Made", [("kept", int), ("given", InitVar[int]), ("maybe", InitVar[int], field(default=None))]
    )
    with pytest.raises(JsonDataException) as raised:
        read_dataclass(made, {"kept": 1, "given": "2", "maybe": "3"})
    assert raised.value.message == {"given": "must be an integer", "maybe": "must be an integer or null"}


def test_every_missing_field_is_named() -> None:
    with pytest.raises(JsonDataException) as raised:
        read_dataclass(Everything, {"voice": {}})
    assert raised.value.message == {
        **dict.fromkeys(GOOD, "missing parameter"),
        "voice": {"name": "missing parameter"},
    }


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("text", 1, "must be a string"),
        ("count", 1.5, "must be an integer"),
        ("count", True, "must be an integer"),
        ("share", "1", "must be a number"),
        ("share", False, "must be a number"),
        ("flag", 1, "must be true or false"),
        ("items", [1, "2"], {"1": "must be an integer"}),
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
def test_a_wrong_type_is_answered_with_the_expected_one(name: str, value: Any, problem: Any) -> None:
    assert problems(**{name: value}) == {name: problem}


def test_all_wrong_fields_are_named_at_once() -> None:
    assert set(problems(text=1, count="x", voice=2)) == {"text", "count", "voice"}


@given(st.dictionaries(st.sampled_from([*GOOD, "defaulted", "made", "unknown"]), JSON))
def test_no_message_raises_anything_else(message: dict[str, Any]) -> None:
    message.pop("upper", None)  # its `from_json_msg` is the author's
    with pytest.raises(JsonDataException) as raised:
        read_dataclass(Everything, message)
    assert set(raised.value.message) <= {*GOOD, "defaulted", "made"}


# Parameters of a URL: strings converted to the types of their fields


@dataclass
class InUrl:
    text: str = ""
    count: int = 0
    share: float = 0.0
    flag: bool = False
    items: list[int] = field(default_factory=list[int])
    names: list[str] = field(default_factory=list[str])
    flags: list[bool] | None = None
    untyped_list: list = field(default_factory=list)  # type: ignore[type-arg]
    maybe: Optional[int] = None  # noqa: UP045 - authors write it
    either: int | float | str = ""
    number: int | float = 0
    mode: Literal["fast", "slow"] = "fast"
    size: Literal[256, 512, "auto"] | float = 256
    sizes: list[Literal[1, 2]] = field(default_factory=list[Literal[1, 2]])
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    voice: Voice | None = None
    colour: Colour = Colour.RED
    sizes_or_none: list[Size] | None = None
    anything: Any = None
    tokens: Tokens | None = None
    alias: Count = 0
    noted: Annotated[int, "doc"] = 0
    limited: Annotated[int, msgspec.Meta(ge=0)] | None = None
    sequence: Sequence[int] = ()
    unique: set[int] = field(default_factory=set[int])
    endless: tuple[int, ...] = ()
    pair: tuple[int, str] = (0, "")
    named_items: list[Tokens] = field(default_factory=list[Tokens])


def from_url(**texts: str | list[str]) -> InUrl:
    return read_dataclass(InUrl, Parameters(texts))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("text", "5", "5"),
        ("text", "", ""),
        ("count", "5", 5),
        ("count", "-5", -5),
        ("share", "5", 5.0),
        ("share", "1e-3", 0.001),
        ("flag", "true", True),
        ("flag", "false", False),
        ("flag", "1", True),
        ("flag", "0", False),
        ("items", "5", [5]),
        ("items", ["5", "6"], [5, 6]),
        ("names", "5", ["5"]),
        ("flags", ["1", "false"], [True, False]),
        ("untyped_list", "a", ["a"]),
        ("untyped_list", ["a", "5"], ["a", "5"]),
        ("maybe", "5", 5),
        ("either", "5", "5"),
        ("number", "5", 5),
        ("number", "5.5", 5.5),
        ("mode", "slow", "slow"),
        ("size", "512", 512),
        ("size", "auto", "auto"),
        ("size", "5.5", 5.5),
        ("sizes", ["1", "2"], [1, 2]),
        ("colour", "blue", Colour.BLUE),
        ("sizes_or_none", "2", [Size.LARGE]),
        ("tokens", "5", 5),
        ("alias", "5", 5),
        ("noted", "5", 5),
        ("limited", "5", 5),
        ("sequence", ["5", "6"], [5, 6]),
        ("sequence", "5", [5]),
        ("unique", ["5", "6"], {5, 6}),
        ("endless", "5", (5,)),
        ("pair", ["5", "6"], (5, "6")),
        ("named_items", "5", [5]),
        ("anything", "5", "5"),
        ("anything", ["5", "a"], ["5", "a"]),
    ],
)
def test_a_string_of_a_url_is_converted_to_its_fields_type(
    name: str, text: str | list[str], value: Any
) -> None:
    read = getattr(from_url(**{name: text}), name)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("text", ["a", "b"], "must be a string"),
        ("count", "", "must be an integer"),
        ("count", "5.0", "must be an integer"),
        ("count", "9" * 5000, "must be an integer"),
        ("count", ["1", "2"], "must be an integer"),
        ("share", "much", "must be a number"),
        ("flag", "yes", "must be true or false"),
        ("flag", "", "must be true or false"),
        ("items", "a", {"0": "must be an integer"}),
        ("items", ["1", "a"], {"1": "must be an integer"}),
        ("flags", ["1", "2"], {"1": "must be true or false"}),
        ("maybe", "null", "must be an integer or null"),
        ("mode", "medium", "must be one of 'fast', 'slow'"),
        ("size", "large", "must be one of 256, 512, 'auto' or a number"),
        ("sizes", ["1", "3"], {"1": "must be one of 1, 2"}),
        ("tokens", "a", "must be an integer or null"),
        ("limited", "-1", "must be at least 0"),
        ("pair", ["5"], "must be a list of 2: an integer, a string"),
        ("options", "{}", "must be an object"),
        ("voice", "alto", "must be an object or null"),
    ],
)
def test_a_string_that_can_not_be_converted_is_a_problem(
    name: str, text: str | list[str], problem: str
) -> None:
    with pytest.raises(JsonDataException) as raised:
        from_url(**{name: text})
    assert raised.value.message == {name: problem}


def test_a_typed_dict_of_a_url_is_converted() -> None:
    assert read_typed(Point, Parameters(x="1", y="2")) == {"x": 1, "y": 2.0}


def test_strings_in_json_are_not_converted() -> None:
    with pytest.raises(JsonDataException) as raised:
        read_dataclass(InUrl, {"count": "5", "flag": "true", "items": "5", "maybe": "5"})
    assert set(raised.value.message) == {"count", "flag", "items", "maybe"}


def test_every_wrong_or_missing_parameter_is_named() -> None:
    with pytest.raises(JsonDataException) as raised:
        read_dataclass(Voice, Parameters({"pitch": "high"}))
    assert raised.value.message == {"name": "missing parameter", "pitch": "must be a number"}


NAMES = st.sampled_from([f.name for f in fields(InUrl)])


@given(st.dictionaries(NAMES, st.text() | st.lists(st.text(), min_size=2, max_size=3)))
def test_any_parameters_are_read_or_refused(texts: dict[str, str | list[str]]) -> None:
    wrong: dict[str, Any] = {}
    try:
        from_url(**texts)
    except JsonDataException as e:
        wrong = e.message
    assert set(wrong) <= set(texts)
    read = from_url(**{name: text for name, text in texts.items() if name not in wrong})
    assert all(isinstance(value, str) for value in (read.text, read.either))
    assert all(type(item) is int for item in [read.count, *read.items])


@given(
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.lists(st.integers(), min_size=1),
)
def test_numbers_survive_a_url_unchanged(count: int, share: float, flag: bool, items: list[int]) -> None:
    read = from_url(
        count=str(count), share=repr(share), flag=str(flag).lower(), items=[str(item) for item in items]
    )
    assert (read.count, read.share, read.flag, read.items) == (count, share, flag, items)
