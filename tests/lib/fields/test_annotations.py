"""Python's types in words, and the values that fit them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional

import pytest

from lib.fields.annotations import describe, fits, mismatch


@dataclass
class Voice:
    name: str


@pytest.mark.parametrize(
    ("annotation", "description"),
    [
        (str, "a string"),
        (int | None, "an integer or None"),
        (Optional[float], "a number or None"),  # noqa: UP045 - authors write it
        (bool, "True or False"),
        (dict[str, Any], "a dict"),
        (Literal["fast", 1], "one of 'fast', 1"),
        (list[int | str], "a list, each item an integer or a string"),
        (list[Any], "a list"),
        (list, "a list"),
        (Voice, "a Voice"),
        (type[Voice], "a subclass of Voice"),
        (type[Any], "a class"),
        (Callable[[int], int], "a function"),
        (AbstractAsyncContextManager[Any], "an async context manager"),
        (OSError, "an OSError"),
    ],
)
def test_descriptions(annotation: Any, description: str) -> None:
    assert describe(annotation) == description


@pytest.mark.parametrize(
    ("annotation", "value", "is_fit"),
    [
        (int, 1, True),
        (int, True, False),
        (float, 1, True),
        (float, False, False),
        (float, "1", False),
        (bool, 1, False),
        (Literal[1, "a"], True, False),
        (Literal[1, "a"], "a", True),
        (list[int], [1, 2], True),
        (list[int], (1, 2), True),
        (list[int], [1, None], False),
        (list[int | None], [1, None], True),
        (Any, object(), True),
        (str | None, None, True),
        (Voice, {"name": "alto"}, False),
        (Voice, Voice("alto"), True),
        (Path, "a", False),
        (type[Voice], Voice, True),
        (type[Voice], Path, False),
        (Callable[[], Any], print, True),
        (Callable[[], Any], 3, False),
        (AbstractAsyncContextManager[Any], nullcontext(), True),
    ],
)
def test_values_that_fit(annotation: Any, value: Any, is_fit: bool) -> None:
    assert fits(annotation, value) is is_fit


def test_a_mismatch_names_the_field_the_type_and_the_value() -> None:
    assert mismatch("limit", int | None, 3) is None
    assert mismatch("limit", int | None, "3") == "limit must be an integer or None, not '3'"
