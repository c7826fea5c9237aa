"""Whether a call of an author's function can work, as far as its signature shows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import pytest

from lib.fields.callables import accepts, call_problems, is_async, is_coroutine_function, parameters_of


def plain(word: str, times: int = 1) -> list[str]:
    return [word] * times


async def asynchronous(word: str, times: int = 1) -> list[str]:
    return [word] * times


def items(word: str, times: int = 1) -> Iterator[str]:
    yield word


async def async_items(word: str, times: int = 1) -> AsyncIterator[str]:
    yield word


class CallableModel:
    def __call__(self, word: str) -> str:
        return word


class AsyncModel:
    async def __call__(self, word: str) -> str:
        return word


@pytest.mark.parametrize(
    ("function", "gives_coroutine", "is_asynchronous"),
    [
        (plain, False, False),
        (asynchronous, True, True),
        (partial(asynchronous, "a"), True, True),
        (items, False, False),
        (async_items, False, True),
        (CallableModel, False, False),
        (CallableModel(), False, False),
        (AsyncModel, False, False),
        (AsyncModel(), True, True),
    ],
)
def test_kinds_of_functions(
    function: Callable[..., Any], gives_coroutine: bool, is_asynchronous: bool
) -> None:
    assert (is_coroutine_function(function), is_async(function)) == (gives_coroutine, is_asynchronous)


def test_numbers_of_arguments_and_keywords() -> None:
    assert accepts(plain, 1)
    assert not accepts(plain, 0)
    assert not accepts(plain, 3)
    assert accepts(plain, 0, "word")
    assert not accepts(plain, 0, "upload")
    assert accepts(dict.fromkeys, 1)


def test_a_function_without_a_signature_may_accept_anything() -> None:
    assert parameters_of(type) is None
    assert accepts(type, 1)


def test_problems_of_a_call() -> None:
    assert list(call_problems("parser", None, 1)) == []
    assert list(call_problems("parser", plain, 2)) == []
    assert list(call_problems("parser", plain, 0)) == ["parser can't be called with 0 arguments"]
    assert list(call_problems("parser", asynchronous, 3)) == [
        "parser is async: give a plain function",
        "parser can't be called with 3 arguments",
    ]
    assert list(call_problems("parser", asynchronous, 1, may_be_async=True)) == []
