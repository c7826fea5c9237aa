from __future__ import annotations

import argparse
import base64
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lib.client import RouteAnswer, RouteClient, Target
from lib.tools.request_style import FilePart, RequestStyle, add_style_arguments, style_from_args

AUTH = {"url": "http://worker", "reqnum": 1, "signature": "c2ln/+", "cost": 3.0, "endpoint": "ü"}
PAYLOAD: dict[str, Any] = {"text": "a b", "count": 3, "flag": True, "tags": ["x", 2], "none": None}
TEXTS = [("text", "a b"), ("count", "3"), ("flag", "true"), ("tags", "x"), ("tags", "2")]


async def told(request: web.Request) -> web.Response:
    """Answer what was received: the method, the query, two headers, and the form, the JSON or the body."""
    body: Any
    if request.content_type == "multipart/form-data":
        body = [_part(name, part) for name, part in (await request.post()).items()]
    elif request.content_type == "application/json":
        body = await request.json()
    else:
        body = (await request.read()).decode()
    auth = request.headers.get("X-Vast-Auth")
    return web.json_response(
        {
            "method": request.method,
            "query": list(request.query.items()),
            "auth": auth and json.loads(base64.urlsafe_b64decode(auth)),
            "x": request.headers.get("X-Own"),
            "type": request.headers.get("Content-Type"),
            "body": body,
        }
    )


def _part(name: str, part: object) -> list[str]:
    if isinstance(part, web.FileField):
        return [name, part.filename, part.content_type, part.file.read().decode()]
    return [name, str(part)]


@asynccontextmanager
async def called(style: RequestStyle, payload: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    """Send `payload` in this style; the values are what a worker receives of it."""
    app = web.Application()
    app.router.add_route("*", "/route", told)
    async with TestServer(app) as server, aiohttp.ClientSession() as http:
        worker = RouteAnswer(str(server.make_url("/")), 1, AUTH)
        client = RouteClient(http, Target("http://engine", "local", "any"))
        async with style.call(client, worker, "/route", payload) as answer:
            yield await answer.json()


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
async def test_without_files_the_payload_is_in_an_envelope(method: str) -> None:
    async with called(RequestStyle(method, {"X-Own": "1"}), PAYLOAD) as got:
        assert (got["method"], got["x"], got["auth"], got["query"]) == (method, "1", None, [])
        assert got["body"] == {"auth_data": AUTH, "payload": PAYLOAD}


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_without_a_body_the_payload_is_in_the_query(method: str) -> None:
    async with called(RequestStyle(method, {"X-Own": "1"}), PAYLOAD) as got:
        assert (got["method"], got["x"], got["auth"], got["body"]) == (method, "1", AUTH, "")
        assert [tuple(item) for item in got["query"]] == TEXTS


async def test_files_and_the_payload_are_fields_of_a_form(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("picture")
    (tmp_path / "b").write_text("unknown")
    files = [FilePart("image", tmp_path / "a.png"), FilePart("more", tmp_path / "b")]
    async with called(RequestStyle("PUT", files=files), PAYLOAD) as got:
        assert (got["method"], got["auth"], got["query"]) == ("PUT", AUTH, [])
        assert got["body"] == [
            *map(list, TEXTS),
            ["image", "a.png", "image/png", "picture"],
            ["more", "b", "application/octet-stream", "unknown"],
        ]


@pytest.mark.parametrize(
    ("headers", "media_type"),
    [({}, "image/png"), ({"content-type": "image/own"}, "image/own")],
)
async def test_a_file_without_a_field_is_the_whole_body(
    headers: dict[str, str], media_type: str, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_text("picture")
    style = RequestStyle(headers=headers, files=[FilePart("", tmp_path / "a.png")])
    async with called(style, PAYLOAD) as got:
        assert (got["auth"], got["type"], got["body"]) == (AUTH, media_type, "picture")
        assert [tuple(item) for item in got["query"]] == TEXTS


def parsed(*words: str) -> RequestStyle:
    parser = argparse.ArgumentParser()
    add_style_arguments(parser)
    return style_from_args(parser, parser.parse_args(words))


def test_arguments_make_a_style(tmp_path: Path) -> None:
    file = tmp_path / "a=@b"
    file.touch()
    assert parsed() == RequestStyle("POST", {}, ())
    style = parsed("--method", "PUT", "--header", "X-A:  1: 2 ", "--header", "X-B:", "--file", f"f=@{file}")
    assert style == RequestStyle("PUT", {"X-A": "1: 2", "X-B": ""}, (FilePart("f", file),))
    assert parsed("--file", f"@{file}").files == (FilePart("", file),)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--method", "SEND"), "invalid choice: 'SEND'"),
        (("--header", "nothing"), "'nothing' is not a header: give one like"),
        (("--header", ": x"), "is not a header"),
        (("--header", "A: b\r\nC: d"), "is not a header"),
        (("--file", "here"), "'here' is not a file: give one like file=@picture.png"),
        (("--file", "f@here"), "is not a file"),
        (("--file", "=@here"), "is not a file"),
        (("--file", "f=@"), "is not a file"),
        (("--file", "f=@/no/such"), "/no/such can't be read: No such file or directory"),
        (("--file", "f=@/"), "/ can't be read: Is a directory"),
        (("--file", "f=@/dev/null", "--method", "GET"), "not allowed with --method GET"),
        (("--file", "f=@/dev/null", "--file", "@/dev/null"), "@PATH is the whole body"),
    ],
)
def test_wrong_arguments_are_refused(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(*words)
    assert said in capsys.readouterr().err
