"""Payloads in a declared handler, a client's and the benchmark's, and the handler's lifetime."""

from __future__ import annotations

import asyncio
import datetime
import json
import threading
from dataclasses import dataclass
from typing import Any

import anyio
import pydantic
import pydantic.dataclasses
import pytest

from lib.data_types import ApiPayload, AuthData, EndpointHandler
from lib.declare.declared_handler import DeclaredHandler, DeclaredPayload
from lib.declare.functions import FunctionFailed
from lib.fields.json_fields import JsonDataException
from lib.fields.json_values import json_text, to_json
from lib.metrics import WorkloadCounter
from lib.worker import BenchmarkConfig, HandlerConfig
from tests.guard import GUARD_S
from tests.lib.fields.typed_examples import Scaled


def add_more(payload: dict[str, Any]) -> dict[str, Any]:
    return {**payload, "more": 1}


def words_in_w(payload: dict[str, Any]) -> dict[str, Any]:
    return {"words": payload["w"]}


def more(payload: dict[str, Any]) -> float:
    return payload["more"] + 1


def twice(payload: dict[str, Any]) -> float:
    return payload["words"] * 2


def gives_nothing(payload: dict[str, Any]) -> Any: ...


@dataclass
class WordsPayload(ApiPayload):
    words: int

    def generate_payload_json(self) -> dict[str, Any]:
        return {"n": self.words}

    def count_workload(self) -> float:
        return self.words


@dataclass
class Form(WordsPayload):
    def generate_payload_multipart(self) -> dict[str, Any] | None:
        return {"n": self.words}


class Key(pydantic.BaseModel):
    value: pydantic.SecretStr = pydantic.Field(alias="Value")


class Login(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    user: str = pydantic.Field(alias="User")
    password: pydantic.SecretStr
    token: pydantic.SecretBytes
    key: Key
    keys: list[Key]
    by_name: dict[str, pydantic.SecretStr]
    pair: tuple[pydantic.SecretStr, int]
    page: pydantic.HttpUrl
    until: datetime.date
    content: bytes


@pydantic.dataclasses.dataclass
class AliasedKey:
    value: pydantic.SecretStr = pydantic.Field(alias="Value")


class ReadsAs(pydantic.BaseModel):
    value: str = pydantic.Field(validation_alias="Value")


@dataclass
class AroundKeys:
    key: Key
    keys: list[AliasedKey]


LOGIN: dict[str, Any] = {
    "User": "a",
    "password": "b",
    "token": "c",
    "key": {"Value": "d"},
    "keys": [{"Value": "e"}, {"Value": "f"}],
    "by_name": {"g": "h"},
    "pair": ["i", 1],
    "page": "https://example.com/",
    "until": "2026-01-02",
    "content": "j",
    "more": 1,
}


def log_in(login: Login) -> str:
    return login.password.get_secret_value()


def use_value(value: ReadsAs | None = None) -> str:
    return value.value if value else ""


def use_number(scaled: Scaled) -> str:
    return "b" * (scaled.number // 2)


def use_key(key: AliasedKey) -> str:
    return key.value.get_secret_value()


class Bare:
    """A payload class with the one required method only."""

    @classmethod
    def from_json_msg(cls, json_msg: dict[str, Any]) -> Bare:
        return cls()


class ReadsTheEnvelope(EndpointHandler[dict[str, Any]]):
    """A handler class that reads whole envelopes, as older workers do."""

    @property
    def endpoint(self) -> str:
        return "/a"

    @classmethod
    def payload_cls(cls) -> type[dict[str, Any]]:
        return dict

    @classmethod
    def get_data_from_request(cls, req_data: dict[str, Any]) -> tuple[AuthData, dict[str, Any]]:
        return AuthData.from_json_msg(req_data["auth_data"]), {"wrapped": req_data["payload"]}


@dataclass
class WrongWorkload(ApiPayload):
    def count_workload(self) -> float:
        return -5


def negative(payload: object) -> float:
    return -5


def handler(benchmark: BenchmarkConfig | None = None, **declared: Any) -> DeclaredHandler:
    built = HandlerConfig("/a", **declared).build(benchmark)
    assert isinstance(built, DeclaredHandler)
    return built


def read(of: DeclaredHandler, payload: dict[str, Any]) -> DeclaredPayload:
    return of.read_payload({"auth_data": {}, "payload": payload})


def refusal(of: DeclaredHandler, payload: dict[str, Any]) -> dict[str, Any]:
    with pytest.raises(JsonDataException) as refused:
        read(of, payload)
    return refused.value.message


def workload(payload: DeclaredPayload) -> float:
    return WorkloadCounter("handler").count(payload)


def test_a_payload_is_passed_on_unchanged() -> None:
    payload = read(handler(), {"any": ["thing"]})
    assert handler().generate_payload_json(payload) == {"any": ["thing"]}
    assert (payload.generate_payload_multipart(), workload(payload)) == (None, 100.0)


@pytest.mark.parametrize(
    ("payload_class", "payload"),
    [
        (Login, LOGIN),
        (AliasedKey, {"Value": "a"}),
        (AroundKeys, {"key": {"Value": "a"}, "keys": [{"Value": "b"}]}),
    ],
)
def test_a_payload_of_pydantics_types_is_sent_as_the_client_wrote_it(
    payload_class: type[Any], payload: dict[str, Any]
) -> None:
    message = read(handler(payload_class=payload_class), payload).generate_payload_json()
    assert json.loads(json_text(message)) == payload


@pytest.mark.parametrize(
    ("payload_class", "function", "payload", "name"),
    [
        (Login, log_in, LOGIN, "login"),
        (AliasedKey, use_key, {"Value": "b"}, "key"),
        (Scaled, use_number, {"number": 1, "factor": 2}, "scaled"),
        (ReadsAs, use_value, {"Value": "b"}, "value"),
    ],
)
def test_a_function_may_have_the_payload_class_as_its_parameter(
    payload_class: type[Any], function: Any, payload: dict[str, Any], name: str
) -> None:
    arguments = read(handler(payload_class=payload_class, remote_function=function), payload).arguments
    assert (list(arguments), function(**arguments)) == ([name], "b")


def test_a_function_of_another_class_reads_what_the_client_wrote() -> None:
    arguments = read(handler(payload_class=Key, remote_function=use_key), {"Value": "b"}).arguments
    assert use_key(**arguments) == "b"


def test_a_secret_in_a_functions_result_stays_hidden() -> None:
    assert to_json(Key(Value=pydantic.SecretStr("a"))) == b'{"value": "**********"}'
    with pytest.raises(TypeError):
        to_json(pydantic.SecretStr("a"))


def test_a_parsers_result_is_sent_and_counted() -> None:
    of = handler(request_parser=add_more, workload_calculator=more)
    payload = read(of, {"a": 1})
    assert (payload.generate_payload_json(), workload(payload)) == ({"a": 1, "more": 1}, 2)


def test_a_payload_class_reads_the_parsers_result() -> None:
    of = handler(request_parser=words_in_w, payload_class=WordsPayload)
    payload = read(of, {"w": 4})
    assert (payload.generate_payload_json(), workload(payload)) == ({"n": 4}, 4)
    assert refusal(of, {"w": "x"}) == {"payload": {"words": "must be an integer"}}
    counted = read(handler(payload_class=WordsPayload, workload_calculator=twice), {"words": 4})
    assert workload(counted) == 8


def test_payload_classes_for_forms_and_plain_dicts() -> None:
    assert read(handler(payload_class=Form), {"words": 4}).generate_payload_multipart() == {"n": 4}
    payload = read(handler(payload_class=Bare), {"b": 1})
    assert (payload.generate_payload_json(), workload(payload)) == ({"b": 1}, 100.0)
    assert read(handler(payload_class=dict), {"b": 1}).generate_payload_json() == {"b": 1}


def raising(error: Exception) -> Any:
    def parser(payload: dict[str, Any]) -> dict[str, Any]:
        raise error

    return parser


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (JsonDataException({"a": "no"}), {"a": "no"}),
        (ValueError("a must be odd"), "a must be odd"),
        (ValueError(), "is invalid"),
        (KeyError("prompt"), {"prompt": "missing parameter"}),
        (KeyError("gpt-9"), {"model": "unknown: 'gpt-9'"}),
        (KeyError(), {"?": "missing parameter"}),
    ],
)
def test_these_errors_of_a_parser_are_the_clients_fault(error: Exception, problem: Any) -> None:
    assert refusal(handler(request_parser=raising(error)), {"model": "gpt-9"}) == {"payload": problem}


@pytest.mark.parametrize("parser", [raising(RuntimeError("bug")), gives_nothing])
def test_other_errors_of_a_parser_are_not_the_clients_fault(parser: Any) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        read(handler(request_parser=parser), {})


def test_a_workload_that_can_not_be_counted_is_the_default() -> None:
    assert workload(read(handler(workload_calculator=twice), {})) == 100.0


def test_a_functions_keywords_come_from_the_payload_class() -> None:
    def function(n: int) -> int:
        return n

    of = handler(remote_function=function, payload_class=WordsPayload)
    assert read(of, {"words": 1}).generate_payload_json() == {"n": 1}
    assert refusal(handler(remote_function=function), {"m": 1}) == {"payload": {"n": "missing parameter"}}
    assert refusal(handler(remote_function=function), {"n": "1"}) == {"payload": {"n": "must be an integer"}}


def answer(words: int) -> int:
    return words


def test_the_benchmark_goes_through_the_parser() -> None:
    def pops(payload: dict[str, Any]) -> dict[str, Any]:
        return {"words": payload.pop("w")}  # it changes what it is given

    of = handler(BenchmarkConfig([{"w": 1}]), request_parser=pops, workload_calculator=twice)
    made = [of.make_benchmark_payload() for _ in range(3)]
    assert [(p.generate_payload_json(), workload(p)) for p in made] == [({"words": 1}, 2)] * 3
    of = handler(BenchmarkConfig([{"text": "x"}]), request_parser=pops, remote_function=answer)
    with pytest.raises(JsonDataException):  # neither as it is nor as the parser's result
        of.make_benchmark_payload()


def test_a_handler_class_reads_the_benchmarks_payloads_like_a_clients() -> None:
    config = HandlerConfig("/a", handler_class=ReadsTheEnvelope)
    made = config.build(BenchmarkConfig([{"n": 1}]))
    assert made.make_benchmark_payload() == {"wrapped": {"n": 1}}


async def test_running_threads_are_left_behind_when_requests_are_cut() -> None:
    loop, began, go = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def works() -> None:
        loop.call_soon_threadsafe(began.set)
        assert go.wait(GUARD_S)

    of = handler(remote_function=works)
    assert of.function is not None

    async def call() -> None:
        assert of.function is not None
        async with of.function.call({}):
            pass

    called = asyncio.create_task(call())
    await began.wait()
    of.on_cut()
    with anyio.fail_after(GUARD_S), pytest.raises(FunctionFailed, match="the worker stopped"):
        await called
    go.set()


@pytest.mark.parametrize(
    ("declared", "name"),
    [
        ({"workload_calculator": negative}, "workload_calculator"),
        ({"payload_class": WrongWorkload}, "count_workload"),
    ],
)
def test_a_wrong_workload_names_what_the_author_wrote(
    declared: dict[str, Any], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert workload(read(handler(**declared), {})) == 100.0
    said = "returned a negative number, not a finite number of 0 or more: counted as 100"
    assert caplog.messages == [f"handler: {name} {said}"]
