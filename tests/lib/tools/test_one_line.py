from __future__ import annotations

import pytest

from lib.tools.one_line import shorten


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", ""), ("12345", "12345"), ("123456", "1234…"), (" 1\n 2\t3 ", "1 2 3")],
)
def test_a_text_is_one_line_of_at_most_the_limit(text: str, expected: str) -> None:
    assert shorten(text, 5) == expected
