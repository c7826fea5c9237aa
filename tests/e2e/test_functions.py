"""Remote functions: workers without a model server, over real sockets (docs/writing-a-worker.md)."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import numpy as np
import pydantic
import pytest
from aiohttp import web
from PIL import Image

from lib.backend import Backend
from lib.data_types import JsonDataException
from lib.errors import ModelDown
from lib.uploads import Upload
from lib.worker import BenchmarkConfig, HandlerConfig, Worker, WorkerConfig
from tests.fakes.raw_client import connected
from tests.fakes.worker import Setup
from tests.guard import GUARD_S
from tests.system import System, with_worker_task

Make = Callable[[str, Setup], tuple[Backend, list[web.AbstractRouteDef]]]


@dataclass
class WaitingFunctions:
    """Remote functions that wait for `release`, and record that they began, ended or were cancelled."""

    began: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    thread_released: threading.Event = field(default_factory=threading.Event)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    ended: int = 0

    def release(self) -> None:
        self.released.set()
        self.thread_released.set()

    async def waits(self, data: Any = None, workload: float = 1.0) -> str:
        self.began.set()
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        self.ended += 1
        return "done"

    def works(self, data: Any = None, workload: float = 1.0) -> str:
        self.loop.call_soon_threadsafe(self.began.set)
        assert self.thread_released.wait(GUARD_S)
        self.ended += 1
        return "done"

    async def streams(self, data: Any = None, workload: float = 1.0) -> AsyncIterator[dict[str, int]]:
        for number in range(3):
            yield {"n": number}
            await self.waits()


def echo(workload: float, data: dict[str, Any]) -> dict[str, Any]:
    return {"workload": workload, "data": data}


def raises(workload: float, data: Any) -> None:
    raise {"time": TimeoutError("its own"), "bug": ZeroDivisionError()}[data["raise"]]


def half(workload: float, data: Any) -> Iterator[Any]:
    yield 1
    yield object()


def not_json(workload: float, data: Any) -> Any:
    return {1: {2: object()}}


async def answer_in_capitals(request: web.Request, answer: Any) -> web.StreamResponse:
    return web.Response(text=json.dumps(await answer.json()).upper())


def worker_of(handlers: Sequence[HandlerConfig], **config: Any) -> Make:
    """The `make` of `with_worker_task` for a worker with these `handlers` and no model server."""
    worker = Worker(WorkerConfig(handlers=list(handlers), **config))
    return lambda model_url, setup: (worker.backend, worker.routes)


def functions_worker(
    tmp_path: Path, *handlers: HandlerConfig, **config: Any
) -> AbstractAsyncContextManager[System]:
    """A system whose worker has only functions, so it is ready immediately."""
    return with_worker_task(tmp_path, make=worker_of(handlers, **config))


async def reported_statuses(system: System, count: int) -> list[str]:
    await system.engine.wait_for(lambda: len(system.engine.finished) >= count)
    return [f.request.status for f in system.engine.finished]


@asynccontextmanager
async def requesting(
    system: System, path: str, remote: WaitingFunctions, workload: float = 1.0
) -> AsyncGenerator[Any, None]:
    """Connect a client and POST to `path`; yield it once the function has begun."""
    async with connected(system.url) as client:
        await client.post(path, system.envelope(workload))
        with anyio.fail_after(GUARD_S):
            await remote.began.wait()
        yield client


async def test_a_function_answers_without_a_model_server(tmp_path: Path) -> None:
    async with functions_worker(tmp_path, HandlerConfig("/echo", remote_function=echo)) as system:
        assert system.last_report.max_perf == 100.0
        async with system.post("/echo", 7.0, {"a": 1}) as answer:
            assert (answer.status, answer.content_type) == (200, "application/json")
            assert await answer.json() == {"result": {"workload": 7.0, "data": {"a": 1}}}
        assert system.model.requests == []
        assert await reported_statuses(system, 1) == ["Success"]


@dataclass
class Voice:
    name: str
    pitch: float = 1.0


class Prompt(pydantic.BaseModel):
    text: str
    voices: list[Voice] = []


@dataclass
class Refuses:
    """A function, a generator and a workload calculator that refuse what they are given."""

    @staticmethod
    def function(data: Any, workload: float = 1.0) -> None:
        raise JsonDataException({"data": "is not for this model"})

    @staticmethod
    async def items(data: Any, workload: float = 1.0) -> AsyncIterator[int]:
        raise JsonDataException({"data": "is not for this model"})
        yield 1

    @staticmethod
    def workload(payload: dict[str, Any]) -> float:
        raise JsonDataException({"data": "is not for this model"})


def of_prompt(prompt: Prompt) -> Any:
    return {"is": type(prompt).__name__, "of": [type(voice).__name__ for voice in prompt.voices]}


def typed(n: int, share: float = 0.5) -> list[str]:
    return [type(n).__name__, type(share).__name__]


async def posted(system: System, path: str, payload: dict[str, Any]) -> tuple[int, Any]:
    envelope = {"auth_data": system.auth(), "payload": payload}
    async with system.http.post(system.url + path, json=envelope) as answer:
        return answer.status, await answer.json()


async def test_payloads_are_checked_and_converted_by_annotations(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handlers = [
        HandlerConfig("/echo", remote_function=echo),
        HandlerConfig("/typed", remote_function=typed),
        HandlerConfig("/strict", remote_function=typed, extra="forbid"),
        HandlerConfig("/prompt", remote_function=of_prompt),
    ]
    answers: list[tuple[str, dict[str, Any], Any]] = [
        ("/typed", {"n": 3, "share": 1}, ["int", "float"]),
        ("/typed", {"n": 3, "shrae": 1}, ["int", "float"]),
        ("/prompt", {"text": "a", "voices": [{"name": "b"}]}, {"is": "Prompt", "of": ["Voice"]}),
        ("/prompt", {"prompt": {"text": "a"}}, {"is": "Prompt", "of": []}),
    ]
    refusals: list[tuple[str, dict[str, Any], Any]] = [
        ("/echo", {"workload": 1}, {"data": "missing parameter"}),
        ("/typed", {"n": "3", "share": None}, {"n": "must be an integer", "share": "must be a number"}),
        ("/typed", {"n": 3.0}, {"n": "must be an integer"}),
        ("/strict", {"n": 3, "shrae": 1}, {"shrae": "unknown parameter: did you mean 'share'?"}),
        (
            "/prompt",
            {"voices": [{}]},
            {"text": "missing parameter", "voices": {"0": {"name": "missing parameter"}}},
        ),
    ]
    with caplog.at_level(logging.INFO):
        async with functions_worker(tmp_path, *handlers) as system:
            for path, payload, result in answers:
                assert await posted(system, path, payload) == (200, {"result": result})
            for path, payload, problems in refusals:
                assert await posted(system, path, payload) == (422, {"payload": problems})
            assert (await reported_statuses(system, 9)).count("Error") == len(refusals)
    lines = [line for line in caplog.messages if "unknown field" in line]
    assert lines == [
        f"/typed {__name__}.typed: the unknown field 'shrae' is ignored: did you mean 'share'?",
    ]


async def test_a_refusal_is_422_and_weighs_nothing(tmp_path: Path) -> None:
    handlers = [
        HandlerConfig("/function", remote_function=Refuses.function),
        HandlerConfig("/items", remote_function=Refuses.items),
        HandlerConfig("/workload", remote_function=echo, workload_calculator=Refuses.workload),
        HandlerConfig("/echo", remote_function=echo, workload_calculator=lambda p: p["workload"]),
    ]
    async with functions_worker(tmp_path, *handlers) as system:
        for path in ("/function", "/items", "/workload"):
            said = {"payload": {"data": "is not for this model"}}
            assert await posted(system, path, {"workload": 5.0, "data": {}}) == (422, said)
        assert await reported_statuses(system, 3) == ["Success", "Success", "Error"]
        async with system.post("/echo", 7.0, {}):
            pass
        await system.reported(served=7.0)
        assert (system.totals.cur_perf, system.totals.rej_load) == (7.0, 0.0)


async def test_a_workload_that_can_not_be_counted_names_route_and_field(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handler = HandlerConfig("/echo", remote_function=echo, workload_calculator=lambda p: int(p["data"]["n"]))
    async with functions_worker(tmp_path, handler) as system:
        assert (await posted(system, "/echo", {"workload": 1, "data": {"n": "a secret"}}))[0] == 200
        await system.reported(served=100.0)
    (line,) = [line for line in caplog.messages if "workload_calculator" in line]
    assert line.startswith("/echo: workload_calculator raised ValueError (at test_functions.py:")
    assert line.endswith(", reading data, n): counted as 100")


def a_picture() -> Any:
    return Image.new("RGB", (3, 2))


async def a_recording() -> bytes:
    return b"RIFF"


def an_array() -> Any:
    return np.array([[1, 2], [3, 4]])


def an_object() -> Any:
    return object()


async def test_results_of_every_kind_are_right_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = tmp_path / "film.mp4"
    long.write_bytes(bytes(range(256)) * 4096)

    def a_film() -> Path:
        return long

    def a_missing_film() -> Path:
        return tmp_path / "missing.mp4"

    made = [a_picture, a_recording, an_array, an_object, a_film, a_missing_film]
    handlers = [HandlerConfig(f"/{function.__name__}", remote_function=function) for function in made]
    async with functions_worker(tmp_path, *handlers) as system:
        answers: dict[str, tuple[int, str, bytes]] = {}
        for handler in handlers:
            envelope = {"auth_data": system.auth(), "payload": {}}
            async with system.http.post(system.url + handler.route, json=envelope) as answer:
                answers[handler.route] = (answer.status, answer.content_type, await answer.read())
                if handler.route == "/a_film":
                    assert answer.content_length == long.stat().st_size
    assert answers["/a_recording"] == (200, "application/octet-stream", b"RIFF")
    assert answers["/an_array"] == (200, "application/json", b'{"result": [[1, 2], [3, 4]]}')
    assert answers["/a_film"] == (200, "video/mp4", long.read_bytes())
    status, kind, content = answers["/a_picture"]
    assert (status, kind, Image.open(io.BytesIO(content)).size) == (200, "image/png", (3, 2))
    for function, what in ((an_object, "object"), (a_missing_film, "PosixPath")):
        status, kind, content = answers[f"/{function.__name__}"]
        assert (status, json.loads(content)["error"]) == (500, "internal error")
        name = f"{function.__module__}.{function.__qualname__}"
        assert f"/{function.__name__} {name} returned " in caplog.text
        assert f"{what}, which can't be sent" in caplog.text


async def test_an_exception_in_a_function_is_a_500(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = {"/raises": raises, "/half": half, "/set": not_json}
    handlers = [HandlerConfig(route, remote_function=function) for route, function in made.items()]
    async with functions_worker(tmp_path, *handlers) as system:
        for path, what in (("/raises", "time"), ("/raises", "bug"), ("/set", "")):
            async with system.post(path, data={"raise": what}) as answer:
                assert (answer.status, (await answer.json())["error"]) == (500, "internal error")
        async with connected(
            system.url
        ) as client:  # only the connection can show an error after the status line
            await client.post("/half", system.envelope())
            await client.head()
            assert await client.chunk() == b"1\n"
            with pytest.raises(ConnectionError):
                await client.chunk()
        assert await reported_statuses(system, 4) == ["Error"] * 4
        assert "ZeroDivisionError" in caplog.text


@dataclass
class Sound(Upload):
    """An upload whose class is named by a function's annotation only."""

    def count_workload(self) -> float:
        return float(self.size_bytes)


def size_of(upload: Sound) -> str:
    return f"{type(upload).__name__} of {upload.size_bytes} bytes, {upload.query}"


async def test_the_annotation_of_a_parameter_makes_a_route_take_uploads(tmp_path: Path) -> None:
    async with functions_worker(tmp_path, HandlerConfig("/size", remote_function=size_of)) as system:
        headers = {**system.header(4.0), "Content-Type": "audio/wav"}
        async with system.http.post(system.url + "/size?a=1", data=b"RIFF", headers=headers) as answer:
            result = await answer.json()
        await system.reported(served=4.0)
        async with system.http.get(system.loopback_url + "/openapi.json") as answer:
            described = await answer.json()
    assert result == {"result": "Sound of 4 bytes, {'a': ['1']}"}
    content = described["paths"]["/size"]["post"]["requestBody"]["content"]
    assert "application/json" not in content


def refuses_late(workload: float, data: Any) -> Iterator[Any]:
    yield 1
    raise JsonDataException({"prompt": f"must not be {data['prompt']!r}"})


def is_down_late(workload: float, data: Any) -> Iterator[Any]:
    yield 1
    raise ModelDown("http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (refuses_late, "422 after its answer had begun: payload.prompt"),
        (is_down_late, "503 after its answer had begun: the model server at "),
    ],
)
async def test_a_refusal_after_the_first_item_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, function: Callable[..., Any], said: str
) -> None:
    async with functions_worker(tmp_path, HandlerConfig("/late", remote_function=function)) as system:
        with pytest.raises(aiohttp.ClientPayloadError):
            await system.call("/late", data={"prompt": "secret"})
        assert await reported_statuses(system, 1) == ["Error"]
    (line,) = [
        r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "/late" in str(r.args)
    ]
    assert said in line
    assert "secret" not in caplog.text


async def test_items_are_streamed_as_they_come(tmp_path: Path) -> None:
    remote = WaitingFunctions()
    async with (
        functions_worker(tmp_path, HandlerConfig("/streams", remote_function=remote.streams)) as system,
        connected(system.url) as client,
    ):
        await client.post("/streams", system.envelope(3.0))
        head = await client.head()
        assert (head.status, head.headers["content-type"]) == (200, "application/x-ndjson")
        assert await client.chunk() == b'{"n": 0}\n'
        remote.release()
        assert [await client.chunk() for _ in range(3)] == [b'{"n": 1}\n', b'{"n": 2}\n', b""]
        await system.reported(served=3.0)


async def test_a_response_generator_reads_a_functions_answer(tmp_path: Path) -> None:
    handler = HandlerConfig("/echo", remote_function=echo, response_generator=answer_in_capitals)
    async with functions_worker(tmp_path, handler) as system:
        status, body = await system.call("/echo", data={"a": "b"})
        assert (status, json.loads(body)["RESULT"]["DATA"]) == (200, {"A": "B"})


async def test_an_async_function_is_cancelled_when_its_client_leaves(tmp_path: Path) -> None:
    remote = WaitingFunctions()
    handlers = HandlerConfig("/waits", remote_function=remote.waits)
    async with functions_worker(tmp_path, handlers) as system:
        async with requesting(system, "/waits", remote) as client:
            client.leave()
            with anyio.fail_after(GUARD_S):
                await remote.cancelled.wait()
        assert await reported_statuses(system, 1) == ["Cancelled"]
        assert remote.ended == 0


async def test_a_plain_function_keeps_its_slot_until_it_returns(tmp_path: Path) -> None:
    remote = WaitingFunctions()
    works = HandlerConfig("/works", remote_function=remote.works)
    handlers = [works, HandlerConfig("/e", remote_function=echo)]
    async with functions_worker(tmp_path, *handlers) as system:
        async with requesting(system, "/works", remote) as client:
            client.leave()
        waits = asyncio.create_task(system.call("/e"))  # one at a time: neither handler is parallel
        await system.engine.wait_for(lambda: system.last_report.num_requests_working == 2)
        assert system.engine.finished == []
        remote.release()
        assert (await waits)[0] == 200
        assert await reported_statuses(system, 2) == ["Cancelled", "Success"]
        assert remote.ended == 1


@pytest.mark.parametrize("name", ["waits", "works", "streams"])
async def test_a_function_finishes_after_its_client_left_with_on_disconnect_finish(
    tmp_path: Path, name: str
) -> None:
    remote = WaitingFunctions()
    handler = HandlerConfig("/job", remote_function=getattr(remote, name), on_disconnect="finish")
    async with functions_worker(tmp_path, handler) as system:
        async with requesting(system, "/job", remote, 5.0) as client:
            client.leave()
        remote.release()
        assert await reported_statuses(system, 1) == ["Success"]
        await system.reported(served=5.0)
        assert not remote.cancelled.is_set()
        assert remote.ended == (3 if name == "streams" else 1)


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_stuck_function_does_not_keep_the_worker_from_stopping(tmp_path: Path, leaves: bool) -> None:
    remote = WaitingFunctions()
    handler = HandlerConfig("/works", remote_function=remote.works)
    async with (
        with_worker_task(tmp_path, make=worker_of([handler]), drain_timeout_s=0.01) as system,
        requesting(system, "/works", remote) as client,
    ):
        if leaves:
            client.leave()
        assert system.stop is not None
        system.stop.ask()
        assert await reported_statuses(system, 1) == ["Error"]
    assert remote.ended == 0
    remote.release()


async def test_a_function_is_benchmarked_like_any_handler(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []

    def model(**payload: Any) -> int:
        calls.append(payload)
        return 1

    benchmark = BenchmarkConfig([{"n": 1}, {"n": 2}], runs=2, concurrency=3, do_warmup=False)
    handler = HandlerConfig("/model", None, True, benchmark_config=benchmark, remote_function=model)
    async with functions_worker(tmp_path, handler) as system:
        assert system.last_report.max_perf > 0
        assert len(calls) >= 6
        saved = json.loads((tmp_path / ".pyworker_benchmark.json").read_text())
        assert saved["inputs"]["handler"].startswith("/model tests.")


async def test_a_function_that_fails_its_benchmark_says_why(tmp_path: Path) -> None:
    benchmark = BenchmarkConfig([{"workload": 1, "data": {"raise": "bug"}}], runs=1)
    handler = HandlerConfig("/raises", benchmark_config=benchmark, remote_function=raises)
    async with with_worker_task(tmp_path, make=worker_of([handler]), wait=False) as system:
        assert "ZeroDivisionError()" in await system.errored()


async def test_the_worker_is_ready_once_its_lifecycle_is_entered(tmp_path: Path) -> None:
    loaded, left = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def life() -> AsyncGenerator[None, None]:
        await loaded.wait()
        yield
        left.set()

    for lifecycle in (life, life()):
        loaded.clear()
        left.clear()
        handler = HandlerConfig("/echo", remote_function=echo)
        make = worker_of([handler], lifecycle=lifecycle)
        async with with_worker_task(tmp_path, make=make, wait=False, unsecured=True) as system:
            assert (await system.call("/echo"))[0] == 503
            loaded.set()
            await system.ready()
            assert (await system.call("/echo"))[0] == 200
        assert left.is_set()


async def test_the_authors_own_routes_are_served(tmp_path: Path) -> None:
    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    worker = Worker(WorkerConfig(handlers=[HandlerConfig("/echo", remote_function=echo)]))
    worker.routes.append(web.get("/hello", hello))
    make: Make = lambda model_url, setup: (worker.backend, worker.routes)  # noqa: E731
    async with (
        with_worker_task(tmp_path, make=make) as system,
        system.http.get(system.url + "/hello") as answer,
    ):
        assert await answer.text() == "hello"
