"""Random words for prompts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lib.words import WORDS, some_words


@given(st.integers(0, 500))
def test_the_number_of_words_is_as_requested(count: int) -> None:
    words = some_words(count).split()
    assert len(words) == count
    assert set(words) <= set(WORDS)


def test_each_call_returns_other_words() -> None:
    assert len({some_words(30) for _ in range(100)}) == 100


def test_prompts_begin_differently() -> None:
    """Servers keep the beginnings of prompts, in blocks of 16 tokens or more, and reuse them."""
    assert len({some_words(8) for _ in range(2000)}) == 2000
