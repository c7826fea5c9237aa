"""Declared workers: what is built of a declaration, and the problems of one that can't work."""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from PIL import Image

from lib.data_types import ApiPayload, EndpointHandler, LogAction
from lib.declare.config_fields import DeclarationRefused, DeclaredConfig
from lib.declare.declared_handler import AnsweringHandler, DeclaredHandler
from lib.errors import SettingsError
from lib.uploads import Upload
from lib.worker import BenchmarkConfig, HandlerConfig, LogActionConfig, Worker, WorkerConfig
from tests.fakes.plain_handler import PlainHandler

URL = "http://127.0.0.1:8000"

# The same classes without types, for declarations that a type checker refuses too.
AnyWorkerConfig: Any = WorkerConfig
AnyHandlerConfig: Any = HandlerConfig
AnyBenchmarkConfig: Any = BenchmarkConfig
AnyLogActionConfig: Any = LogActionConfig


@dataclass
class Words(ApiPayload):
    words: int

    def count_workload(self) -> float:
        return self.words

    @classmethod
    def for_test(cls) -> Words:
        return cls(words=3)


@dataclass
class Untested(ApiPayload):
    words: int

    def count_workload(self) -> float:
        return self.words


class OwnHandler(EndpointHandler[Words]):
    """A handler class with an `__init__` of its own, without `@dataclass`, and with a health check."""

    max_queue_time = 7.0
    max_concurrency = 3

    def __init__(self) -> None:
        self.benchmark_runs = 5

    @property
    def endpoint(self) -> str:
        return "/own"

    @property
    def healthcheck_endpoint(self) -> str | None:
        return "/alive"

    @classmethod
    def payload_cls(cls) -> type[Words]:
        return Words


class Unfinished(EndpointHandler[Words]):
    """A handler class without its abstract methods."""


class Busy(OwnHandler):
    """A handler class with a wrong field."""

    max_concurrency = 0


class FailingHandler(OwnHandler):
    """A handler class that can't be constructed."""

    def __init__(self) -> None:
        raise LookupError("no model")


def answer() -> int:
    return 42


def two_arguments(request: Any, handler: Any) -> Any: ...


async def one_argument(request: Any) -> Any: ...


async def async_items(request: Any, handler: Any) -> AsyncGenerator[int, None]:
    yield 1


async def later(*_: Any) -> Any: ...


@asynccontextmanager
async def life() -> AsyncGenerator[None, None]:
    yield


@asynccontextmanager
async def life_of(app: str) -> AsyncGenerator[None, None]:
    yield


@contextmanager
def short_life() -> Generator[None, None, None]:
    yield


async def undecorated() -> AsyncGenerator[None, None]:
    yield


def a_worker(*handlers: HandlerConfig, **config: Any) -> Worker:
    """A worker with a model server and a health check."""
    return Worker(served(*handlers, **config))


def problems_of(declare: Callable[[], Any]) -> list[str]:
    with pytest.raises(DeclarationRefused) as refused:
        declare()
    return list(refused.value.problems)


# Names, order and defaults


@pytest.mark.parametrize(
    ("config", "signature"),
    [
        (
            WorkerConfig,
            "model_server_url=None, model_server_port=None, model_log_file=None, benchmark_data=[], "
            "handlers=[], model_healthcheck_url=None, benchmark_route=None, "
            "log_action_config=LogActionConfig(on_load=[], on_error=[], on_info=[], log_actions=[]), "
            "max_sessions=10, lifecycle=None, *, middlewares=[]",
        ),
        (
            HandlerConfig,
            "route, healthcheck=None, allow_parallel_requests=False, max_queue_time=30.0, "
            "benchmark_config=None, handler_class=None, payload_class=None, request_parser=None, "
            "response_generator=None, workload_calculator=None, is_remote_dispatch=False, "
            "remote_function=None, *, method='POST', methods=None, max_concurrency=None, "
            "max_workload=None, "
            "benchmark_concurrency=None, on_disconnect='cancel', keepalive_s=None, idempotent=False, "
            "extra='ignore'",
        ),
        (BenchmarkConfig, "dataset=None, generator=None, runs=8, concurrency=10, do_warmup=True"),
        (LogActionConfig, "on_load=[], on_error=[], on_info=[], *, log_actions=[]"),
    ],
)
def test_names_order_and_defaults(config: type[DeclaredConfig], signature: str) -> None:
    parameters: list[str] = []
    for field in fields(config):
        if field.kw_only and "*" not in parameters:
            parameters.append("*")
        default = field.default if field.default_factory is MISSING else field.default_factory()
        parameters.append(field.name if default is MISSING else f"{field.name}={default!r}")
    assert ", ".join(parameters) == signature


def test_default_lists_are_not_shared() -> None:
    LogActionConfig().on_load.append("x")
    WorkerConfig().handlers.append(HandlerConfig("/x"))
    assert LogActionConfig().on_load == []
    assert WorkerConfig().handlers == []


def test_positions_names_and_assignments_are_equivalent() -> None:
    by_name = HandlerConfig("/a", max_queue_time=1.0)
    assigned = HandlerConfig("/a")
    assigned.max_queue_time = 1.0
    assert HandlerConfig("/a", None, False, 1.0) == by_name == assigned
    assert by_name.given == assigned.given == {"route", "max_queue_time"}


# Building


def test_a_declared_worker() -> None:
    log = LogActionConfig(on_load=["up"], on_error=["bad", "worse"], on_info=["note"])
    worker = Worker(
        WorkerConfig(
            "http://127.0.0.1/base",
            "9000",
            "/tmp/model.log",
            handlers=[HandlerConfig("/a"), HandlerConfig("/b", method="PUT")],
            log_action_config=log,
        )
    )
    backend = worker.backend
    assert backend.model_server_url == "http://127.0.0.1:9000/base"
    assert str(backend.model_log_file) == "/tmp/model.log"
    assert backend.log_actions == (
        (LogAction.ModelLoaded, "up"),
        (LogAction.ModelError, "bad"),
        (LogAction.ModelError, "worse"),
        (LogAction.Info, "note"),
    )
    assert (backend.max_sessions, backend.healthcheck_url, backend.benchmark_handler) == (10, None, None)
    routes = [(r.method, r.path) for r in worker.routes if isinstance(r, web.RouteDef)]
    assert routes == [("POST", "/a"), ("PUT", "/b")]


def test_a_declared_handler() -> None:
    handler = HandlerConfig("/a").build(None)
    assert isinstance(handler, DeclaredHandler)
    assert (handler.endpoint, handler.healthcheck_endpoint) == ("/a", None)
    assert (handler.allow_parallel_requests, handler.max_queue_time) == (False, 30.0)
    assert (handler.max_concurrency, handler.on_disconnect, handler.keepalive_s) == (None, "cancel", None)
    assert handler.idempotent is False
    other = HandlerConfig(
        "/b", None, True, None, max_concurrency=4, on_disconnect="finish", keepalive_s=5, idempotent=True
    ).build(None)
    assert (other.allow_parallel_requests, other.max_queue_time) == (True, None)
    assert (other.max_concurrency, other.on_disconnect, other.keepalive_s) == (4, "finish", 5)
    assert other.idempotent is True


def test_without_handlers_there_is_one_route_at_the_root() -> None:
    (route,) = a_worker().routes
    assert isinstance(route, web.RouteDef)
    assert (route.method, route.path) == ("POST", "/")


def test_only_a_response_generator_needs_an_answering_handler() -> None:
    assert not isinstance(HandlerConfig("/a").build(None), AnsweringHandler)
    assert isinstance(HandlerConfig("/a", response_generator=later).build(None), AnsweringHandler)


@pytest.mark.parametrize("limit", [None, 0])
def test_none_or_0_sessions_set_no_limit(limit: int | None) -> None:
    assert a_worker(max_sessions=limit).backend.max_sessions is None


@pytest.mark.parametrize(
    ("url", "port", "expected"),
    [
        (URL, None, URL),
        (URL, 8000, URL),
        ("http://127.0.0.1", 80, "http://127.0.0.1:80"),
        ("https://[::1]/v1?a=b", 8443, "https://[::1]:8443/v1?a=b"),
        ("http://user:word@model:", "81", "http://user:word@model:81"),
    ],
)
def test_the_model_servers_url_with_its_port(url: str, port: int | str | None, expected: str) -> None:
    assert a_worker(model_server_url=url, model_server_port=port).backend.model_server_url == expected


def test_the_health_checks_are_the_workers_or_all_of_its_handlers() -> None:
    plain, checked = HandlerConfig("/a"), HandlerConfig("/b", "/of-b")
    classed = HandlerConfig("/c", handler_class=OwnHandler)
    for handlers, expected in (
        ((plain, checked, classed), ("/of-b", "/alive")),
        ((checked, HandlerConfig("/d", "/of-b")), ("/of-b",)),
        ((plain, classed), ("/alive",)),
        ((HandlerConfig("/c", "/mine", handler_class=OwnHandler),), ("/mine",)),
    ):
        worker = a_worker(*handlers, model_healthcheck_url=None)
        assert worker.backend.config().health_checks == expected
    assert a_worker(plain, checked).backend.config().health_checks == ("/health",)


@pytest.mark.parametrize("lifecycle", [life, life()])
def test_a_lifecycle_is_a_context_manager_or_a_function_that_returns_one(lifecycle: Any) -> None:
    assert a_worker(model_healthcheck_url=None, lifecycle=lifecycle).backend.lifecycle is lifecycle


# OwnHandler classes


def test_only_given_fields_override_the_class() -> None:
    handler = HandlerConfig("/a", handler_class=OwnHandler).build(None)
    assert isinstance(handler, OwnHandler)
    assert (handler.endpoint, handler.max_queue_time, handler.max_concurrency) == ("/own", 7.0, 3)
    assert (handler.allow_parallel_requests, handler.on_disconnect) == (None, "cancel")
    given = HandlerConfig(
        "/a", allow_parallel_requests=True, max_queue_time=None, handler_class=OwnHandler, keepalive_s=2.0
    ).build(None)
    assert (given.allow_parallel_requests, given.max_queue_time) == (True, None)
    assert (given.keepalive_s, given.max_concurrency) == (2.0, 3)


def test_only_given_benchmark_fields_override_the_class() -> None:
    config = HandlerConfig("/a", benchmark_config=BenchmarkConfig(), handler_class=OwnHandler)
    handler = config.build(config.benchmark_config)
    assert (handler.benchmark_runs, handler.benchmark_concurrency, handler.benchmark_warmup) == (
        5,
        None,
        True,
    )
    assert handler.make_benchmark_payload() == Words(3)
    benchmark = BenchmarkConfig([{"words": 1}, {"words": 2}], runs=9, concurrency=4, do_warmup=False)
    handler = config.build(benchmark)
    assert (handler.benchmark_runs, handler.benchmark_concurrency, handler.benchmark_warmup) == (9, 4, False)
    assert [handler.make_benchmark_payload() for _ in range(3)] == [Words(1), Words(2), Words(1)]


# The benchmark


def test_benchmark_route_and_benchmark_data_are_that_handlers_benchmark() -> None:
    worker = a_worker(
        HandlerConfig("/a"), HandlerConfig("/b"), benchmark_route="/b", benchmark_data=[{"n": 1}, {"n": 2}]
    )
    handler = worker.backend.benchmark_handler
    assert isinstance(handler, DeclaredHandler)
    assert (handler.route, handler.benchmark_runs, handler.benchmark_concurrency) == ("/b", 8, None)
    assert [handler.make_benchmark_payload().json["n"] for _ in range(3)] == [1, 2, 1]


def test_the_only_handler_needs_no_benchmark_route() -> None:
    handler = a_worker(benchmark_data=[{"n": 1}]).backend.benchmark_handler
    assert handler is not None
    assert handler.endpoint == "/"


def test_a_handlers_own_benchmark_config() -> None:
    numbers = iter(range(9))
    benchmark = BenchmarkConfig(
        generator=lambda: {"n": next(numbers)}, runs=3, concurrency=None, do_warmup=False
    )
    worker = a_worker(HandlerConfig("/a", benchmark_config=benchmark), benchmark_route="/a")
    handler = worker.backend.benchmark_handler
    assert handler is not None
    assert (handler.benchmark_runs, handler.benchmark_concurrency, handler.benchmark_warmup) == (
        3,
        None,
        False,
    )
    assert [handler.make_benchmark_payload().json["n"] for _ in range(2)] == [0, 1]


def test_a_given_benchmark_concurrency_overrides_the_benchmark_config() -> None:
    config = HandlerConfig("/a", benchmark_config=BenchmarkConfig([{}]), benchmark_concurrency=2)
    handler = a_worker(config).backend.benchmark_handler
    assert handler is not None
    assert handler.benchmark_concurrency == 2


def test_benchmark_payloads_come_from_the_payload_class() -> None:
    config = HandlerConfig("/a", payload_class=Words)
    handler = a_worker(config, benchmark_route="/a").backend.benchmark_handler
    assert handler is not None
    payload = handler.make_benchmark_payload()
    assert (handler.generate_payload_json(payload), payload.count_workload()) == ({"words": 3}, 3)


def test_a_function_needs_no_model_server() -> None:
    worker = Worker(WorkerConfig(handlers=[HandlerConfig("/a", remote_function=answer)]))
    assert (worker.backend.model_server_url, worker.backend.healthcheck_url) == ("", None)
    config = HandlerConfig("/a", is_remote_dispatch=True, remote_function=answer)
    assert config.build(None).benchmark_name.endswith("test_worker.answer")


# Problems


def function(**fields: Any) -> WorkerConfig:
    return WorkerConfig(handlers=[AnyHandlerConfig("/a", **{"remote_function": answer, **fields})])


def served(*handlers: HandlerConfig, **config: Any) -> WorkerConfig:
    where = {"model_server_url": URL, "model_healthcheck_url": "/health"}
    return AnyWorkerConfig(handlers=list(handlers), **{**where, **config})


def benchmark(**config: Any) -> WorkerConfig:
    return served(HandlerConfig("/a", benchmark_config=AnyBenchmarkConfig(**config)))


def a_file() -> Path: ...


def perhaps_bytes() -> bytes | None: ...


async def an_image() -> Image.Image: ...


def an_open_file() -> io.BytesIO: ...


def parts() -> Iterator[bytes]: ...


async def later_parts() -> AsyncGenerator[bytearray, None]: ...


BINARY_FUNCTIONS = (a_file, perhaps_bytes, an_image, an_open_file, parts, later_parts)


class FileHandler(PlainHandler):
    remote_function = a_file


def upload_and_width(upload: Upload, width: int = 3) -> int: ...


def differently_named(image: Upload) -> int: ...


def by_position(a: int, /) -> int:
    return a


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        (served(max_session=3), "no field 'max_session': did you mean 'max_sessions'?"),
        (served(zzz=3), "no field 'zzz'"),
        (served(AnyHandlerConfig()), "handlers[0]: route is missing"),
        (served(HandlerConfig("a")), "handler 'a': route 'a' is not a path: it begins with '/', has para"),
        (served(HandlerConfig("/{a:.*}")), "handler '/{a:.*}': route '/{a:.*}' is not a path"),
        (served(HandlerConfig("/a?b")), "handler '/a?b': route '/a?b' is not a path"),
        (served(HandlerConfig("/a"), HandlerConfig("/a")), "2 handlers have the route POST /a"),
        (
            served(HandlerConfig("/a", methods=["GET", "PUT"]), HandlerConfig("/a", method="PUT")),
            "2 handlers have the route PUT /a",
        ),
        (
            served(HandlerConfig("/a", method="GET", methods=["GET"])),
            "handler '/a': method and methods are both given",
        ),
        (served(HandlerConfig("/a", methods=[])), "handler '/a': methods is empty"),
        (
            served(HandlerConfig("/a/{path}/b/{p.q}")),
            "handler '/a/{path}/b/{p.q}': route '/a/{path}/b/{p.q}' is",
        ),
        (function(max_queue_time=-1), "handler '/a': max_queue_time is -1, not a finite number of seconds"),
        (function(max_queue_time=float("nan")), "handler '/a': max_queue_time is nan, not a finite number"),
        (function(keepalive_s=float("inf")), "handler '/a': keepalive_s is inf, not a finite number"),
        *(
            (
                function(remote_function=upload_and_width, **fields),
                "handler '/a': remote_function takes width, but an upload fills only upload: read the URL's",
            )
            for fields in ({}, {"payload_class": Upload})
        ),
        (
            function(remote_function=differently_named),
            "handler '/a': remote_function can't be called with upload= alone, as it is for an upload",
        ),
        (
            function(remote_function=differently_named, request_parser=one_argument),
            "handler '/a': request_parser is given, but an upload has no JSON",
        ),
        (function(keepalive_s=0.001), "handler '/a': keepalive_s is 0.001, less than 0.1 s"),
        (function(max_concurrency=0), "handler '/a': max_concurrency is 0, less than 1"),
        (
            function(max_concurrency=True),
            "handler '/a': max_concurrency must be an integer or None, not True",
        ),
        (
            function(on_disconnect="stop"),
            "handler '/a': on_disconnect must be one of 'cancel', 'finish', not",
        ),
        (function(idempotent="yes"), "handler '/a': idempotent must be True or False, not 'yes'"),
        (function(method="post"), "handler '/a': method must be one of 'POST', 'GET', 'PUT', 'PATCH', 'DEL"),
        (function(remote_function="f"), "handler '/a': remote_function must be a function or None, not 'f'"),
        (function(remote_function=type), "handler '/a': remote_function has no signature, so its"),
        *(
            (
                function(remote_function=each, keepalive_s=1.0),
                "handler '/a': remote_function returns a file or bytes, which can't follow the newlines",
            )
            for each in BINARY_FUNCTIONS
        ),
        (
            served(HandlerConfig("/a", handler_class=FileHandler, keepalive_s=1.0)),
            "handler '/a': remote_function returns a file or bytes",
        ),
        (function(remote_function=by_position), "handler '/a': remote_function takes a by position only"),
        (
            function(is_remote_dispatch=False),
            "handler '/a': remote_function is given, but is_remote_dispatch",
        ),
        (
            served(HandlerConfig("/a", is_remote_dispatch=True)),
            "handler '/a': is_remote_dispatch is True, but there is no remote_function",
        ),
        (function(request_parser=later), "handler '/a': request_parser is async: give a plain function"),
        (function(request_parser=answer), "handler '/a': request_parser can't be called with 1 argument"),
        (
            function(response_generator=len),
            "handler '/a': response_generator can't be called with 2 arguments",
        ),
        (function(workload_calculator=later), "handler '/a': workload_calculator is async: give a plain"),
        (
            function(payload_class=int),
            "handler '/a': payload_class int has no from_json_msg, and is no class of fields",
        ),
        (function(payload_class=Words(1)), "handler '/a': payload_class must be a class or None, not Words("),
        (
            function(handler_class=Words),
            "handler '/a': handler_class must be a subclass of EndpointHandler or",
        ),
        (
            function(handler_class=OwnHandler, request_parser=dict),
            "handler '/a': handler_class is given as well as request_parser, remote_function: put that into",
        ),
        (
            served(HandlerConfig("/a", handler_class=Unfinished)),
            "handler '/a': handler_class Unfinished can't be used: TypeError(",
        ),
        (benchmark(dataset=[]), "handler '/a': benchmark_config: dataset is empty"),
        (
            benchmark(dataset=["a"]),
            "handler '/a': benchmark_config: dataset must be a list, each item a dict",
        ),
        (
            benchmark(dataset=[{}], generator=dict),
            "handler '/a': benchmark_config: dataset and generator are both given",
        ),
        (benchmark(), "handler '/a': its benchmark has neither a dataset nor a generator"),
        (benchmark(dataset=[{}], runs=0), "handler '/a': benchmark_config: runs is 0, less than 1"),
        (
            benchmark(dataset=[{}], concurrency=0),
            "handler '/a': benchmark_config: concurrency is 0, less than",
        ),
        (benchmark(generator=later), "handler '/a': benchmark_config: generator is async: give a plain"),
        (
            benchmark(generator=len),
            "handler '/a': benchmark_config: generator can't be called with 0 arguments",
        ),
        (
            served(HandlerConfig("/a", payload_class=Untested), benchmark_route="/a"),
            "handler '/a': its benchmark has neither a dataset nor a generator",
        ),
        (
            served(HandlerConfig("/a", benchmark_concurrency=2)),
            "handler '/a': benchmark_concurrency is given, but it has no benchmark",
        ),
        (
            served(
                HandlerConfig(
                    "/a", benchmark_config=BenchmarkConfig([{}], concurrency=3), benchmark_concurrency=2
                )
            ),
            "handler '/a': benchmark_concurrency is 2, but benchmark_config says concurrency=3",
        ),
        (
            served(HandlerConfig("/a"), benchmark_route="/b"),
            "benchmark_route '/b' is the route of no handler: ",
        ),
        (
            served(HandlerConfig("/a"), HandlerConfig("/a", method="GET"), benchmark_route="/a"),
            "benchmark_route '/a' is the route of 2 handlers",
        ),
        (
            served(HandlerConfig("/a"), HandlerConfig("/b"), benchmark_data=[{}]),
            "benchmark_data is given without benchmark_route, and there are several handlers",
        ),
        (
            served(
                HandlerConfig("/a", benchmark_config=BenchmarkConfig([{}])),
                HandlerConfig("/b"),
                benchmark_route="/b",
                benchmark_data=[{}],
            ),
            "handlers '/a' and '/b' both have a benchmark: keep one",
        ),
        (
            served(
                HandlerConfig("/a", benchmark_config=BenchmarkConfig([{}])),
                benchmark_route="/a",
                benchmark_data=[{}],
            ),
            "handler '/a' has a benchmark_config, and benchmark_data is given too: keep one",
        ),
        (
            served(*(HandlerConfig(f"/{name}", benchmark_config=BenchmarkConfig([{}])) for name in "abc")),
            "handlers '/a', '/b' and '/c' all have a benchmark: keep one",
        ),
        (served(model_server_url="ftp://model"), "model_server_url 'ftp://model' is not an http(s) URL"),
        (served(model_server_url="http://a:b"), "model_server_url 'http://a:b' is not an http(s) URL"),
        (served(model_server_url="http://"), "model_server_url 'http://' is not an http(s) URL"),
        (served(model_server_url=8000), "model_server_url must be a string or None, not 8000"),
        (served(model_server_port=0), "model_server_port 0 is not a port, 1 to 65535"),
        (served(model_server_port=65536), "model_server_port 65536 is not a port, 1 to 65535"),
        (served(model_server_port="http"), "model_server_port 'http' is not a port, 1 to 65535"),
        (served(model_server_port=9000), "model_server_port is 9000, but model_server_url says 8000"),
        (WorkerConfig(model_server_port=9000), "model_server_port is given without model_server_url"),
        (WorkerConfig(), "handler '/': there is neither a remote_function nor a model_server_url"),
        (
            WorkerConfig(handlers=[HandlerConfig("/a", "/health", remote_function=answer)]),
            "handler '/a': healthcheck is given without model_server_url",
        ),
        (
            WorkerConfig(model_healthcheck_url="/health"),
            "model_healthcheck_url is given without model_server_url",
        ),
        (
            served(model_healthcheck_url=None),
            "nothing shows when the model is loaded: give model_healthcheck_url, a lifecycle, or log_action_",
        ),
        (AnyWorkerConfig(handlers=[3]), "handlers must be a list, each item a HandlerConfig, not [3]"),
        (served(max_sessions=-1), "max_sessions is -1, less than 0"),
        (
            served(log_action_config=LogActionConfig(on_error=["bad"])),
            "log_action_config has lines to look for, but there is no model_log_file",
        ),
        (
            served(log_action_config=LogActionConfig(on_load=[""]), model_log_file="x"),
            "log_action_config: on_load has an empty text",
        ),
        (
            served(log_action_config=AnyLogActionConfig(on_info="bad")),
            "log_action_config: on_info must be a list, each item a string, not 'bad'",
        ),
        (served(lifecycle=3), "lifecycle must be an async context manager or a function or None, not 3"),
        (served(lifecycle=later), "lifecycle is an async function: make it a contextlib.asynccontextmanager"),
        (served(lifecycle=undecorated), "lifecycle is an async function: make it a contextlib.async"),
        (served(lifecycle=short_life()), "lifecycle is a context manager, but not an async one"),
        (served(lifecycle=life_of), "lifecycle must be callable without arguments"),
        (served(middlewares=[3]), "middlewares must be a list, each item a function, not [3]"),
        (served(middlewares=[two_arguments]), "middlewares[0] is not an async function: async def middle"),
        (
            served(middlewares=[later, one_argument]),
            "middlewares[1] can't be called with 2 arguments: request and handler",
        ),
        (
            served(middlewares=[async_items]),
            "middlewares[0] is not an async function: async def middleware(request, handler)",
        ),
        (function(handler_class=Busy, remote_function=None), "handler '/a': max_concurrency is 0, less than"),
        (
            function(remote_function=None, handler_class=FailingHandler, max_concurrency=2),
            "handler '/a': handler_class FailingHandler can't be used: LookupError('no model')",
        ),
    ],
)
def test_each_problem_is_reported_once(declared: WorkerConfig, problem: str) -> None:
    problems = problems_of(lambda: Worker(declared))
    assert len([p for p in problems if p.startswith(problem)]) == 1, problems


def test_one_message_has_all_problems(capsys: pytest.CaptureFixture[str]) -> None:
    config = WorkerConfig(
        "model",
        0,
        handlers=[
            AnyHandlerConfig("/a", max_concurrency=0, max_queue_tim=1),
            HandlerConfig("/b", keepalive_s=-1),
        ],
        max_sessions=-1,
        log_action_config=LogActionConfig(["up"]),
    )
    problems = problems_of(lambda: Worker(config))
    assert len(problems) == 7
    assert capsys.readouterr().err == "cannot start:\n" + "".join(f"  - {p}\n" for p in problems)


def test_too_many_arguments_and_one_given_twice() -> None:
    log: Any = LogActionConfig
    assert "5 positional arguments, at most 3 are accepted" in log(["a"], [], [], [], []).problems()
    assert "on_load is given twice" in log(["a"], on_load=["b"]).problems()


def test_a_refusal_that_nobody_catches_is_exit_status_2() -> None:
    with pytest.raises(SystemExit) as ended:
        Worker(WorkerConfig())
    assert ended.value.code == 2
    assert isinstance(ended.value, SettingsError)


def test_a_worker_needs_a_worker_config() -> None:
    declared: Any = HandlerConfig("/a")
    assert problems_of(lambda: Worker(declared)) == ["Worker takes a WorkerConfig, not a HandlerConfig"]


def test_the_constructor_runs_no_code_of_the_author() -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("called")

    a_worker(
        HandlerConfig("/a", request_parser=never, response_generator=never, workload_calculator=never),
        HandlerConfig("/b", benchmark_config=BenchmarkConfig(generator=never), remote_function=never),
        lifecycle=never,
    )


@pytest.mark.parametrize(
    ("config", "problems"),
    [
        # A wrong type is one problem, and hides no problem of another field.
        (
            served(
                AnyHandlerConfig("/a", max_queue_time="1", keepalive_s=-1),
                max_sessions="many",
                model_log_file=3,
                log_action_config=3,
            ),
            [
                "max_sessions must be an integer or None, not 'many'",
                "model_log_file must be a string or a Path or None, not 3",
                "log_action_config must be a LogActionConfig, not 3",
                "handler '/a': max_queue_time must be a number or None, not '1'",
                "handler '/a': keepalive_s is -1, not a finite number of seconds ≥ 0",
            ],
        ),
        # Each problem in the author's words, without a second one that follows from it.
        (
            served(model_healthcheck_url=None, log_action_config=LogActionConfig(["up"])),
            ["log_action_config has lines to look for, but there is no model_log_file"],
        ),
        (
            served(model_log_file="x", log_action_config=LogActionConfig([""], ["", ""])),
            ["log_action_config: on_load has an empty text", "log_action_config: on_error has an empty text"],
        ),
        (
            served(model_server_url="http://model", model_server_port=70000),
            ["model_server_port 70000 is not"],
        ),
        (
            served(HandlerConfig("/a", handler_class=FailingHandler), model_healthcheck_url=None),
            ["handler '/a': handler_class FailingHandler can't be used"],
        ),
        (
            served(AnyHandlerConfig("/a", remote_function=type, on_disconnect="stop")),
            ["handler '/a': on_disconnect must be one of", "handler '/a': remote_function has no signature"],
        ),
        (benchmark(dataset=[{}], concurrency=0), ["handler '/a': benchmark_config: concurrency is 0"]),
    ],
)
def test_there_are_no_other_problems(config: WorkerConfig, problems: list[str]) -> None:
    reported = problems_of(lambda: Worker(config))
    assert len(reported) == len(problems), reported
    for problem in problems:
        assert [p for p in reported if p.startswith(problem)], reported


# Serving


async def middleware(request: web.Request, handler: Any) -> web.StreamResponse:
    return await handler(request)


async def test_middlewares_are_passed_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    async def start_server_async(*_: Any, **keywords: Any) -> None:
        given.append(keywords)

    def start_server(*_: Any, **keywords: Any) -> None:
        given.append(keywords)

    monkeypatch.setattr("lib.worker.start_server_async", start_server_async)
    monkeypatch.setattr("lib.worker.start_server", start_server)
    worker = a_worker(middlewares=[middleware])
    await worker.run_async(host="127.0.0.1")
    worker.run(host="127.0.0.1")
    assert given == [{"middlewares": (middleware,), "host": "127.0.0.1"}] * 2
