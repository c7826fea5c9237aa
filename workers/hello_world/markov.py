"""A Markov chain over words: generates text that resembles a given text.

Owns the splitting of text into tokens and the tables of successors. Does no I/O.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator

# A word with the space before it, or one other character. The concatenated tokens of a text are the text.
_TOKEN = re.compile(r" ?(?:[^\W_]+(?:['-][^\W_]+)*|[^\s])")

_SENTENCE_ENDS = (".", "!", "?")


class Chain:
    """The successors of each pair of tokens in a text, and of each single token.

    Single tokens are used for pairs that the text doesn't contain. Raises `ValueError` for a text of fewer
    than three tokens.
    """

    def __init__(self, text: str) -> None:
        tokens = split(text)
        if len(tokens) < 3:
            raise ValueError("the text must have at least three tokens")
        self._after_pair: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        self._after_one: defaultdict[str, list[str]] = defaultdict(list)
        self._openings = [tokens[0]]
        # The text's end is followed by its beginning, so that every token has a successor.
        for first, second, third in zip(
            tokens, tokens[1:] + tokens[:1], tokens[2:] + tokens[:2], strict=True
        ):
            self._after_pair[_key(first), _key(second)].append(third)
            self._after_one[_key(first)].append(second)
            if first.strip() in _SENTENCE_ENDS and second.strip().isalpha():
                self._openings.append(second)

    def generate(self, prompt: str, rng: random.Random) -> Iterator[str]:
        """Yield tokens without end, which continue `prompt` or, if it ends in unknown words, open a sentence.

        Each token includes the space before it: the text is their concatenation.
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
    """The tokens of `text`. Any white space counts as one space."""
    return _TOKEN.findall(" ".join(text.split()))


def _key(token: str) -> str:
    """The key of a token in the tables, without case and without the space before it."""
    return token.strip().lower()
