"""Prompts of the benchmark."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lib.words import WORDS, some_words


@given(st.integers(0, 500))
def test_there_are_as_many_words_as_were_asked_for(count: int) -> None:
    words = some_words(count).split()
    assert len(words) == count
    assert set(words) <= set(WORDS)


def test_they_differ_each_time() -> None:
    assert len({some_words(30) for _ in range(100)}) == 100
