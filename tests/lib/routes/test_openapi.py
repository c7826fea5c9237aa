"""The description of a worker's routes is a valid OpenAPI document, and says what each accepts."""

from __future__ import annotations

import enum
import importlib
import math
from dataclasses import dataclass, field
from html import escape
from typing import Annotated, Any, Literal

import msgspec
import openapi_spec_validator
import pytest
from aiohttp import web

from lib.data_types import ApiPayload
from lib.fields.schemas import REFERENCE
from lib.routes.api_page import KEPT_ALIVE, page_of
from lib.routes.openapi import description_of
from lib.uploads import Upload
from lib.worker import BenchmarkConfig, HandlerConfig, Worker, WorkerConfig
from tests.workers.test_imports import WORKERS

MODEL_URL = "http://127.0.0.1:1"
URL = "http://203.0.113.7:40123"
SAMPLE = {"text": "Once", "count": 2}


@dataclass
class Story(ApiPayload):
    """A story of so many words."""

    text: str
    count: int = 5

    def count_workload(self) -> float:
        return float(self.count)


@dataclass
class Renamed(ApiPayload):
    inside: str

    @classmethod
    def from_json_msg(cls, json_msg: dict[str, Any]) -> Renamed:
        return cls(json_msg["outside"])

    def count_workload(self) -> float:
        return 1.0


async def tell(text: str, size: Literal["short", "long"] = "short") -> str:
    """Tell a story.

    It is a long one.
    """
    return text + size


async def one_story(story: Story) -> str:
    return story.text


def described(*handlers: HandlerConfig, is_signed: bool = True) -> dict[str, Any]:
    worker = Worker(WorkerConfig(MODEL_URL, model_healthcheck_url="/health", handlers=list(handlers)))
    document = description_of(worker.backend, worker.routes, URL, is_signed)
    openapi_spec_validator.validate(document)
    return document


def payload_schema(operation: dict[str, Any]) -> dict[str, Any]:
    """The schema of the payload in the envelope of a request."""
    envelope, payload = operation["requestBody"]["content"]["application/json"]["schema"]["allOf"]
    assert envelope == {"$ref": f"{REFERENCE}Envelope"}
    assert payload["required"] == ["payload"]
    return payload["properties"]["payload"]


def test_a_functions_parameters_are_the_payload() -> None:
    (operation,) = described(HandlerConfig("/tell", remote_function=tell))["paths"]["/tell"].values()
    assert operation["summary"] == "Tell a story."
    assert payload_schema(operation) == {
        "type": "object",
        "properties": {"text": {"type": "string"}, "size": {"enum": ["short", "long"], "default": "short"}},
        "required": ["text"],
    }
    assert operation["security"] == []
    assert set(operation["responses"]) == {"200", "401", "422", "429", "503"}


def test_a_payload_class_is_described_once_with_the_benchmarks_example() -> None:
    benchmark = BenchmarkConfig(dataset=[SAMPLE])
    document = described(
        HandlerConfig("/story", payload_class=Story, benchmark_config=benchmark),
        HandlerConfig("/function", remote_function=one_story),
    )
    schemas = document["components"]["schemas"]
    assert schemas["Story"] == {
        "type": "object",
        "properties": {"text": {"type": "string"}, "count": {"type": "integer", "default": 5}},
        "required": ["text"],
    }
    assert set(schemas) == {"AuthData", "Envelope", "Story"}
    for path in ("/story", "/function"):
        schema = payload_schema(document["paths"][path]["post"])
        assert schema == {"$ref": f"{REFERENCE}Story", "examples": [SAMPLE]}
    assert document["paths"]["/story"]["post"]["summary"] == "A story of so many words."


@dataclass
class Line:
    words: list[str] = field(default_factory=list[str])
    times: Annotated[int, msgspec.Meta(ge=1, le=8)] = 1


class Mood(enum.Enum):
    GLAD = "glad"


async def poem(
    line: Line,
    texts: Annotated[list[Annotated[str, msgspec.Meta(min_length=1)]], msgspec.Meta(max_length=64)],
    mood: Mood = Mood.GLAD,
    seed: int | None = None,
    share: float = math.nan,
    long: str = "x" * 2000,
) -> str:
    return ""


def test_limits_and_defaults_are_described_and_refused_fields() -> None:
    document = described(
        HandlerConfig("/poem", remote_function=poem, extra="forbid"),
        HandlerConfig("/loose", remote_function=poem),
    )
    poem_of, loose = (payload_schema(document["paths"][path]["post"]) for path in ("/poem", "/loose"))
    text = {"type": "string", "minLength": 1}
    assert poem_of["properties"]["texts"] == {"type": "array", "items": text, "maxItems": 64}
    defaults = {name: each["default"] for name, each in loose["properties"].items() if "default" in each}
    assert defaults == {"mood": "glad", "seed": None}
    assert (poem_of["additionalProperties"], "additionalProperties" in loose) == (False, False)
    schemas = document["components"]["schemas"]
    strict, free = (
        schemas[each["properties"]["line"]["$ref"].removeprefix(REFERENCE)] for each in (poem_of, loose)
    )
    assert strict == {**free, "additionalProperties": False}
    assert free["properties"] == {
        "words": {"type": "array", "items": {"type": "string"}, "default": []},
        "times": {"type": "integer", "minimum": 1, "maximum": 8, "default": 1},
    }


def test_a_route_with_a_heartbeat_says_that_a_200_may_have_an_error() -> None:
    document = described(
        HandlerConfig("/long", remote_function=tell, keepalive_s=5.0),
        HandlerConfig("/tell", remote_function=tell),
    )
    said = {path: each["post"]["responses"]["200"]["description"] for path, each in document["paths"].items()}
    assert said == {"/long": KEPT_ALIVE, "/tell": "The answer."}
    assert page_of(document, None).count(escape(KEPT_ALIVE)) == 1


def test_what_only_the_authors_code_knows_is_any_object() -> None:
    document = described(
        HandlerConfig("/any"),
        HandlerConfig("/parsed", payload_class=Story, request_parser=lambda payload: payload),
        HandlerConfig("/renamed", payload_class=Renamed),
    )
    for path in ("/any", "/parsed", "/renamed"):
        assert payload_schema(document["paths"][path]["post"]) == {"type": "object"}


def test_a_request_without_a_body_has_parameters_and_a_header() -> None:
    document = described(HandlerConfig("/story/{text}", method="GET", payload_class=Story))
    operation = document["paths"]["/story/{text}"]["get"]
    assert operation["parameters"] == [
        {"name": "text", "in": "path", "required": True, "schema": {"type": "string"}},
        {"name": "count", "in": "query", "required": False, "schema": {"type": "integer", "default": 5}},
    ]
    assert operation["security"] == [{"header": []}]
    assert "requestBody" not in operation


def test_parameters_have_the_example() -> None:
    benchmark = BenchmarkConfig(dataset=[SAMPLE])
    story = HandlerConfig("/story/{text}", method="GET", payload_class=Story, benchmark_config=benchmark)
    operation = described(story)["paths"]["/story/{text}"]["get"]
    assert {each["name"]: each["example"] for each in operation["parameters"]} == SAMPLE


async def scale(factor: float = 1.0) -> float:
    return factor


def test_the_example_of_another_handler_is_left_out_where_no_field_fits() -> None:
    benchmark = BenchmarkConfig(dataset=[SAMPLE])
    story = HandlerConfig("/story", payload_class=Story, benchmark_config=benchmark)
    document = described(story, HandlerConfig("/scale", remote_function=scale))
    assert "examples" not in payload_schema(document["paths"]["/scale"]["post"])


def test_the_summary_of_what_has_no_docstring_is_the_path() -> None:
    document = described(HandlerConfig("/scale", remote_function=scale), HandlerConfig("/any"))
    assert [document["paths"][path]["post"]["summary"] for path in ("/scale", "/any")] == ["/scale", "/any"]


def test_fields_in_the_path_are_not_in_the_body() -> None:
    document = described(HandlerConfig("/tell/{text}", remote_function=tell))
    assert payload_schema(document["paths"]["/tell/{text}"]["post"])["required"] == []


def test_an_upload_has_any_media_type_and_needs_the_header() -> None:
    operation = described(HandlerConfig("/upload", payload_class=Upload))["paths"]["/upload"]["post"]
    assert operation["requestBody"]["content"] == {"*/*": {"schema": {}}}
    assert {"header": []} in operation["security"]


def test_without_an_engine_the_body_is_the_payload() -> None:
    document = described(HandlerConfig("/tell", remote_function=tell), is_signed=False)
    operation = document["paths"]["/tell"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == {"text", "size"}
    assert "security" not in operation
    assert document["components"]["schemas"] == {}


async def plain(_request: web.Request) -> web.Response:
    return web.Response()


async def asked(_request: web.Request) -> web.Response:
    """Answer what was asked."""
    return web.Response()


def test_a_guarded_function_takes_anything_and_others_are_left_out() -> None:
    worker = Worker(WorkerConfig(MODEL_URL, model_healthcheck_url="/health", handlers=[HandlerConfig("/a")]))
    routes = [web.get("/plain", plain), web.post("/guarded", worker.backend.guard(asked))]
    document = description_of(worker.backend, routes, URL, True)
    openapi_spec_validator.validate(document)
    assert list(document["paths"]) == ["/guarded"]
    assert document["paths"]["/guarded"]["post"]["summary"] == "Answer what was asked."


@pytest.mark.parametrize("name", WORKERS)
def test_each_ready_made_worker_is_described(name: str) -> None:
    environ = {
        "MODEL_SERVER_URL": MODEL_URL,
        "MODEL_NAME": "tiny",
        "MODEL_LOG": "/tmp/m.log",
        "COMFYUI_DIALECT": "native",
    }
    backend, routes = importlib.import_module(f"workers.{name}.server").build(environ)
    document = description_of(backend, routes, URL, True)
    openapi_spec_validator.validate(document)
    assert document["paths"]
    assert document["servers"] == [{"url": URL}]
