"""Payloads into the keyword arguments of functions."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import pydantic
import pytest

from lib.fields.arguments import Arguments
from lib.fields.json_error import JsonDataException
from lib.fields.unknown_fields import MAX_HINTS, MAX_LOGGED, unknown_fields_refused
from lib.fields.url_parameters import Parameters

if TYPE_CHECKING:
    from fractions import Fraction


@dataclass
class Voice:
    name: str
    pitch: float = 1.0


class Prompt(pydantic.BaseModel):
    text: str
    times: int = pydantic.Field(default=1, alias="repeat")


def plain(word: str, times: int = 1, mode: str = None) -> None: ...  # type: ignore[assignment] # noqa: RUF013 - as authors write it


def of_voice(voice: Voice) -> None: ...


def of_prompt(prompt: Prompt) -> None: ...


def of_count(count: Annotated[int, pydantic.Field(ge=1)]) -> None: ...


def maybe_of_count(count: Annotated[int, pydantic.Field(ge=1)] | None = None) -> None: ...


def of_words(words: Annotated[list[str], pydantic.Field(min_length=1)]) -> None: ...


def of_noted(prompt: Annotated[Prompt, pydantic.Field(description="what to say")]) -> None: ...


def of_name(name: Voice) -> None: ...


def maybe_of_voice(voice: Voice | None = None) -> None: ...


def of_text_or_voice(prompt: str | Voice) -> None: ...


def of_number_or_voice(n: int | Voice) -> None: ...


def of_voices(voices: Voice | list[Voice]) -> None: ...


def of_text_or_voice_by_field(name: str | Voice) -> None: ...


def of_two(voice: Voice, prompt: Prompt) -> None: ...


def anything(word: Any, other=None) -> None: ...  # type: ignore[no-untyped-def]


def half_known(amount: Fraction, times: int) -> None: ...


class Model:
    def __init__(self, word: str) -> None: ...

    def __call__(self, times: int) -> None: ...

    def method(self, voice: Voice) -> None: ...


@functools.wraps(plain)
def wrapper(*args: Any, **kwargs: Any) -> None: ...


def read(function: Callable[..., Any], payload: dict[str, Any]) -> dict[str, Any]:
    return Arguments("/route function", function).read(payload)


def problems(function: Callable[..., Any], payload: dict[str, Any]) -> dict[str, Any]:
    with pytest.raises(JsonDataException) as refused:
        read(function, payload)
    return refused.value.message


ARGUMENTS: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
    (plain, {"word": "a"}, {"word": "a"}),
    (plain, {"word": "a", "mode": None}, {"word": "a", "mode": None}),
    (wrapper, {"word": "a", "times": 2}, {"word": "a", "times": 2}),
    (functools.partial(plain, "a"), {"times": 2}, {"times": 2}),
    (Model, {"word": "a"}, {"word": "a"}),
    (Model("a"), {"times": 2}, {"times": 2}),
    (Model("a").method, {"name": "b"}, {"voice": Voice("b")}),
    (of_voice, {"voice": {"name": "a"}}, {"voice": Voice("a")}),
    (of_voice, {"name": "a", "pitch": 2}, {"voice": Voice("a", 2.0)}),
    (of_voice, {"voice": Voice("a")}, {"voice": Voice("a")}),
    (of_voice, {"voice": {"name": "a"}, "more": 1}, {"voice": Voice("a")}),
    (of_name, {"name": "a"}, {"name": Voice("a")}),
    (of_prompt, {"text": "a", "repeat": 2}, {"prompt": Prompt.model_validate({"text": "a", "repeat": 2})}),
    (of_count, {"count": 2}, {"count": 2}),
    (of_count, Parameters(count="2"), {"count": 2}),
    (maybe_of_count, {"count": 2}, {"count": 2}),
    (maybe_of_count, {}, {}),
    (of_words, {"words": ["a"]}, {"words": ["a"]}),
    (of_noted, {"text": "a"}, {"prompt": Prompt(text="a")}),
    (of_noted, {"prompt": {"text": "a"}}, {"prompt": Prompt(text="a")}),
    (maybe_of_voice, {}, {}),
    (maybe_of_voice, {"voice": None}, {"voice": None}),
    (maybe_of_voice, {"name": "a"}, {"voice": Voice("a")}),
    (of_text_or_voice, {"prompt": "hi"}, {"prompt": "hi"}),
    (of_text_or_voice, {"prompt": {"name": "a"}}, {"prompt": Voice("a")}),
    (of_text_or_voice, {"name": "a"}, {"prompt": Voice("a")}),
    (of_text_or_voice_by_field, {"name": "a"}, {"name": Voice("a")}),
    (of_number_or_voice, {"n": 3}, {"n": 3}),
    (of_number_or_voice, Parameters(n="3"), {"n": 3}),
    (of_voices, {"voices": [{"name": "a"}]}, {"voices": [Voice("a")]}),
    (of_voices, {"voices": {"name": "a"}}, {"voices": Voice("a")}),
    (of_voices, {"name": "a"}, {"voices": Voice("a")}),
    (
        of_two,
        {"voice": {"name": "a"}, "prompt": {"text": "b"}},
        {"voice": Voice("a"), "prompt": Prompt(text="b")},
    ),
    (anything, {"word": object, "other": [1]}, {"word": object, "other": [1]}),
    (plain, Parameters(word="3", times="3"), {"word": "3", "times": 3}),
    (of_voice, Parameters(name="3", pitch="3"), {"voice": Voice("3", 3.0)}),
]


@pytest.mark.parametrize(("function", "payload", "arguments"), ARGUMENTS)
def test_arguments_of_a_payload(
    function: Callable[..., Any], payload: dict[str, Any], arguments: dict[str, Any]
) -> None:
    assert read(function, payload) == arguments


@pytest.mark.parametrize(
    ("function", "payload", "said"),
    [
        (plain, {"times": "3"}, {"word": "missing parameter", "times": "must be an integer"}),
        (plain, {"word": 1, "mode": 2}, {"word": "must be a string", "mode": "must be a string or null"}),
        (of_voice, {"pitch": "a"}, {"name": "missing parameter", "pitch": "must be a number"}),
        (of_voices, {"voices": [3]}, {"name": "missing parameter"}),
        (of_voice, {"voice": "a"}, {"name": "missing parameter"}),
        (of_voice, {"voice": {}}, {"voice": {"name": "missing parameter"}}),
        (of_name, {"name": {"name": "a"}}, {"name": "must be a string"}),
        (of_voice, {}, {"name": "missing parameter"}),
        (of_count, {}, {"count": "missing parameter"}),
        (of_count, {"count": 0}, {"count": "must be greater than or equal to 1"}),
        (maybe_of_count, {"count": 0}, {"count": "must be valid or null"}),
        (of_prompt, {"repeat": "x"}, {"text": "missing parameter", "repeat": "must be an integer"}),
        (
            of_two,
            {"voice": {}, "prompt": {"text": 1}},
            {"voice": {"name": "missing parameter"}, "prompt": {"text": "must be a string"}},
        ),
        (plain, Parameters(word="a", times="x"), {"times": "must be an integer"}),
    ],
)
def test_every_wrong_field_is_named(
    function: Callable[..., Any], payload: dict[str, Any], said: dict[str, Any]
) -> None:
    assert problems(function, payload) == said


def test_variable_keywords_are_checked_by_their_annotation() -> None:
    def variable(first: int, /, second: int = 2, *more: int, third: int, **others: int) -> None: ...

    function = functools.partial(variable, 1)
    assert read(function, {"third": 3, "fourth": 4, "first": 5}) == {"third": 3, "fourth": 4, "first": 5}
    assert problems(function, {"fourth": "x"}) == {
        "third": "missing parameter",
        "fourth": "must be an integer",
    }


def test_an_annotation_that_can_not_be_resolved_is_logged_and_not_checked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert read(half_known, {"amount": "any", "times": 1}) == {"amount": "any", "times": 1}
    assert "/route function: the annotation of amount can't be resolved" in caplog.text
    assert problems(half_known, {"amount": "any", "times": "x"}) == {"times": "must be an integer"}


# Unknown fields


@pytest.mark.parametrize(
    ("function", "payload", "name", "owner"),
    [
        (plain, {"word": "a", "tmies": 3}, "tmies", "/route function"),
        (of_voice, {"name": "a", "ptich": 3}, "ptich", "Voice"),
        (of_two, {"voice": {"name": "a", "ptich": 3}, "prompt": {"text": "a"}}, "ptich", "Voice"),
        (of_prompt, {"text": "a", "repaet": 3}, "repaet", "Prompt"),
    ],
)
def test_unknown_fields_are_ignored_and_logged_once_or_refused(
    function: Callable[..., Any],
    payload: dict[str, Any],
    name: str,
    owner: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hint = {"tmies": "times", "ptich": "pitch", "repaet": "repeat"}[name]
    payload = {**payload, f"{name}_": 1} if function is plain else payload
    arguments = Arguments("/route function", function)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert name not in str(arguments.read(payload))
    lines = [line for line in caplog.messages if f"{name!r} is" in line]
    assert len(lines) <= 1  # a class's fields are the same for all tests
    if function is plain:
        assert lines == [f"{owner}: the unknown field {name!r} is ignored: did you mean {hint!r}?"]
    with unknown_fields_refused(), pytest.raises(JsonDataException) as refused:
        arguments.read(payload)
    assert f"'{name}': \"unknown parameter: did you mean '{hint}'?\"" in str(refused.value.message)


def test_only_so_many_names_of_a_client_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    arguments = Arguments("/route function", plain)
    with caplog.at_level(logging.INFO):
        for number in range(2 * MAX_LOGGED):
            arguments.read({"word": "a", f"\n{number}" + "x" * 1000: 1})
    assert len(caplog.messages) == MAX_LOGGED
    assert all(len(line) < 200 and "\n" not in line for line in caplog.messages)


def test_hints_are_looked_for_only_for_so_many_names() -> None:
    names = [f"times{number}" for number in range(2 * MAX_HINTS)]
    with unknown_fields_refused(), pytest.raises(JsonDataException) as refused:
        read(plain, {"word": "a", **dict.fromkeys(names, 1)})
    assert list(refused.value.message) == names
    said = list(refused.value.message.values())
    assert said[:MAX_HINTS] == ["unknown parameter: did you mean 'times'?"] * MAX_HINTS
    assert said[MAX_HINTS:] == ["unknown parameter"] * MAX_HINTS
