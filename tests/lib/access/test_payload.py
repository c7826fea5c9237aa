"""Payloads: JSON, the parameters of a URL, and uploads on disk (docs/protocol.md, "Bodies"). No HTTP."""

from __future__ import annotations

import asyncio
import gc
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp.test_utils import make_mocked_request

from lib.access.authenticator import Admission
from lib.access.body import BodyReader
from lib.access.envelope import PARSED_WHOLE_BYTES
from lib.access.payload import (
    SMALL_OBJECT_BYTES,
    SMALL_OBJECT_VALUES,
    PayloadReader,
    is_json,
    is_upload,
    small_object,
)
from lib.access.scanner import MAX_DEPTH
from lib.access.spool import SpoolRoom
from lib.data_types import UNSIGNED_AUTH_DATA, AuthData
from lib.errors import BodyTooLarge, Draining, Invalid, MediaTypeRefused
from lib.fields.json_fields import Parameters
from lib.http.shares import Shares
from lib.uploads import Upload
from tests.event_loop import until
from tests.fakes.incoming_request import IncomingRequest
from tests.guard import GUARD_S

JSON_BYTES, UPLOAD_BYTES = 100, 1000
FORM = "multipart/form-data; boundary=b"


def reader() -> PayloadReader:
    return PayloadReader(
        BodyReader(JSON_BYTES, GUARD_S), BodyReader(UPLOAD_BYTES, GUARD_S), SpoolRoom(UPLOAD_BYTES)
    )


def admission(payload: dict[str, Any] | None = None) -> Admission:
    return Admission(AuthData.from_json_msg(UNSIGNED_AUTH_DATA), {}, payload)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for uploads."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


# JSON


async def test_a_payload_that_is_already_read_is_returned() -> None:
    request = IncomingRequest(content_type=FORM).arrive(b"not read")
    assert await reader().read_json(request, admission({"x": 1})) == {"x": 1}


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "a/b+json"])
async def test_a_json_body_is_the_payload(content_type: str) -> None:
    request = IncomingRequest(content_type=content_type).arrive(b'{"x": ', b"1}")
    assert await reader().read_json(request, admission()) == {"x": 1}


async def test_the_limit_of_json_bodies_holds() -> None:
    body = b'{"x": "%s"}' % (b"y" * JSON_BYTES)
    request = IncomingRequest(content_type="application/json").arrive(body)
    with pytest.raises(BodyTooLarge):
        await reader().read_json(request, admission())


async def test_json_that_is_nested_too_deeply_is_found_before_it_is_parsed() -> None:
    payloads = PayloadReader(BodyReader(10**6, GUARD_S), BodyReader(1, GUARD_S), SpoolRoom(1))
    for depth, holds in ((MAX_DEPTH - 1, True), (MAX_DEPTH, False)):
        padding = b" " * PARSED_WHOLE_BYTES
        body = b'{"x": %s1%s}%s' % (b"[" * depth, b"]" * depth, padding)
        request = IncomingRequest(content_type="application/json").arrive(body)
        with nullcontext() if holds else pytest.raises(Invalid):
            assert "x" in await payloads.read_json(request, admission())


async def test_a_payload_is_no_stranger_s() -> None:
    bodies = BodyReader(JSON_BYTES, GUARD_S, Shares(1))
    payloads = PayloadReader(bodies, bodies, SpoolRoom(1))
    incoming = IncomingRequest(content_type="application/json")
    assert await payloads.read_json(incoming.arrive(b'{"x": 1}'), admission()) == {"x": 1}
    assert incoming.client.evictions == 0


async def test_a_body_that_is_no_object_is_invalid() -> None:
    request = IncomingRequest(content_type="application/json").arrive(b"[1]")
    with pytest.raises(Invalid):
        await reader().read_json(request, admission())


async def test_another_media_type_is_a_415_that_names_it() -> None:
    request = IncomingRequest(content_type=FORM).arrive(b"{}")
    with pytest.raises(MediaTypeRefused, match="takes application/json, not multipart/form-data") as refused:
        await reader().read_json(request, admission())
    assert refused.value.status == 415


# Parameters


async def test_without_a_body_the_payload_is_the_parameters_of_the_url() -> None:
    request = make_mocked_request("GET", "/files/7?a=1&b=2&b=3&empty=", match_info={"id": "7"})
    payload = await reader().read_json(request, admission())
    assert isinstance(payload, Parameters)
    assert payload == {"a": "1", "b": ["2", "3"], "empty": "", "id": "7"}


async def test_a_parameter_of_the_path_replaces_one_of_the_query() -> None:
    request = make_mocked_request("GET", "/files/7?id=8", match_info={"id": "7"})
    assert await reader().read_json(request, admission()) == {"id": "7"}


# Uploads


async def test_an_upload_is_on_disk_until_the_block_ends(folder: Path) -> None:
    incoming = IncomingRequest(content_type=FORM, path="/up?size=1&size=2&name=x", parameters={"id": "7"})
    async with reader().receive(incoming.arrive(b"12", b"345"), admission(), True) as upload:
        assert isinstance(upload, Upload)
        assert upload.path.parent == folder
        assert upload.path.read_bytes() == b"12345"
        assert upload.content_type == FORM
        assert upload.size_bytes == 5
        assert upload.query == {"size": ["1", "2"], "name": ["x"]}
    assert files_in(folder) == []


async def test_an_upload_has_the_limit_of_uploads(folder: Path) -> None:
    request = IncomingRequest(content_type=FORM).arrive(bytes(UPLOAD_BYTES))
    async with reader().receive(request, admission(), True) as upload:
        assert isinstance(upload, Upload)
        assert upload.size_bytes == UPLOAD_BYTES > JSON_BYTES
    with pytest.raises(BodyTooLarge):
        async with reader().receive(
            IncomingRequest(content_type=FORM).arrive(bytes(UPLOAD_BYTES + 1)), admission(), True
        ):
            pytest.fail("it was received")
    assert files_in(folder) == []


async def test_a_body_without_a_content_type_is_an_upload_of_bytes(folder: Path) -> None:
    async with reader().receive(IncomingRequest().arrive(b"1"), admission(), True) as upload:
        assert isinstance(upload, Upload)
        assert upload.content_type == "application/octet-stream"


@pytest.mark.parametrize("accepts_uploads", [False, True])
async def test_json_is_received_with_or_without_uploads(folder: Path, accepts_uploads: bool) -> None:
    request = IncomingRequest(content_type="application/json").arrive(b'{"x": 1}')
    async with reader().receive(request, admission(), accepts_uploads) as payload:
        assert payload == {"x": 1}
        assert files_in(folder) == []


async def test_a_route_without_uploads_refuses_one(folder: Path) -> None:
    with pytest.raises(MediaTypeRefused):
        async with reader().receive(
            IncomingRequest(content_type=FORM).arrive(b"1"), admission(), accepts_uploads=False
        ):
            pytest.fail("it was received")


# The stop


@pytest.mark.parametrize("content_type", [FORM, "application/json"])
async def test_a_body_that_is_arriving_at_the_stop_is_given_up(folder: Path, content_type: str) -> None:
    payloads, incoming = reader(), IncomingRequest(content_type=content_type)
    request = incoming.arrive(b"{", whole=False)

    async def receive() -> None:
        async with payloads.receive(request, admission(), True):
            pytest.fail("it was received")

    task = asyncio.create_task(receive())
    await anyio.wait_all_tasks_blocked()
    if content_type == FORM:
        await until(lambda: files_in(folder))  # a thread creates it
    payloads.stop()
    with anyio.fail_after(GUARD_S), pytest.raises(Draining) as refused:
        await task
    assert refused.value.status == 503
    assert files_in(folder) == []


async def test_a_received_payload_is_not_given_up(folder: Path) -> None:
    payloads = reader()
    request = IncomingRequest(content_type=FORM).arrive(b"1")
    contents: list[bytes] = []
    async with payloads.receive(request, admission(), True) as upload:
        payloads.stop()
        await anyio.lowlevel.checkpoint()
        assert isinstance(upload, Upload)
        contents.append(upload.path.read_bytes())
    assert contents == [b"1"]


@pytest.mark.parametrize("content_type", [FORM, "application/json"])
async def test_after_the_stop_nothing_is_received(folder: Path, content_type: str) -> None:
    payloads = reader()
    payloads.stop()
    incoming = IncomingRequest(content_type=content_type)
    with pytest.raises(Draining):
        async with payloads.receive(incoming.arrive(b"{}"), admission(), True):
            pytest.fail("it was received")
    assert files_in(folder) == []


async def test_nothing_of_a_received_payload_is_kept() -> None:
    def scopes() -> int:
        gc.collect()
        return sum(isinstance(thing, anyio.CancelScope) for thing in gc.get_objects())

    payloads, before = reader(), scopes()
    for _ in range(10):
        request = IncomingRequest(content_type="application/json").arrive(b"{}")
        async with payloads.receive(request, admission(), True):
            pass
    assert scopes() < before + 10


async def test_a_cancelled_request_is_no_draining(folder: Path) -> None:
    async def receive() -> None:
        async with reader().receive(IncomingRequest(content_type=FORM).request, admission(), True):
            pytest.fail("it was received")

    task = asyncio.create_task(receive())
    await anyio.wait_all_tasks_blocked()
    task.cancel()
    with anyio.fail_after(GUARD_S), pytest.raises(asyncio.CancelledError):
        await task
    assert files_in(folder) == []


# Media types


@pytest.mark.parametrize(
    ("media_type", "expected"),
    [
        ("application/json", True),
        ("application/problem+json", True),
        ("image/x+json", True),
        ("application/octet-stream", False),
        ("application/jsonl", False),
        ("text/json", False),
        ("json", False),
        ("", False),
    ],
)
def test_which_media_types_are_json(media_type: str, expected: bool) -> None:
    assert is_json(media_type) is expected


@pytest.mark.parametrize(
    ("content_type", "payload", "expected"),
    [
        ("image/png", None, True),
        (None, None, True),
        ("application/json", None, False),
        ("application/problem+json; charset=utf-8", None, False),
        ("image/png", {}, False),  # the body was an envelope
    ],
)
async def test_which_bodies_are_uploads(
    content_type: str | None, payload: dict[str, Any] | None, expected: bool
) -> None:
    request = IncomingRequest(content_type=content_type).request
    assert is_upload(request, admission(payload)) is expected


def test_a_request_without_a_body_is_no_upload() -> None:
    request = make_mocked_request("GET", "/", headers={"Content-Type": "image/png"})
    assert not is_upload(request, admission())


# Small objects


def padded(size: int) -> bytes:
    """A JSON object of `size` bytes."""
    return b'{"x": 1' + b" " * (size - 8) + b"}"


@pytest.mark.parametrize("size", [8, SMALL_OBJECT_BYTES])
async def test_a_small_object_is_read_whatever_its_media_type(size: int) -> None:
    request = IncomingRequest(content_type="text/plain").arrive(padded(size))
    assert await small_object(BodyReader(2 * SMALL_OBJECT_BYTES, GUARD_S), request) == {"x": 1}


async def test_an_object_above_1_mib_is_a_413() -> None:
    request = IncomingRequest().arrive(padded(SMALL_OBJECT_BYTES + 1))
    with pytest.raises(BodyTooLarge, match="larger than 1048576 bytes"):
        await small_object(BodyReader(2 * SMALL_OBJECT_BYTES, GUARD_S), request)


async def test_an_object_of_many_values_is_a_413() -> None:
    body = b'{"x": [%s0]}' % (b"{}," * SMALL_OBJECT_VALUES)
    with pytest.raises(BodyTooLarge, match="more than 25000 values"):
        await small_object(BodyReader(SMALL_OBJECT_BYTES, GUARD_S), IncomingRequest().arrive(body))


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null"])
async def test_another_body_than_an_object_is_invalid(body: bytes) -> None:
    with pytest.raises(Invalid):
        await small_object(BodyReader(SMALL_OBJECT_BYTES, GUARD_S), IncomingRequest().arrive(body))
