"""A Markov chain over words: text that reads almost like English, from nothing but a text.

Owns the splitting of text into tokens and the table of what follows what. It does no I/O.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator

# A word, with the space before it, or one other character. Joined, the tokens of a text are the text.
_TOKEN = re.compile(r" ?(?:[^\W_]+(?:['-][^\W_]+)*|[^\s])")

_SENTENCE_ENDS = (".", "!", "?")


class Chain:
    """What follows each pair of tokens in a text, and each single one where a pair is unknown.

    Raises `ValueError` for a text of fewer than three tokens.
    """

    def __init__(self, text: str) -> None:
        tokens = split(text)
        if len(tokens) < 3:
            raise ValueError("a text of at least three tokens is needed")
        self._after_pair: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        self._after_one: defaultdict[str, list[str]] = defaultdict(list)
        self._openings = [tokens[0]]
        # Around in a ring: so nothing is without a successor.
        for first, second, third in zip(
            tokens, tokens[1:] + tokens[:1], tokens[2:] + tokens[:2], strict=True
        ):
            self._after_pair[_key(first), _key(second)].append(third)
            self._after_one[_key(first)].append(second)
            if first.strip() in _SENTENCE_ENDS and second.strip().isalpha():
                self._openings.append(second)

    def generate(self, prompt: str, rng: random.Random) -> Iterator[str]:
        """Tokens without end that go on from the last words of `prompt`, or open a sentence.

        Each carries the space before it: the text is their concatenation.
        """
        last = [_key(token) for token in split(prompt)[-2:]]
        while True:
            token = rng.choice(self._successors(last))
            yield token
            last = [*last[-1:], _key(token)]

    def _successors(self, last: list[str]) -> list[str]:
        if len(last) == 2 and (last[0], last[1]) in self._after_pair:
            return self._after_pair[last[0], last[1]]
        if last and last[-1] in self._after_one:
            return self._after_one[last[-1]]
        return self._openings


def split(text: str) -> list[str]:
    """The tokens of `text`, in which any white space is as good as one space."""
    return _TOKEN.findall(" ".join(text.split()))


def _key(token: str) -> str:
    """A token as the table knows it: neither case nor the space before it matters."""
    return token.strip().lower()
