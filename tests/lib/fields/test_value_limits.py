"""Limits of values in words, and the items that are named because they are outside of them."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable
from typing import Annotated, Any, Optional

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.fields.json_error import WrongValue
from lib.fields.json_fields import reader_of
from lib.fields.schemas import Definitions
from tests.lib.fields.typed_examples import Point, Voice

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=5)]
Texts = Annotated[list[Text], msgspec.Meta(min_length=1, max_length=3)]
Voices = Annotated[list[Voice], msgspec.Meta(max_length=1)]
Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Step = Annotated[int, msgspec.Meta(gt=0, multiple_of=8)]
Crop = Optional[tuple[int, int, int, int]]  # noqa: UP045 - authors write it
# For unions at run time, which type checkers do not know of these.
ANY_TEXT: Any = Text
ANY_TEXTS: Any = Texts
ANY_VOICES: Any = Voices
ANY_STEP: Any = Step
VOICE = {"name": "a"}
STRING = "a string of 1 to 5 characters"
TEXTS = f"a list of 1 to 3 items, each item {STRING}"


def problem_of(annotation: Any, value: Any) -> Any:
    with pytest.raises(WrongValue) as refused:
        reader_of(annotation).read(value)
    return refused.value.problem


WRONG: list[tuple[Any, Any, Any]] = [
    (Text, 3, "must be a string"),
    (Text, "", "must have from 1 to 5 characters"),
    (ANY_TEXT | None, "", "must have from 1 to 5 characters"),
    (ANY_TEXT | None, 3, f"must be {STRING} or null"),
    (Texts, [1, "a", ""], {"0": "must be a string", "2": "must have from 1 to 5 characters"}),
    (Texts, [], "must have from 1 to 3 items"),
    (Texts, [1] * 4, "must have from 1 to 3 items"),
    (Texts, "a", f"must be a list, each item {STRING}"),
    (ANY_TEXTS | None, ["a"] * 4, "must have from 1 to 3 items"),
    (ANY_TEXTS | None, ["toolong"], {"0": "must have from 1 to 5 characters"}),
    (ANY_TEXTS | None, 3, f"must be ({TEXTS}) or null"),
    (
        list[Texts],
        [["a"], [], ["a", 1]],
        {"1": "must have from 1 to 3 items", "2": {"1": "must be a string"}},
    ),
    (dict[str, Text], {"a": "b", "c": ""}, {"c": "must have from 1 to 5 characters"}),
    (dict[Text, int], {"a": 1, "toolong": 2}, {"toolong": "its name must have from 1 to 5 characters"}),
    (dict[str, list[int]], {"a": [1], "c": [1, "b"]}, {"c": {"1": "must be an integer"}}),
    (tuple[int, Text], [1, ""], {"1": "must have from 1 to 5 characters"}),
    (tuple[list[int], str], ["a"], "must be a list of 2: (a list, each item an integer), a string"),
    (Crop, [1, 2, "3", 4], {"2": "must be an integer"}),
    (Crop, [1], "must be (a list of 4: an integer, an integer, an integer, an integer) or null"),
    (
        list[int] | list[str],
        [None],
        "must be (a list, each item an integer) or (a list, each item a string)",
    ),
    (Annotated[list[int], msgspec.Meta(max_length=1)], [1, 2], "must have at most 1 item"),
    (Annotated[list[int], msgspec.Meta(min_length=2)], [1], "must have at least 2 items"),
    (Annotated[list[int], msgspec.Meta(min_length=2, max_length=2)], [1], "must have exactly 2 items"),
    (Annotated[dict[str, int], msgspec.Meta(min_length=1)], {}, "must have at least 1 field"),
    (Annotated[bytes, msgspec.Meta(max_length=2)], "aGkh", "must have at most 2 bytes"),
    (Annotated[bytes, msgspec.Meta(max_length=2)], 3, "must be a string in Base64"),
    (Voices, [VOICE] * 2, "must have at most 1 item"),
    (ANY_VOICES | None, [VOICE] * 2, "must have at most 1 item"),
    (Voices, [{}], {"0": {"name": "missing parameter"}}),
    (Annotated[Point, msgspec.Meta(max_length=1)], {"x": 1, "y": 2}, "must have at most 1 field"),
    (Annotated[decimal.Decimal, msgspec.Meta(ge=0)], "-1", "must be at least 0"),
    (Percent, 100.5, "must be from 0 to 100"),
    (Percent, "3", "must be a number"),
    (Percent, float("nan"), "must be finite"),
    (list[Percent], [1, -1], {"1": "must be from 0 to 100"}),
    (Annotated[int | None, msgspec.Meta(ge=1)], 0, "must be at least 1"),
    (Step, 12, "must be a multiple of 8"),
    (Step, -4, "must be greater than 0 and be a multiple of 8"),
    (Step, "8", "must be an integer"),
    (ANY_STEP | None, "8", "must be an integer greater than 0 and a multiple of 8 or null"),
    (Annotated[str, msgspec.Meta(pattern="^a{2}$")], "b", "must match '^a{2}$'"),
    (Annotated[str, msgspec.Meta(pattern="^a{2}$")], 1, "must be a string"),
    (Annotated[datetime.datetime, msgspec.Meta(tz=True)], "2026-01-02T03:04:05", "must have a time zone"),
]


@pytest.mark.parametrize(("annotation", "value", "problem"), WRONG)
def test_what_is_wrong_is_said_of_the_item_that_is_wrong(annotation: Any, value: Any, problem: Any) -> None:
    assert problem_of(annotation, value) == problem


NESTED: list[tuple[Any, Callable[[Any, int], Any]]] = [
    (list[Texts], lambda item, i: [["a"]] * i + [["b", item]]),
    (dict[str, list[Text]], lambda item, i: {"x": ["a"] * i + [item]}),
    (list[tuple[int, Text]], lambda item, i: [[1, "a"]] * i + [[1, item]]),
    (list[dict[str, ANY_TEXT | None]], lambda item, i: [{"x": None}] * i + [{"x": item}]),
    (tuple[ANY_TEXTS | None, ...], lambda item, i: [None] * i + [[item]]),
    (Annotated[list[list[Text]], msgspec.Meta(max_length=100)], lambda item, i: [["a"]] * i + [[item]]),
]


@pytest.mark.parametrize(("annotation", "around"), NESTED)
@given(index=st.integers(0, 20), item=st.integers() | st.just("") | st.text(min_size=6))
def test_the_path_to_the_only_wrong_item_is_told(
    annotation: Any, around: Callable[[Any, int], Any], index: int, item: Any
) -> None:
    value, problem = around(item, index), problem_of(annotation, around(item, index))
    while not isinstance(problem, str):
        ((name, problem),) = problem.items()
        value = value[int(name) if isinstance(value, list) else name]
    assert value == item
    assert "from 1 to 5" in problem if isinstance(item, str) else "a string" in problem


METAS: list[tuple[Any, dict[str, Any]]] = [
    (int, {"gt": 0, "le": 9}),
    (float, {"ge": 0, "lt": 2.5}),
    (int, {"multiple_of": 3}),
    (str, {"min_length": 2, "max_length": 3}),
    (str, {"pattern": "a"}),
    (list[int], {"min_length": 1, "max_length": 2}),
    (dict[str, int], {"max_length": 1}),
    (set[int], {"min_length": 2}),
]


@pytest.mark.parametrize(("kind", "limits"), METAS)
@given(value=st.integers(-5, 12) | st.text("ab", max_size=4) | st.lists(st.integers(), max_size=4))
def test_a_limit_is_named_where_msgspec_finds_one_broken(
    kind: Any, limits: dict[str, Any], value: Any
) -> None:
    limited = Annotated[kind, msgspec.Meta(**limits)]
    try:
        msgspec.convert(value, limited)
    except msgspec.ValidationError:
        assert problem_of(limited, value).startswith("must ")
        return
    assert reader_of(limited).read(value) == reader_of(kind).read(value)


@pytest.mark.parametrize(
    ("annotation", "more"),
    [
        (Voices, {"type": "array", "maxItems": 1}),
        (Annotated[dict[str, Voice], msgspec.Meta(min_length=1)], {"type": "object", "minProperties": 1}),
        (Texts, {"type": "array", "minItems": 1, "maxItems": 3}),
        (Percent, {"type": "number", "minimum": 0, "maximum": 100}),
    ],
)
def test_limits_are_in_the_schema(annotation: Any, more: dict[str, Any]) -> None:
    schema = reader_of(annotation).schema(Definitions())
    assert schema.items() >= more.items()
