from __future__ import annotations

import random
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.hello_world.markov import Chain, split
from workers.hello_world.model_server import CORPUS

TEXT = "The cat sat. The dog ran. The cat ate the fish, and the dog ate the bone!"
FOLDED = [token.strip().lower() for token in split(TEXT)]


def generate(text: str, prompt: str, count: int, seed: int = 0) -> list[str]:
    return list(islice(Chain(text).generate(prompt, random.Random(seed)), count))


def test_the_concatenated_tokens_are_the_text() -> None:
    text = '"Curiouser and curiouser!" cried Alice (she couldn\'t--daisy-chain x_y) na\u00efve 4.5'

    assert "".join(split(text)) == text
    assert split("It's  a\ndaisy-chain, no?") == ["It's", " a", " daisy-chain", ",", " no", "?"]


@given(st.text())
def test_only_white_space_is_lost_in_splitting(text: str) -> None:
    assert "".join("".join(split(text)).split()) == "".join(text.split())


def test_the_text_continues_the_last_two_words_if_they_are_known() -> None:
    assert generate(TEXT, "nobody knows why THE  dog", 2) in ([" ran", "."], [" ate", " the"])
    assert generate(TEXT, "cat ate the", 1) in ([" fish"], [" bone"])
    assert generate(TEXT, "the fish", 3) == [",", " and", " the"]


def test_it_continues_the_last_word_if_only_that_is_known() -> None:
    assert generate(TEXT, "zebra fish", 1) == [","]
    assert generate(TEXT, "fish", 1) == [","]


@pytest.mark.parametrize("prompt", ["", " \n", "zebra", "!!! zebra zebra"])
def test_it_begins_a_sentence_if_no_word_is_known(prompt: str) -> None:
    assert {generate(TEXT, prompt, 1, seed)[0].strip() for seed in range(20)} == {"The"}


PROMPTS = st.lists(st.sampled_from([*FOLDED, "THE", "zebra", "!!!"]), max_size=6).map(" ".join)


@given(st.text() | PROMPTS, st.integers())
def test_every_three_generated_tokens_follow_each_other_in_the_text(prompt: str, seed: int) -> None:
    ring = FOLDED + FOLDED[:2]
    known = set(zip(ring, ring[1:], ring[2:], strict=False))

    tokens = [t.strip().lower() for t in generate(TEXT, prompt, 50, seed)]

    assert len(tokens) == 50
    # The first pair may be unknown, while its words are known.
    assert set(zip(tokens[1:], tokens[2:], tokens[3:], strict=False)) <= known


def test_a_text_with_fewer_than_three_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="three tokens"):
        Chain("Too short")


def test_the_included_text_gives_a_different_answer_each_time() -> None:
    text = CORPUS.read_text(encoding="utf-8")

    assert 15_000 < len(text.encode()) < 40_000
    assert len({tuple(generate(text, "Alice", 60, seed)) for seed in range(10)}) == 10
