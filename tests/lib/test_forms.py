"""Forms that aiohttp writes and forms by hand, read back from the disk."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import forms
from lib.files import BadFile
from lib.forms import FormPart, form_parts, leading_fields
from lib.uploads import Upload

PIECES = st.lists(st.sampled_from([b"\r", b"\n", b"-", b"xyz"])).map(b"".join)
TYPE = "multipart/form-data; boundary=xyz"


def uploaded(path: Path, body: bytes, content_type: str = TYPE) -> Upload:
    path.write_bytes(body)
    return Upload(path, content_type, len(body), {})


def parts_of(folder: Path, body: bytes, content_type: str = TYPE) -> list[FormPart]:
    return form_parts(uploaded(folder / "form", body, content_type))


async def encoded(fields: Mapping[str, tuple[str | None, bytes]]) -> tuple[bytes, str]:
    """The form's body and content type, as aiohttp makes them."""
    form = aiohttp.FormData(default_to_multipart=True)
    for name, (filename, content) in fields.items():
        body = content.decode() if filename is None else io.BytesIO(content)
        form.add_field(name, body, filename=filename, content_type="image/png")
    payload = form()
    return await payload.as_bytes(), payload.content_type


async def test_a_form_of_aiohttp_is_read_back(tmp_path: Path) -> None:
    body, kind = await encoded({"payload": (None, b"{}"), "a.png": ("grüße 1.png", b"\r\n--\r\n" * 3)})
    first, second = parts_of(tmp_path, body, kind)
    assert (first.name, first.filename, first.read()) == ("payload", "", b"{}")
    assert (second.name, second.content_type, second.read()) == ("a.png", "image/png", b"\r\n--\r\n" * 3)
    target = io.BytesIO()
    second.copy_to(target)
    assert target.getvalue() == second.read()


@settings(deadline=None)
@given(
    st.lists(st.binary(max_size=40) | st.lists(st.sampled_from([b"\r", b"\n", b"-", b"xyz"])).map(b"".join))
)
def test_any_content_is_found_whatever_the_size_of_a_read(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]
) -> None:
    contents = [content for content in contents if b"--xyz" not in content]
    body = b"preamble\r\n" + b"".join(
        b'--xyz\r\nContent-Disposition: form-data; name="n"\r\n\r\n' + content + b"\r\n"
        for content in contents
    )
    folder = tmp_path_factory.mktemp("form")
    usual, forms.CHUNK_BYTES = forms.CHUNK_BYTES, 8
    try:
        parts = parts_of(folder, body + b"--xyz--\r\nepilogue")
    finally:
        forms.CHUNK_BYTES = usual
    assert [part.read() for part in parts] == contents


@pytest.mark.parametrize(
    ("body", "kind", "problem"),
    [
        (b"{}", "application/octet-stream", "must be multipart/form-data with a boundary"),
        (b"--xyz--", "multipart/form-data", "must be multipart/form-data with a boundary"),
        (b"--xyz--", f"multipart/form-data; boundary={'x' * 71}", "with a boundary"),
        (b"", TYPE, "ends before its last boundary"),
        (b"--xyz\r\n", TYPE, "ends before its last boundary"),
        (b'--xyz\r\nContent-Disposition: form-data; name="n"\r\n\r\nabc', TYPE, "ends before"),
        (b"--xyz\r\n\r\nabc\r\n--xyz--", TYPE, "has a field without a name"),
        (b"--xyz0\r\n\r\nabc\r\n--xyz--", TYPE, "has a malformed boundary"),
        (b"--xyz\r\nX: " + b"x" * 20_000 + b"\r\n\r\n--xyz--", TYPE, "ends before|too long"),
        (b"--xyz\r\n" + b"X: y\r\n" * 5000 + b"\r\n--xyz--", TYPE, "head is too long"),
        (
            b'--xyz\r\nContent-Disposition: form-data; name="n"\r\n\r\n\r\n' * 101 + b"--xyz--",
            TYPE,
            "has more than 100 fields",
        ),
    ],
)
def test_a_malformed_form_is_refused(tmp_path: Path, body: bytes, kind: str, problem: str) -> None:
    with pytest.raises(BadFile, match=problem):
        parts_of(tmp_path, body, kind)


async def test_the_fields_before_the_files_are_read_without_the_files(tmp_path: Path) -> None:
    fields = {"input": (None, b"{}"), "n": (None, b"1"), "a.png": ("a.png", b"x" * 10_000), "z": (None, b"2")}
    form = uploaded(tmp_path / "form", *(await encoded(fields)))
    for limit in (1000, 100_000):
        assert leading_fields(form, limit) == {"input": b"{}", "n": b"1"}
    with pytest.raises(BadFile, match="must begin with a field that has less than 100 bytes"):
        leading_fields(form, 100)
    with pytest.raises(BadFile, match="must be multipart/form-data"):
        leading_fields(uploaded(tmp_path / "form", b"x", "image/png"), 1000)
    assert leading_fields(uploaded(tmp_path / "form", b"--xyz--\r\n"), 1000) == {}
