"""Forms that are read into memory: their fields and files, and what is no form."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.data_types import JsonDataException
from lib.errors import result_or_error
from lib.forms import MAX_PARTS, Form, FormFile, read_form
from lib.uploads import Upload

KIND = "multipart/form-data; boundary=b"
NAME = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1)


def upload_of(folder: Path, body: bytes, content_type: str = KIND) -> Upload:
    path = folder / "body"
    path.write_bytes(body)
    return Upload(path, content_type, len(body), {})


def sent_form(folder: Path, parts: list[tuple[str, Any, str | None]]) -> Upload:
    """The upload that a client makes by aiohttp of name, content and file name of each part."""

    async def encoded() -> tuple[bytes, str]:
        form = aiohttp.FormData(default_to_multipart=True)
        for name, content, filename in parts:
            form.add_field(name, content, filename=filename)
        payload = form()
        assert payload.content_type is not None
        return await payload.as_bytes(), payload.content_type

    body, content_type = asyncio.run(encoded())
    return upload_of(folder, body, content_type)


def problem_of(upload: Upload, **options: Any) -> str:
    with pytest.raises(JsonDataException) as refused:
        read_form(upload, **options)
    return refused.value.message["body"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    fields=st.lists(st.tuples(NAME, st.text())),
    files=st.lists(st.tuples(NAME, st.binary(max_size=300_000), NAME), max_size=3),
)
def test_fields_and_files_are_read_as_they_were_sent(
    fields: list[tuple[str, str]], files: list[tuple[str, bytes, str]], tmp_path: Path
) -> None:
    parts: list[tuple[str, Any, str | None]] = [*((name, text, None) for name, text in fields), *files]
    if not parts:
        return
    form = read_form(sent_form(tmp_path, parts))
    assert list(form.fields.items()) == fields
    assert [(n, f.content, f.filename) for n, f in form.files.items()] == files


def test_a_file_has_the_clients_media_type(tmp_path: Path) -> None:
    head = b'Content-Disposition: form-data; name="a"; filename="x.png"\r\nContent-Type: image/png'
    form = read_form(upload_of(tmp_path, b"--b\r\n" + head + b"\r\n\r\n\r\n\r\n\r\n--b--\r\n"))
    assert form.files["a"] == FormFile("x.png", "image/png", b"\r\n\r\n")


PART = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
NESTED = b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\n1\r\n--c--\r\n--b--\r\n"


@pytest.mark.parametrize(
    ("body", "kind", "problem"),
    [
        (b"{}", "application/json", "must be multipart/form-data with a boundary"),
        (PART, "multipart/mixed; boundary=b", "must be multipart/form-data with a boundary"),
        (PART, "multipart/form-data", "must be multipart/form-data with a boundary"),
        (b"", KIND, "ends before its last boundary"),
        (b"text", KIND, "ends before its last boundary"),
        (PART.replace(b'; name="a"', b"") + b"--b--\r\n", KIND, "has a field without a name"),
        (PART.replace(b"1", b"\xff") + b"--b--\r\n", KIND, "has a field that is not UTF-8"),
        (NESTED, KIND, "has a field without a name"),
        (PART * (MAX_PARTS + 1) + b"--b--\r\n", KIND, f"has more than {MAX_PARTS} fields"),
    ],
)
def test_what_is_no_form_is_refused(body: bytes, kind: str, problem: str, tmp_path: Path) -> None:
    assert problem_of(upload_of(tmp_path, body, kind)) == problem


def test_a_form_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    body = PART + b"--b--\r\n"
    assert read_form(upload_of(tmp_path, body), max_bytes=len(body)).fields["a"] == "1"
    missing = Upload(tmp_path / "none", KIND, len(body), {})
    assert problem_of(missing, max_bytes=len(body) - 1) == f"must have at most {len(body) - 1} bytes"


PIECES = [PART, NESTED, b"--b", b"--", b"\r\n", b"a"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(body=st.binary(max_size=200) | st.lists(st.sampled_from(PIECES)).map(b"".join))
def test_any_body_is_read_or_refused(body: bytes, tmp_path: Path) -> None:
    read = result_or_error(lambda: read_form(upload_of(tmp_path, body)))
    assert isinstance(read, (Form, JsonDataException))
