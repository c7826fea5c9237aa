from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.runtime.excerpt import excerpt

CUT_URL = "GET https://b.s3.x/o?X-Amz-Credential=***&X-Amz-Date=2&X-Amz-Signature=***#f"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain  text\r\n of two lines", "plain text of two lines"),
        ("\x1b[2m12:00\x1b[0m \x1b[32m INFO\x1b[0m Connected", "12:00 INFO Connected"),
        ("a\x07b\x1bc\u202ed", "a\ufffdb\ufffdc\ufffdd"),
        ("--api-key abc --port 1", "--api-key *** --port 1"),
        (
            "non-default args: {'api_key': ['abc'], 'port': 1}",
            "non-default args: {'api_key': ['***'], 'port': 1}",
        ),
        ('{"token": "abc", "max_tokens": 5}', '{"token": "***", "max_tokens": 5}'),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("HF_TOKEN=hf_0123456789", "HF_TOKEN=***"),
        ("no access with hf_0123456789abc", "no access with hf_***"),
        ("incorrect key sk-proj-0123456789", "incorrect key sk-***"),
        ("api_key=['abc', 'def'], port=1", "api_key=['***'], port=1"),
        (r'{"sent": "{\"api_key\": \"abc\"}"}', r'{"sent": "{\"api_key\": \"***\"}"}'),
        ('password="a b", port=1', 'password="***", port=1'),
        ("Authorization: Basic YTpi", "Authorization: Basic ***"),
        ("AWS_SECRET_ACCESS_KEY=abc", "AWS_SECRET_ACCESS_KEY=***"),
        ("accessToken: abc", "accessToken: ***"),
        ("connecting to redis://user:abc@host:6379/0", "connecting to redis://***@host:6379/0"),
        ("see https://host/a@b", "see https://host/a@b"),
        ("GET /v1/models?key=abc&alt=json HTTP/1.1", "GET /v1/models?key=***&alt=json HTTP/1.1"),
        ("GET https://b.s3.x/o?X-Amz-Credential=A%2F1&X-Amz-Date=2&X-Amz-Signature=ab#f", CUT_URL),
        ("blob?sv=1&sig=a%2Fb%3D", "blob?sv=1&sig=***"),
        ("cloning with ghp_0123456789abcdef", "cloning with ghp_***"),
        ("github_pat_11ABCDEFG_x glpat-0123456789", "github_pat_*** glpat-***"),
        ("AKIA0123456789ABCDEF", "AKIA***"),
        ("got eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc_d-e", "got eyJ***"),
        ("keyboard?keys=3&keynote=4", "keyboard?keys=3&keynote=4"),
        ("12 tokens: 5 of 7", "12 tokens: 5 of 7"),
    ],
)
def test_a_text_from_elsewhere(text: str, expected: str) -> None:
    assert excerpt(text, 100) == expected


@pytest.mark.parametrize(
    "text",
    [
        "token" + " " * 100_000,
        "secret:" + "\n" * 100_000,
        "://" + "a" * 100_000,
        "eyJ" * 50_000,
        "&key=" * 50_000,
    ],
)
def test_a_long_text_takes_no_time(text: str) -> None:
    """A search that goes back and forth in the spaces of such a text would take minutes."""
    began_s = time.process_time()
    excerpt(text, len(text))
    assert time.process_time() - began_s < 2.0


@given(st.text(), st.integers(1, 50))
def test_it_is_one_line_of_at_most_the_limit(text: str, limit: int) -> None:
    shown = excerpt(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
