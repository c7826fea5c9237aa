"""Declared workers with handler classes, names and fields as authors wrote them for another package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import ClientResponse, web

from lib.backend import Backend
from lib.data_types import ApiPayload, EndpointHandler, LogAction
from lib.worker import (
    BenchmarkConfig,
    EndpointHandlerFactory,
    HandlerConfig,
    LogActionConfig,
    Worker,
    WorkerConfig,
)
from tests.authors.other_package import Generate, Make, Prompt
from tests.fakes.worker import READY_LINE, Setup
from tests.system import System, with_worker_task


@dataclass
class Tuned(Generate):
    allow_parallel_requests: bool | None = True
    concurrency: int | None = 3
    do_warmup_benchmark: bool = False


class Unmeasured(Generate):
    """Without `@dataclass` and without annotations."""

    has_benchmark = False
    max_concurrency = 5


async def add(a: int, b: int = 1) -> int:
    return a + b


def add_plainly(a: int, b: int = 1) -> int:
    return a + b


@dataclass
class Numbers(ApiPayload):
    a: int
    b: int = 1

    def count_workload(self) -> float:
        return 1.0


class Computes(EndpointHandler[Numbers]):
    """A handler class of which a subclass says how it computes its answers."""

    @property
    def endpoint(self) -> str:
        return "/remote/add"

    @classmethod
    def payload_cls(cls) -> type[Numbers]:
        return Numbers


@dataclass
class ByField(Computes):
    remote_function: Any = add


class ByPlainField(Computes):
    remote_function = add_plainly

    async def generate_client_response(
        self, client_request: web.Request, model_response: ClientResponse
    ) -> web.StreamResponse:
        raise AssertionError("the answer is not the model server's")


class ByMethod(Computes):
    async def remote_function(self, a: int, b: int = 1) -> int:  # type: ignore[override] - as authors write it
        return a + b


class ByOverride(Computes):
    async def call_remote_dispatch_function(self, params: dict[str, Any]) -> Any:
        return params["a"] + params["b"]


class ByFile(Computes):
    @classmethod
    def payload_cls(cls) -> Any:
        return dict

    async def call_remote_dispatch_function(self, params: dict[str, Any]) -> Any:
        return Path(params["path"])


class ByBoth(ByField):
    async def call_remote_dispatch_function(self, params: dict[str, Any]) -> Any:
        return await super().call_remote_dispatch_function({**params, "b": params["b"]})


class ByAssignment(Computes):
    def __init__(self) -> None:
        self.remote_function = add


def a_worker(*handlers: HandlerConfig, **config: Any) -> Make:
    def make(model_url: str, _: Setup) -> tuple[Backend, Sequence[web.AbstractRouteDef]]:
        given: dict[str, Any] = {"model_server_url": model_url, "model_healthcheck_url": "/health", **config}
        worker = Worker(WorkerConfig(handlers=list(handlers), **given))
        return worker.backend, worker.routes

    return make


def problems_of(*handlers: HandlerConfig, **config: Any) -> list[str]:
    with pytest.raises(SystemExit) as refused:
        a_worker(*handlers, **config)("http://127.0.0.1:8000", Setup())
    return list(cast(Any, refused.value).problems)


async def answer_of(system: System, path: str, payload: Any) -> tuple[int, Any]:
    async with system.http.post(
        system.url + path, json={"auth_data": system.auth(), "payload": payload}
    ) as answer:
        return answer.status, await answer.json()


def handler_of(config: HandlerConfig) -> EndpointHandler[Any]:
    handler = EndpointHandlerFactory(WorkerConfig(handlers=[config])).get_handler(config.route)
    assert handler is not None
    return handler


# The benchmark of a handler class


@pytest.mark.parametrize("handler_class", [Generate, Tuned])
async def test_a_handler_class_is_measured_with_its_own_payload(
    tmp_path: Path, handler_class: type[Generate]
) -> None:
    make = a_worker(HandlerConfig("/generate", handler_class=handler_class))
    async with with_worker_task(tmp_path, make=make) as system:
        assert system.last_report.max_perf not in (0, 100.0)
        sent = [r.json() for r in system.model.requests if r.method == "POST"]
        assert sent
        assert all(payload == {"prompt": "a test of the model", "max_tokens": 4} for payload in sent)


def test_the_fields_of_the_other_package_mean_what_they_meant() -> None:
    tuned = handler_of(HandlerConfig("/a", handler_class=Tuned))
    assert (tuned.benchmark_concurrency, tuned.benchmark_warmup) == (3, False)
    given = BenchmarkConfig(concurrency=7, do_warmup=True)
    config = WorkerConfig(handlers=[HandlerConfig("/a", handler_class=Tuned, benchmark_config=given)])
    factory = EndpointHandlerFactory(config)
    overridden = factory.get_benchmark_handler()
    assert overridden is not None
    assert (overridden.benchmark_concurrency, overridden.benchmark_warmup) == (7, True)
    assert list(factory.problems()) == []
    assert handler_of(HandlerConfig("/a", handler_class=Unmeasured)).max_concurrency == 5


class OwnInit(Generate):
    concurrency = 4

    def __init__(self) -> None:
        self.benchmark_runs = 1


@dataclass
class NotAnnotated(Generate):
    concurrency = 4


@pytest.mark.parametrize("handler_class", [OwnInit, NotAnnotated])
def test_a_class_attribute_is_a_fields_default(handler_class: type[Generate]) -> None:
    handler = handler_of(HandlerConfig("/a", handler_class=handler_class))
    assert (handler.benchmark_concurrency, handler.problems()) == (4, [])


class OwnConcurrency(Generate):
    @property
    def concurrency(self) -> str:  # type: ignore[override] - it is older than the field
        return "its own"


def test_a_benchmark_leaves_a_property_of_an_older_fields_name_alone() -> None:
    given = BenchmarkConfig(concurrency=7)
    handler = handler_of(HandlerConfig("/a", handler_class=OwnConcurrency, benchmark_config=given))
    assert (handler.benchmark_concurrency, handler.concurrency, handler.problems()) == (7, "its own", [])


class WithoutPayloads(Generate):
    def make_benchmark_payload(self) -> Prompt:
        raise NotImplementedError


class Untested(Computes):
    """Its payload class has no `for_test`."""


@pytest.mark.parametrize(
    "config",
    [
        HandlerConfig("/a", handler_class=Unmeasured),
        HandlerConfig("/a", handler_class=WithoutPayloads),
        HandlerConfig("/a", handler_class=Untested),
        HandlerConfig("/a", handler_class=Generate, method="GET"),
    ],
)
def test_a_class_without_a_benchmark_has_none(config: HandlerConfig) -> None:
    backend, _ = a_worker(config)("http://127.0.0.1:8000", Setup())
    assert backend.benchmark_handler is None


def test_a_declared_benchmark_precedes_the_default_of_a_class() -> None:
    declared = HandlerConfig("/b", benchmark_config=BenchmarkConfig([{}]))
    backend, _ = a_worker(HandlerConfig("/a", handler_class=Generate), declared)("http://m", Setup())
    assert backend.benchmark_handler is not None
    assert backend.benchmark_handler.endpoint == "/b"


class Insists(Generate):
    has_benchmark = True


class InsistsInVain(Computes):
    has_benchmark = True


class Misspelt(Generate):
    has_benchmark = "yes"  # type: ignore[assignment] - authors may


class CallsItself(ByField):
    call_model: Any = None


class WithoutParams(Computes):
    async def call_remote_dispatch_function(self) -> Any:  # type: ignore[override] - authors may
        return sum((1, 2))


@pytest.mark.parametrize(
    ("handlers", "problem"),
    [
        (
            [HandlerConfig("/a", handler_class=Generate), HandlerConfig("/b", handler_class=Tuned)],
            "handlers '/a', '/b' have a benchmark: set has_benchmark = False in all classes but one",
        ),
        (
            [
                HandlerConfig("/a", handler_class=Insists),
                HandlerConfig("/b", benchmark_config=BenchmarkConfig([{}])),
            ],
            "handlers '/a', '/b' have a benchmark: set has_benchmark = False in all classes but one",
        ),
        (
            [HandlerConfig("/a", handler_class=InsistsInVain)],
            "handler '/a': has_benchmark is True, but the class has no make_benchmark_payload and its",
        ),
        (
            [HandlerConfig("/a", handler_class=Misspelt)],
            "handler '/a': has_benchmark must be True or False, not 'yes'",
        ),
        (
            [HandlerConfig("/a", handler_class=Unmeasured, benchmark_concurrency=2)],
            "handler '/a': benchmark_concurrency is given, but it has no benchmark",
        ),
        (
            [HandlerConfig("/a", handler_class=CallsItself)],
            "handler '/a': remote_function is given, but only that of a HandlerConfig, or of its",
        ),
        (
            [HandlerConfig("/a", handler_class=WithoutParams)],
            "handler '/a': call_remote_dispatch_function can't be called with params= alone",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_its_name(
    handlers: list[HandlerConfig], problem: str
) -> None:
    found = problems_of(*handlers)
    assert len([p for p in found if p.startswith(problem)]) == 1, found


def test_a_function_of_a_handler_that_no_declaration_made_is_refused() -> None:
    backend = Backend(None)
    backend.create_handler(ByField())
    assert any("remote_function is given, but only" in problem for problem in backend.config().problems())


# Remote dispatch


@pytest.mark.parametrize("handler_class", [ByField, ByPlainField, ByMethod, ByOverride, ByBoth, ByAssignment])
async def test_a_class_may_compute_its_answers(tmp_path: Path, handler_class: Any) -> None:
    make = a_worker(HandlerConfig("/add", handler_class=handler_class))
    async with with_worker_task(tmp_path, make=make) as system:
        assert await answer_of(system, "/add", {"a": 40, "b": 2}) == (200, {"result": 42})
        assert (await answer_of(system, "/add", {"b": 2}))[0] == 422
        assert all(r.method == "GET" for r in system.model.requests)


async def test_a_class_may_answer_with_a_file(tmp_path: Path) -> None:
    path, content = tmp_path / "a.txt", bytes(range(256)) * 4096 + b"end"
    path.write_bytes(content)
    async with with_worker_task(
        tmp_path, make=a_worker(HandlerConfig("/add", handler_class=ByFile))
    ) as system:
        message = {"auth_data": system.auth(), "payload": {"path": str(path)}}
        async with system.http.post(system.url + "/add", json=message) as answer:
            assert (answer.status, answer.content_type) == (200, "text/plain")
            assert (answer.content_length, await answer.read()) == (len(content), content)


async def test_a_class_that_computes_needs_no_model_server(tmp_path: Path) -> None:
    handler = HandlerConfig("/add", handler_class=ByOverride)
    make = a_worker(handler, model_server_url=None, model_healthcheck_url=None)
    async with with_worker_task(tmp_path, make=make) as system:
        assert await answer_of(system, "/add", {"a": 1, "b": 1}) == (200, {"result": 2})


async def test_missing_and_wrong_parameters_of_its_function_are_422(tmp_path: Path) -> None:
    class Any_(ByField):
        @classmethod
        def payload_cls(cls) -> Any:
            return dict

    routes = (
        HandlerConfig("/add", handler_class=Any_),
        HandlerConfig("/strict", handler_class=Any_, extra="forbid"),
    )
    answers: list[tuple[str, dict[str, Any], int, Any]] = [
        ("/add", {"a": 1, "c": 2}, 200, {"result": 2}),
        ("/add", {"c": 2}, 422, {"payload": {"a": "missing parameter"}}),
        ("/add", {"a": "1"}, 422, {"payload": {"a": "must be an integer"}}),
        ("/strict", {"a": 1, "c": 2}, 422, {"payload": {"c": "unknown parameter"}}),
    ]
    async with with_worker_task(tmp_path, make=a_worker(*routes)) as system:
        for path, payload, status, said in answers:
            assert await answer_of(system, path, payload) == (status, said)


# Names


async def test_log_actions_are_rules_like_the_others(tmp_path: Path) -> None:
    log_file = tmp_path / "model.log"
    lines = LogActionConfig(
        on_info=["loading"], log_actions=[(LogAction.ModelLoaded, READY_LINE), (LogAction.ModelError, "OOM")]
    )
    make = a_worker(
        HandlerConfig("/echo"),
        model_healthcheck_url=None,
        model_log_file=str(log_file),
        log_action_config=lines,
    )
    async with with_worker_task(tmp_path, make=make, wait=False) as system:
        system.write_log()
        await system.ready()
        system.write_log("OOM in layer 3\n")
        assert await system.errored() == "OOM in layer 3"


@pytest.mark.parametrize("rule", [("loaded", "text"), (LogAction.Info,), (LogAction.Info, 3)])
def test_a_log_action_that_is_none_is_refused(rule: Any) -> None:
    lines = LogActionConfig(log_actions=[rule])
    found = problems_of(HandlerConfig("/a"), log_action_config=lines, model_log_file="model.log")
    assert f"log_action_config: log_actions has {rule!r}, not a LogAction and a string" in found


def test_a_factory_has_the_handlers_of_a_declaration() -> None:
    config = WorkerConfig(
        model_server_url="http://127.0.0.1",
        model_server_port=8000,
        handlers=[
            HandlerConfig("/a", benchmark_config=BenchmarkConfig([{}])),
            HandlerConfig("/b", handler_class=Unmeasured),
        ],
    )
    factory = EndpointHandlerFactory(config)
    assert list(factory.get_all_handlers()) == ["/a", "/b"]
    assert isinstance(factory.get_handler("/b"), Unmeasured)
    assert factory.get_handler("/c") is None
    assert factory.get_benchmark_handler() is factory.get_handler("/a")
    assert factory.has_handlers()
    assert factory.model_server_base_url == "http://127.0.0.1:8000"
    assert factory.config is config
