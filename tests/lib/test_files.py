from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.files import MAX_NAME_CHARACTERS, BadFile, EncodedFile, read_encoded, safe_basename

DATA = base64.b64encode(b"sound").decode()


@pytest.mark.parametrize(
    ("value", "name", "content_type"),
    [
        (DATA, "", ""),
        (f"data:image/PNG;base64,{DATA}", "", "image/png"),
        (f"DATA:audio/ogg;codecs=opus;BASE64,{DATA}", "", "audio/ogg"),
        ({"data": DATA, "filename": "a.png"}, "a.png", ""),
        ({"data": f"data:image/png;base64,{DATA}", "filename": "a/b.png"}, "a/b.png", "image/png"),
        ({"data": DATA, "filename": None}, "", ""),
    ],
)
def test_a_file_in_each_notation(value: Any, name: str, content_type: str) -> None:
    assert read_encoded(value).decoded() == (name, b"sound", content_type)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (5, "must be base64, a data: URI, or"),
        ({"filename": "a.png"}, "must be base64, a data: URI, or"),
        ("data:,sound", "must be a data: URI in base64"),
        ({"data": DATA, "filename": 5}, "its filename must be a string"),
    ],
)
def test_what_is_no_file_is_refused(value: Any, problem: str) -> None:
    with pytest.raises(BadFile, match=problem):
        read_encoded(value)


@pytest.mark.parametrize("text", ["?", "A", "AAA", "AA=A", "Ω===", "A" * 5])
def test_invalid_base64_is_refused_when_decoded(text: str) -> None:
    with pytest.raises(BadFile, match=r"^is not base64: "):
        EncodedFile("a.mp3", "audio/mpeg", text).decoded()


@settings(deadline=None)
@given(
    st.binary(max_size=300) | st.binary(min_size=58, max_size=300), st.sampled_from(["\n", "\r\n", " ", ""])
)
def test_any_content_is_decoded_with_or_without_white_space(content: bytes, between: str) -> None:
    encoded = base64.b64encode(content).decode()
    lines = between.join(encoded[i : i + 76] for i in range(0, len(encoded), 76))
    file = EncodedFile("a.mp3", "audio/mpeg", lines)
    assert file.decoded()[1] == content
    assert file.size_bytes >= len(content)
    assert EncodedFile("a.mp3", "audio/mpeg", encoded).size_bytes == len(content)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a.mp3", "a.mp3"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\a.mp3", "a.mp3"),
        ("..", ""),
        (".hidden.mp3", "hidden.mp3"),
        ('a"b\r\n;c.mp3', "a_b___c.mp3"),
        ("grüße 1.mp3", "grüße 1.mp3"),
        ("x" * 200 + ".mp3", "x" * 96 + ".mp3"),
        ("", ""),
    ],
)
def test_names_are_made_safe(name: str, safe: str) -> None:
    assert safe_basename(name) == safe


NAMES = st.lists(
    st.sampled_from(["a", ".", "..", " ", "/", "\\", '"', "\r\n", "ü", "x" * 60, ".mp3"]), max_size=8
).map("".join)


@settings(deadline=None)
@given(st.text() | NAMES)
def test_any_name_is_made_safe(name: str) -> None:
    safe = safe_basename(name)
    assert not set(safe) & set('/\\"\r\n\0;:*?<>|')
    assert not safe.startswith((".", " "))
    assert len(safe) <= MAX_NAME_CHARACTERS
    assert safe_basename(safe) == safe
