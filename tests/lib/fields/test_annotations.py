"""Types in the words of JSON and of Python, and the values that fit them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional

import pytest

from lib.fields.annotations import JSON, PYTHON


@dataclass
class Voice:
    name: str


@pytest.mark.parametrize(
    ("annotation", "in_json", "in_python"),
    [
        (str, "a string", "a string"),
        (int | None, "an integer or null", "an integer or None"),
        (Optional[float], "a number or null", "a number or None"),  # noqa: UP045 - authors write it
        (bool, "true or false", "True or False"),
        (dict[str, Any], "an object", "a dict"),
        (Literal["fast", 1], "one of 'fast', 1", "one of 'fast', 1"),
        (
            list[int | str],
            "a list, each item an integer or a string",
            "a list, each item an integer or a string",
        ),
        (list[Any], "a list", "a list"),
        (list, "a list", "a list"),
        (Voice, "an object", "a Voice"),
    ],
)
def test_descriptions(annotation: Any, in_json: str, in_python: str) -> None:
    assert (JSON.describe(annotation), PYTHON.describe(annotation)) == (in_json, in_python)


@pytest.mark.parametrize(
    ("annotation", "description"),
    [
        (type[Voice], "a subclass of Voice"),
        (type[Any], "a class"),
        (Callable[[int], int], "a function"),
        (AbstractAsyncContextManager[Any], "an async context manager"),
        (OSError, "an OSError"),
    ],
)
def test_descriptions_of_pythons_own_types(annotation: Any, description: str) -> None:
    assert PYTHON.describe(annotation) == description


@pytest.mark.parametrize("dialect", [JSON, PYTHON])
@pytest.mark.parametrize(
    ("annotation", "value", "fits"),
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
        (list[int], [1, None], False),
        (list[int | None], [1, None], True),
        (Any, object(), True),
        (str | None, None, True),
    ],
)
def test_checks_that_both_dialects_share(dialect: Any, annotation: Any, value: Any, fits: bool) -> None:
    assert dialect.fits(annotation, value) is fits


@pytest.mark.parametrize(
    ("annotation", "value", "in_json", "in_python"),
    [
        (list[int], (1, 2), False, True),
        (Voice, {"name": "alto"}, True, False),
        (Voice, Voice("alto"), False, True),
        (Path, "a", True, False),
        (type[Voice], Voice, True, True),
        (type[Voice], Path, True, False),
        (Callable[[], Any], print, True, True),
        (Callable[[], Any], 3, True, False),
        (AbstractAsyncContextManager[Any], nullcontext(), True, True),
    ],
)
def test_checks_in_which_the_dialects_differ(
    annotation: Any, value: Any, in_json: bool, in_python: bool
) -> None:
    assert (JSON.fits(annotation, value), PYTHON.fits(annotation, value)) == (in_json, in_python)


def test_a_mismatch_names_the_field_the_type_and_the_value() -> None:
    assert PYTHON.mismatch("limit", int | None, 3) is None
    assert PYTHON.mismatch("limit", int | None, "3") == "limit must be an integer or None, not '3'"
