"""The engine's page of an API: what it shows, what its forms begin with, and that nothing in it can act."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any, Literal

import aiohttp
import pytest

from lib.local.descriptions import Description
from lib.local.docs_page import DOCS_HEADERS, DocsPage
from lib.local.engine import LocalEngine
from lib.local.serving import serve_engine
from lib.routes.api_page import routes_in
from lib.routes.openapi import description_of
from lib.uploads import Upload
from lib.worker import BenchmarkConfig, HandlerConfig, Worker, WorkerConfig
from tests.fakes.reports import READY
from tests.lib.local.test_descriptions import OPERATION, document, loopback_port
from tests.lib.routes.test_api_page import HOSTILE, Shown
from tests.manual_clock import ManualClock
from tests.system import engine_key

ENGINE_URL = "http://127.0.0.1:8081"
PAGE = DocsPage("local", ["local"], ENGINE_URL, needs_key=False)


class Forms(HTMLParser):
    """The attributes of a page's elements by tag, and the texts of its text areas."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, list[dict[str, str | None]]] = {}
        self.payloads: list[str] = []
        self._in_payload = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.setdefault(tag, []).append(dict(attrs))
        if tag == "textarea":
            self.payloads.append("")
            self._in_payload = True

    def handle_endtag(self, tag: str) -> None:
        self._in_payload = False

    def handle_data(self, data: str) -> None:
        if self._in_payload:
            self.payloads[-1] += data

    def classes(self) -> list[str]:
        return [each.get("class") or "" for elements in self.found.values() for each in elements]


async def tell(text: str, times: int, size: Literal["short", "long"] = "short") -> str:
    return text * times + size


async def voice(id: str, limit: int = 10) -> str:
    return id * limit


def described_as(*handlers: HandlerConfig) -> Description:
    config = WorkerConfig("http://127.0.0.1:1", model_healthcheck_url="/health", handlers=list(handlers))
    worker = Worker(config)
    whole = description_of(worker.backend, worker.routes, READY.url, True)
    return Description(7, READY.url, whole, tuple(routes_in(whole)))


def test_a_form_begins_with_the_example() -> None:
    sample = {"text": "it's <b>", "times": 3}
    tale = HandlerConfig("/tell", remote_function=tell, benchmark_config=BenchmarkConfig(dataset=[sample]))
    page = PAGE.of(described_as(tale))
    forms = Forms(page)
    assert [json.loads(text) for text in forms.payloads] == [sample]
    (form,) = forms.found["form"]
    assert (form["data-method"], form["data-path"]) == ("POST", "/tell")
    assert f"pyworker request --engine {ENGINE_URL} -e local -k any /tell" in Shown(page).text


def test_without_an_example_it_begins_with_the_required_fields() -> None:
    forms = Forms(PAGE.of(described_as(HandlerConfig("/tell", remote_function=tell))))
    assert [json.loads(text) for text in forms.payloads] == [{"text": "", "times": 0}]


def test_the_example_of_another_handler_is_not_taken_where_no_field_fits() -> None:
    other = HandlerConfig("/any", benchmark_config=BenchmarkConfig(dataset=[{"unlike": 1}]))
    forms = Forms(PAGE.of(described_as(other, HandlerConfig("/optional", remote_function=optional))))
    assert [json.loads(text) for text in forms.payloads] == [{"unlike": 1}, {}]


async def optional(width: int = 3) -> int:
    return width


def test_parameters_have_inputs_instead() -> None:
    forms = Forms(PAGE.of(described_as(HandlerConfig("/voices/{id}", method="GET", remote_function=voice))))
    inputs = {each["data-name"]: each for each in forms.found["input"] if "data-name" in each}
    assert inputs["id"]["data-in"] == "path"
    assert "required" in inputs["id"]
    assert inputs["limit"]["data-in"] == "query"
    assert "required" not in inputs["limit"]
    assert forms.payloads == []


def test_an_upload_has_a_place_for_files() -> None:
    forms = Forms(PAGE.of(described_as(HandlerConfig("/up", payload_class=Upload), HandlerConfig("/any"))))
    assert [f"required={'required' in e}" for e in forms.found["input"] if e.get("type") == "file"] == [
        "required=True"
    ]


def test_the_envelope_is_shown_once() -> None:
    description = described_as(*(HandlerConfig(f"/{name}") for name in "abc"))
    page = PAGE.of(description)
    assert page.count('id="envelope"') == page.count("&quot;auth_data&quot;: {…}") == 1
    unsigned: dict[str, Any] = {**description.document, "components": {"schemas": {}}}
    assert 'id="envelope"' not in PAGE.of(replace(description, document=unsigned))


@pytest.mark.parametrize("needs_key", [True, False])
def test_a_key_is_asked_for_only_if_it_is_needed(needs_key: bool) -> None:
    page = replace(PAGE, needs_key=needs_key).of(described_as(HandlerConfig("/a")))
    assert ('id="api-key"' in page) == needs_key


def test_an_endpoint_is_chosen_where_there_are_several() -> None:
    choice = Forms(replace(PAGE, names=["a", "local"]).of(described_as()))
    assert [("selected" in each) for each in choice.found["option"]] == [False, True]
    hidden = ["hidden" in each for each in choice.found["label"] if each.get("id") == "endpoint-choice"]
    assert hidden == [False]
    assert "hidden" in Forms(PAGE.of(described_as())).found["label"][0]


def test_without_a_description_it_says_what_to_do() -> None:
    shown = Shown(replace(PAGE, name="my images").without("Worker 7 is stopped: draining."))
    assert "Worker 7 is stopped: draining." in shown.text
    assert f"REPORT_ADDR={ENGINE_URL}/e/my%20images" in shown.text
    assert f"REPORT_ADDR={ENGINE_URL} This" in Shown(PAGE.without("")).text


def test_nothing_of_a_workers_or_a_clients_becomes_a_tag() -> None:
    field = {"name": HOSTILE, "in": HOSTILE, "required": True, "schema": {"enum": [HOSTILE], "type": HOSTILE}}
    whole = document(HOSTILE)
    schema = {
        "properties": {HOSTILE: {"type": HOSTILE}},
        "required": [HOSTILE],
        "examples": [{HOSTILE: HOSTILE}],
    }
    body = {"content": {"application/json": {"schema": schema}, "*/*": {}}}
    whole["paths"] = {HOSTILE: {HOSTILE: {"summary": HOSTILE, "parameters": [field], "requestBody": body}}}
    description = Description(7, HOSTILE, whole, tuple(routes_in(whole)))
    hostile = DocsPage(HOSTILE, [HOSTILE, "local"], f"http://{HOSTILE}", needs_key=True)
    for page in (hostile.of(description), hostile.without(HOSTILE)):
        shown = Shown(page)
        assert shown.tags.count("script") == 2  # its own
        assert shown.text.count("alert(1)") > 2
        assert not [link for link in shown.links if "<" in link or '"' in link]


def test_its_policy_allows_no_foreign_resource() -> None:
    (policy,) = DOCS_HEADERS.values()
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives.pop("default-src") == "'none'"
    assert set(" ".join(directives.values()).split()) == {"'self'", "'none'", "data:", "blob:"}
    assert directives["script-src"] == "'self'"


async def test_the_engine_serves_the_page_and_the_document() -> None:
    engine = LocalEngine(clock=ManualClock(), key=engine_key())
    whole: dict[str, Any] = document(tell=OPERATION)
    async with (
        loopback_port(whole) as port,
        serve_engine(engine) as url,
        aiohttp.ClientSession() as http,
    ):
        async with http.get(f"{url}/docs") as answer:
            assert answer.content_type == "text/html"
            assert "No worker has joined the endpoint 'local' yet." in Shown(await answer.text()).text
        async with http.get(f"{url}/openapi.json") as answer:
            assert (answer.status, await answer.json()) == (
                503,
                {"error": "No worker has joined the endpoint 'local' yet."},
            )
        engine.take_report("images", READY, port.url)
        for prefix in ("", "/e/images"):
            async with http.get(f"{url}{prefix}/docs") as answer:
                assert answer.headers["Content-Security-Policy"] == DOCS_HEADERS["Content-Security-Policy"]
                page = await answer.text()
            assert "API of the endpoint images" in page
            assert "POST /tell" in page
            async with http.get(f"{url}{prefix}/openapi.json") as answer:
                assert await answer.json() == whole
        for path, status in (("/e/nope/docs", 200), ("/e/nope/openapi.json", 404)):
            async with http.get(url + path) as answer:
                assert answer.status == status
                assert "o worker has joined the endpoint" in await answer.text()
        for name in ("common.js", "docs.js", "docs.css"):
            async with http.get(f"{url}/page/{name}") as answer:
                assert answer.status == 200


LONE = "\ud800"  # JSON can have lone surrogates, which UTF-8 can't
DEEP_EXAMPLE = json.loads('{"a":' * 80 + "1" + "}" * 80)


@pytest.mark.parametrize(
    ("summary", "example", "shown"),
    [(LONE, None, "<p>?</p>"), ("", {"a": LONE}, "?"), ("", DEEP_EXAMPLE, "POST /tell")],
)
async def test_texts_that_cannot_be_encoded_are_shown_without_them(
    summary: str, example: Any, shown: str
) -> None:
    engine = LocalEngine(clock=ManualClock(), key=engine_key())
    schema: dict[str, Any] = {} if example is None else {"examples": [example]}
    body = {"content": {"application/json": {"schema": schema}}}
    whole = document(tell={**OPERATION, "summary": summary, "requestBody": body})
    async with loopback_port(whole) as port, serve_engine(engine) as url, aiohttp.ClientSession() as http:
        engine.take_report("local", READY, port.url)
        async with http.get(f"{url}/docs") as answer:
            assert (answer.status, answer.charset) == (200, "utf-8")
            assert shown in await answer.text()
        async with http.get(f"{url}/openapi.json") as answer:
            assert json.loads(await answer.read()) == whole
