"""The bodies of functions' results, of every usual kind."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import io
import json
import types
import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pydantic
import pytest
from PIL import Image

from lib.declare.results import body_of, to_json


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Voice:
    name: str
    pitches: Any = field(default_factory=lambda: np.array([1.0, 2.0]))


class Prompt(pydantic.BaseModel):
    text: str
    at: datetime.date


class Tensor:
    """Has the method of a torch tensor that is used; torch itself is too large for a test."""

    def __init__(self, values: list[float]) -> None:
        self._values = values

    def tolist(self) -> list[float]:
        return self._values


DAY = datetime.date(2026, 1, 2)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (None, None),
        ("ä", "ä"),
        ((1, 2.5), [1, 2.5]),
        (Voice("alto"), {"name": "alto", "pitches": [1.0, 2.0]}),
        ([Voice("alto", Colour.RED)], [{"name": "alto", "pitches": "red"}]),
        (Prompt(text="a", at=DAY), {"text": "a", "at": "2026-01-02"}),
        ({"a": [Prompt(text="a", at=DAY)]}, {"a": [{"text": "a", "at": "2026-01-02"}]}),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        ({"a": np.int8(3)}, {"a": 3}),
        (np.datetime64("2026-01-02"), "2026-01-02"),
        (Tensor([0.5]), [0.5]),
        (datetime.datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T03:04:05"),
        (DAY, "2026-01-02"),
        (datetime.timedelta(seconds=1.5), "PT1.5S"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (decimal.Decimal("1.10"), "1.10"),
        (Colour.RED, "red"),
        ({"a"}, ["a"]),
        (frozenset({1}), [1]),
        (collections.deque([1]), [1]),
        ({"a": 1}.keys(), ["a"]),
        (range(2), [0, 1]),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        (collections.UserDict({"a": 1}), {"a": 1}),
        ([b"hi"], ["aGk="]),
    ],
)
def test_what_has_an_obvious_form_is_json(result: Any, said: Any) -> None:
    body = body_of(result)
    assert (body.content_type, json.loads(body.content)) == ("application/json", {"result": said})


@pytest.mark.parametrize(
    "result", [b"\x00a", bytearray(b"\x00a"), memoryview(b"\x00a"), io.BytesIO(b"\x00a")]
)
def test_bytes_are_sent_as_they_are(result: Any) -> None:
    assert body_of(result) == ("application/octet-stream", b"\x00a")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "1", "P", "CMYK", "F", "YCbCr"])
def test_an_image_is_sent_as_png(mode: str) -> None:
    body = body_of(Image.new(mode, (3, 2)))
    assert body.content_type == "image/png"
    assert Image.open(io.BytesIO(body.content)).size == (3, 2)


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG", "GIF"])
def test_an_image_from_a_file_keeps_its_format(form: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (3, 2)).save(file, form)
    body = body_of(Image.open(file))
    assert body.content_type == f"image/{form.lower()}"
    assert Image.open(io.BytesIO(body.content)).format == form


@pytest.mark.parametrize(
    "value", [float("nan"), np.array([np.nan]), np.array([1j]), object(), object, Voice, {1: {2: object()}}]
)
def test_what_has_no_form_in_json_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        to_json(value)


def test_what_has_no_end_is_refused() -> None:
    class Endless:
        def tolist(self) -> Any:
            return Endless()

    with pytest.raises(ValueError, match="too deeply"):
        to_json(Endless())
