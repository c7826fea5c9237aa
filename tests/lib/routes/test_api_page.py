"""The page of a worker's routes: what it shows, and that nothing in it can act."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import pytest

from lib.backend import Backend
from lib.routes.api_page import HEADERS, html_response, page_of, type_in_words
from lib.routes.openapi import description_of
from lib.uploads import Upload
from lib.worker import BenchmarkConfig, HandlerConfig, Worker, WorkerConfig
from tests.system import with_worker_task

HOSTILE = "<script>alert(1)</script>\"'&"


class Shown(HTMLParser):
    """The parts of a page that are shown: its `text`, and the names of its `tags` in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self._texts: list[str] = []
        self.feed(page)
        self.text = " ".join(" ".join(self._texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name == "href"]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["style"]:
            self._texts.append(data)


async def tell(text: str, size: Literal["short", "long"] = "short") -> str:
    return text + size


def document_of(*handlers: HandlerConfig, is_signed: bool = True) -> dict[str, Any]:
    config = WorkerConfig("http://127.0.0.1:1", model_healthcheck_url="/health", handlers=list(handlers))
    worker = Worker(config)
    return description_of(worker.backend, worker.routes, "http://203.0.113.7:40123", is_signed)


def test_it_shows_routes_fields_and_a_command() -> None:
    benchmark = BenchmarkConfig(dataset=[{"text": "it's"}])
    tale = HandlerConfig("/tell", remote_function=tell, benchmark_config=benchmark)
    shown = Shown(page_of(document_of(tale, HandlerConfig("/any")), "http://127.0.0.1:8081"))
    for text in (
        "http://203.0.113.7:40123",
        "tell field type where text text payload required",
        'size one of "short", "long", by default "short" payload',
        """pyworker request /tell '{"text": "it'"'"'s"}' -l""",
        "POST /any The payload is a JSON object",
    ):
        assert text in shown.text
    assert shown.links == ["/openapi.json", "http://127.0.0.1:8081/docs"]


def test_without_an_engine_there_is_no_envelope() -> None:
    document = document_of(HandlerConfig("/tell", remote_function=tell), is_signed=False)
    assert "auth_data" in Shown(page_of(document_of(HandlerConfig("/a")), None)).text
    assert "auth_data" not in Shown(page_of(document, None)).text


def test_a_worker_without_routes_says_so() -> None:
    document = description_of(Backend("http://127.0.0.1:1", healthcheck_url="/health"), [], "http://x", True)
    assert "No route has a handler" in Shown(page_of(document, None)).text


def test_nothing_of_an_authors_becomes_a_tag() -> None:
    benchmark = BenchmarkConfig(dataset=[{HOSTILE: HOSTILE}])
    document = document_of(HandlerConfig("/a", benchmark_config=benchmark))
    operation = document["paths"]["/a"]["post"]
    operation["summary"] = HOSTILE
    payload = operation["requestBody"]["content"]["application/json"]["schema"]["allOf"][1]["properties"][
        "payload"
    ]
    payload["properties"] = {HOSTILE: {"enum": [HOSTILE]}}
    document["paths"][HOSTILE] = document["paths"]["/a"]
    document["servers"][0]["url"] = HOSTILE
    shown = Shown(page_of(document, HOSTILE))
    assert "script" not in shown.tags
    assert shown.text.count("alert(1)") > 5


def test_what_cannot_be_encoded_is_replaced() -> None:
    """JSON can have lone surrogates, and so can an author's text."""
    document = document_of(HandlerConfig("/a", benchmark_config=BenchmarkConfig(dataset=[{"a": "\ud800"}])))
    document["paths"]["/a"]["post"]["summary"] = "\ud800"
    response = html_response(page_of(document, None), HEADERS)
    assert isinstance(response.body, bytes)
    assert b"<p>?</p>" in response.body
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"


def test_an_upload_is_told() -> None:
    assert (
        "any media type" in Shown(page_of(document_of(HandlerConfig("/up", payload_class=Upload)), None)).text
    )


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer"}, "integer"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text or null"),
        ({"type": "array", "items": {"type": "number"}}, "list, each number"),
        ({"type": "array", "items": {}}, "list"),
        ({"$ref": "#/components/schemas/Voice"}, "Voice"),
        ({}, "any value"),
        ({"type": "string", "minLength": 1, "maxLength": 9}, "text of 1 to 9 characters"),
        ({"type": "string", "pattern": "a{2}"}, "text that matches 'a{2}'"),
        ({"type": "integer", "minimum": 1, "maximum": 8}, "integer from 1 to 8"),
        ({"type": "number", "exclusiveMinimum": 0}, "number greater than 0"),
        ({"type": "integer", "multipleOf": 8}, "integer a multiple of 8"),
        (
            {"type": "array", "minItems": 1, "items": {"type": "string", "maxLength": 1}},
            "list of at least 1 item, each text of at most 1 character",
        ),
        ({"type": "object", "maxProperties": 3}, "object of at most 3 fields"),
        (
            {
                "type": "array",
                "prefixItems": [{"type": "integer"}, {"type": "string"}],
                "minItems": 2,
                "maxItems": 2,
            },
            "list of 2: integer, text",
        ),
        ({"anyOf": [{"type": "integer", "maximum": 8}, {"type": "null"}]}, "integer at most 8 or null"),
    ],
)
def test_a_type_in_words(schema: dict[str, Any], words: str) -> None:
    assert type_in_words(schema) == words


async def test_a_running_worker_has_both_on_its_loopback_port(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        async with system.http.get(system.loopback_url + "/openapi.json") as answer:
            document = await answer.json()
        assert document["servers"] == [{"url": system.url}]
        assert "/echo" in document["paths"]
        async with system.http.get(system.loopback_url + "/docs") as answer:
            assert answer.content_type == "text/html"
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            shown = Shown(await answer.text())
        assert "POST /echo" in shown.text
        assert f"{system.engine_url}/docs" in shown.links
        for path in ("/openapi.json", "/docs"):
            async with system.http.get(system.url + path) as answer:
                assert answer.status == 404
