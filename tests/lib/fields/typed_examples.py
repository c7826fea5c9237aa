"""Classes and annotations of every supported kind, for tests of reading JSON."""

from __future__ import annotations

import datetime
import decimal
import enum
import uuid
from dataclasses import InitVar, dataclass, field
from typing import Annotated, Any, ClassVar, Generic, Literal, NewType, Optional, TypeVar

import msgspec
import pydantic
from typing_extensions import NotRequired, TypeAliasType, TypedDict

from lib.fields.json_error import JsonDataException

T = TypeVar("T")
UTC = datetime.timezone.utc
Tokens = NewType("Tokens", int)
Count = TypeAliasType("Count", int)
Counts = TypeAliasType("Counts", list[Count] | None)
Pair = TypeAliasType("Pair", tuple[T, T], type_params=(T,))


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Mixed(enum.Enum):
    ONE = 1
    WORD = "word"


@dataclass
class Voice:
    name: str
    pitch: float = 1.0
    tags: list[str] = field(default_factory=list[str])


@dataclass
class Even:
    number: int

    def __post_init__(self) -> None:
        if self.number % 2:
            raise ValueError("the number must be even")


@dataclass
class Upper:
    """Reads itself."""

    text: str

    @classmethod
    def from_json_msg(cls, json_msg: dict[str, Any]) -> Upper:
        if not isinstance(json_msg.get("text"), str):
            raise JsonDataException({"text": "must be shouted"})
        return cls(json_msg["text"].upper())


@dataclass
class Tree:
    name: str
    children: list[Tree] = field(default_factory=list["Tree"])


@dataclass
class Box(Generic[T]):
    content: T
    lid: bool = True
    more: list[T] | None = None


@dataclass
class Scaled:
    """Made from values that it doesn't keep."""

    number: int
    factor: InitVar[int]
    offset: InitVar[int] = 0
    shared: ClassVar[int] = 1

    def __post_init__(self, factor: int, offset: int) -> None:
        self.number = self.number * factor + offset


class Point(TypedDict):
    x: int
    y: NotRequired[float]


class Prompt(pydantic.BaseModel):
    text: str
    times: int = pydantic.Field(default=1, ge=1)
    colour: Colour = Colour.RED


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    n: int


# Each with a value that it accepts, as JSON has it and as a function gets it.
ACCEPTED: list[tuple[Any, Any, Any]] = [
    (int, 3, 3),
    (int, 2**70, 2**70),
    (float, 3, 3.0),
    (float, 0.5, 0.5),
    (str, "a", "a"),
    (bool, True, True),
    (None, None, None),
    (Any, [object], [object]),
    (Tokens, 3, 3),
    (Count, 3, 3),
    (Counts, [3], [3]),
    (Counts, None, None),
    (Pair[int], [1, 2], (1, 2)),
    (bytes, "aGk=", b"hi"),
    (datetime.datetime, "2026-01-02T03:04:05Z", datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
    (datetime.date, "2026-01-02", datetime.date(2026, 1, 2)),
    (datetime.time, "03:04:05", datetime.time(3, 4, 5)),
    (datetime.timedelta, "PT1.5S", datetime.timedelta(seconds=1.5)),
    (uuid.UUID, "12345678123456781234567812345678", uuid.UUID("12345678123456781234567812345678")),
    (decimal.Decimal, "1.10", decimal.Decimal("1.10")),
    (int | None, None, None),
    (Optional[float], 1, 1.0),  # noqa: UP045 - authors write it
    (int | str, "a", "a"),
    (float | int, 3, 3),
    (float | None, 0.5, 0.5),
    (list, [1, "a"], [1, "a"]),
    (list[int], [1, 2], [1, 2]),
    (list[float], [1, 0.5], [1.0, 0.5]),
    (list[int | None], [1, None], [1, None]),
    (set[int], [1, 1], {1}),
    (tuple[int, str], [1, "a"], (1, "a")),
    (tuple[float, ...], [1, 2], (1.0, 2.0)),
    (dict, {"a": [1]}, {"a": [1]}),
    (dict[str, int], {"a": 1}, {"a": 1}),
    (dict[int, float], {"1": 2}, {1: 2.0}),
    (dict[str, Voice], {"a": {"name": "b"}}, {"a": Voice("b")}),
    (
        dict[Mixed, Voice],
        {"word": {"name": "b"}, "1": {"name": "c"}},
        {Mixed.WORD: Voice("b"), Mixed.ONE: Voice("c")},
    ),
    (Literal["fast", 1, None], 1, 1),
    (Literal[True, 1.5], 1.5, 1.5),
    (Literal[Colour.RED], "red", Colour.RED),
    (list[Literal[1.5]], [1.5], [1.5]),
    (Colour, "blue", Colour.BLUE),
    (Size, 2, Size.LARGE),
    (Mixed, "word", Mixed.WORD),
    (list[Mixed], [1, "word"], [Mixed.ONE, Mixed.WORD]),
    (Colour | int, 3, 3),
    (Annotated[int, msgspec.Meta(ge=1)], 1, 1),
    (Annotated[int, pydantic.Field(ge=1)], 1, 1),
    (Voice, {"name": "a", "pitch": 2}, Voice("a", 2.0)),
    (Voice | None, {"name": "a"}, Voice("a")),
    (Voice | dict[str, Any], {"name": "a"}, Voice("a")),
    (list[Voice], [{"name": "a"}], [Voice("a")]),
    (tuple[Voice, int], [{"name": "a"}, 1], (Voice("a"), 1)),
    (Even, {"number": 2}, Even(2)),
    (Scaled, {"number": 2, "factor": 3}, Scaled(2, 3)),
    (Scaled, {"number": 2, "factor": 3, "offset": 4}, Scaled(2, 3, 4)),
    (Upper, {"text": "a"}, Upper("A")),
    (list[Upper], [{"text": "a"}], [Upper("A")]),
    (Tree, {"name": "a", "children": [{"name": "b"}]}, Tree("a", [Tree("b")])),
    (Box, {"content": object}, Box(object)),
    (Box[int], {"content": 1, "more": [2]}, Box(1, more=[2])),
    (Box[Box[float]], {"content": {"content": 1}}, Box(Box(1.0))),
    (Point, {"x": 1}, {"x": 1}),
    (list[Point], [{"x": 1, "y": 2}], [{"x": 1, "y": 2.0}]),
    (Prompt, {"text": "a", "colour": "blue"}, Prompt(text="a", colour=Colour.BLUE)),
    (Prompt | None, None, None),
    (list[Prompt], [{"text": "a"}], [Prompt(text="a")]),
    (Strict, {"n": 1}, Strict(n=1)),
    (object, {"a": 1}, {"a": 1}),  # a type without a reader accepts every value
]

NOT_A_NAME = {"name": "missing parameter"}
# Each with a value that it refuses, and the problem.
REFUSED: list[tuple[Any, Any, Any]] = [
    (int, "3", "must be an integer"),
    (int, 3.0, "must be an integer"),
    (int, True, "must be an integer"),
    (int, None, "must be an integer"),
    (float, "3", "must be a number"),
    (float, True, "must be a number"),
    (float, float("nan"), "must be finite"),
    (float, float("inf"), "must be finite"),
    (float, 10**400, "must be finite"),
    (float | None, float("nan"), "must be finite"),
    (list[float], [1.0, float("nan")], {"1": "must be finite"}),
    (Count, "3", "must be an integer"),
    (Counts, ["3"], {"0": "must be an integer"}),
    (Counts, "3", "must be (a list, each item an integer) or null"),
    (Pair[int], [1, "2"], {"1": "must be an integer"}),
    (Pair[int], [1], "must be a list of 2: an integer, an integer"),
    (str, 3, "must be a string"),
    (bool, 1, "must be true or false"),
    (bytes, "a", "must be a string in Base64"),
    (datetime.datetime, "yesterday", "must be a date and time (RFC 3339)"),
    (datetime.datetime, 3, "must be a date and time (RFC 3339)"),
    (uuid.UUID, "a", "must be a UUID"),
    (decimal.Decimal, "NaN", "must be finite"),
    (int | None, "3", "must be an integer or null"),
    (list, {}, "must be a list"),
    (list[int], [1, "2", 3, None], {"1": "must be an integer", "3": "must be an integer"}),
    (list[int], "12", "must be a list, each item an integer"),
    (set[Any], [1, {}, []], dict.fromkeys(("1", "2"), "must be neither a list nor an object")),
    (tuple[int, str], [1], "must be a list of 2: an integer, a string"),
    (dict[str, int], {"a": "1", "b": 1}, {"a": "must be an integer"}),
    (dict[str, int], [], "must be an object, each value an integer"),
    (
        dict[Mixed, Voice],
        {"b": {"name": "c"}, "1": {"name": "c"}},
        {"b": "its name must be one of 1, 'word'"},
    ),
    (dict[str, Voice], {"a": {}}, {"a": NOT_A_NAME}),
    (Literal["fast", 1], "slow", "must be one of 'fast', 1"),
    (Literal[1], True, "must be one of 1"),
    (Literal[1], 1.0, "must be one of 1"),
    (Colour, "green", "must be one of 'red', 'blue'"),
    (Colour, [], "must be one of 'red', 'blue'"),
    (Size, True, "must be one of 1, 2"),
    (Size, 1.0, "must be one of 1, 2"),
    (list[Mixed], [2], {"0": "must be one of 1, 'word'"}),
    (Annotated[int, msgspec.Meta(ge=1, lt=9)], 0, "must be at least 1 and less than 9"),
    (Annotated[int, msgspec.Meta(ge=1, lt=9)], "3", "must be an integer"),
    (
        list[Annotated[int, msgspec.Meta(ge=1, lt=9)]],
        "3",
        "must be a list, each item an integer at least 1 and less than 9",
    ),
    (Annotated[int, pydantic.Field(ge=1)], 0, "must be greater than or equal to 1"),
    (Voice, "a", "must be an object"),
    (
        Voice,
        {"pitch": "high", "tags": [1]},
        {**NOT_A_NAME, "pitch": "must be a number", "tags": {"0": "must be a string"}},
    ),
    (Voice | None, {}, NOT_A_NAME),
    (Voice | None, 3, "must be an object or null"),
    (list[Voice], [{"name": "a"}, {}, 3], {"1": NOT_A_NAME, "2": "must be an object"}),
    (Even, {"number": 1}, "the number must be even"),
    (Scaled, {"number": 2, "offset": 4, "shared": 2}, {"factor": "missing parameter"}),
    (Upper, {}, {"text": "must be shouted"}),
    (Tree, {"name": "a", "children": [{"children": []}]}, {"children": {"0": NOT_A_NAME}}),
    (Box[int], {"lid": 1}, {"content": "missing parameter", "lid": "must be true or false"}),
    (
        Box[int],
        {"content": "a", "more": ["b"]},
        {"content": "must be an integer", "more": {"0": "must be an integer"}},
    ),
    (Box[Voice], {"content": {}}, {"content": NOT_A_NAME}),
    (Point, {"y": "a"}, {"x": "missing parameter", "y": "must be a number"}),
    (
        Prompt,
        {"times": 0, "colour": 3},
        {
            "text": "missing parameter",
            "times": "must be greater than or equal to 1",
            "colour": "must be one of 'red', 'blue'",
        },
    ),
    (Prompt, [], "must be an object"),
    (list[Prompt], [{"text": "a"}, {"text": 1}], {"1": {"text": "must be a string"}}),
    (Strict, {"n": "1", "m": 1}, {"n": "must be an integer", "m": "unknown parameter"}),
]
