"""Python functions as models: their answers, and the threads in which they run."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import anyio
import pydantic
import pytest
from aiohttp import web

from lib.declare.functions import FunctionAnswer, FunctionFailed, RemoteFunction, Threads
from lib.declare.results import FILE_CHUNK_BYTES
from tests.guard import GUARD_S


def plain(word: str, times: int = 1) -> list[str]:
    return [word] * times


async def asynchronous(word: str, times: int = 1) -> list[str]:
    return [word] * times


def items(word: str, times: int = 1) -> Iterator[str]:
    for _ in range(times):
        yield word


async def async_items(word: str, times: int = 1) -> AsyncIterator[str]:
    for _ in range(times):
        yield word


class Model:
    def __call__(self, word: str, times: int = 1) -> list[str]:
        return [word] * times

    async def later(self, word: str, times: int = 1) -> list[str]:
        return [word] * times


def gives_a_coroutine(word: str, times: int = 1) -> Any:
    return asynchronous(word, times)


def gives_a_generator(word: str, times: int = 1) -> Iterator[str]:
    return items(word, times)


async def answer_of(function: Callable[..., Any], **payload: Any) -> tuple[str, bytes]:
    """Content type and body of the answer."""
    async with RemoteFunction(function).call(payload) as answer:
        assert isinstance(answer, FunctionAnswer)
        assert answer.headers["Content-Type"] == answer.content_type
        return answer.content_type, await answer.read()


@pytest.mark.parametrize(
    "function",
    [plain, asynchronous, Model(), Model().later, functools.partial(plain), gives_a_coroutine],
)
async def test_a_value_is_the_result(function: Callable[..., Any]) -> None:
    kind, body = await answer_of(function, word="a", times=2)
    assert (kind, json.loads(body)) == ("application/json", {"result": ["a", "a"]})


@pytest.mark.parametrize("function", [items, async_items, gives_a_generator])
async def test_items_are_lines_of_json(function: Callable[..., Any]) -> None:
    assert await answer_of(function, word="ä", times=2) == ("application/x-ndjson", b'"\\u00e4"\n"\\u00e4"\n')
    assert await answer_of(function, word="", times=0) == ("application/x-ndjson", b"")


async def test_an_answer_reads_like_a_model_servers() -> None:
    function = RemoteFunction(plain)
    async with function.call({"word": "a"}) as answer:
        assert isinstance(answer, FunctionAnswer)
        assert (answer.status, answer.content_length) == (200, len('{"result": ["a"]}'))
        assert await answer.json() == {"result": ["a"]}
    async with function.call({"word": "a"}) as answer:
        assert isinstance(answer, FunctionAnswer)
        assert await answer.text() == '{"result": ["a"]}'
    async with RemoteFunction(items).call({"word": "a", "times": 2}) as answer:
        assert isinstance(answer, FunctionAnswer)
        assert [line async for line in answer.content] == [b'"a"\n', b'"a"\n']
        assert await answer.content.readany() == b""


async def test_a_response_of_the_functions_own_is_the_answer() -> None:
    async def image() -> web.Response:
        return web.Response(body=b"\x89PNG", content_type="image/png")

    async with RemoteFunction(image).call({}) as answer:
        assert isinstance(answer, web.Response)
        assert answer.body == b"\x89PNG"


# Threads and the event loop


async def test_plain_code_never_runs_on_the_event_loop() -> None:
    where: set[int] = set()

    def note() -> None:
        where.add(threading.get_ident())

    def note_items() -> Iterator[int]:
        try:
            note()
            yield 1
            note()
        finally:
            note()

    await answer_of(note)
    await answer_of(note_items)
    async with RemoteFunction(note_items).call({}):
        pass  # left after the first item
    assert where
    assert threading.get_ident() not in where


async def test_async_code_runs_on_the_event_loop() -> None:
    async def where() -> int:
        return threading.get_ident()

    _, body = await answer_of(where)
    assert json.loads(body) == {"result": threading.get_ident()}


# Errors


def boom() -> None:
    raise LookupError("boom")


async def async_boom() -> None:
    raise LookupError("boom")


def items_boom() -> Iterator[int]:
    raise LookupError("boom")
    yield 1


async def async_items_boom() -> AsyncIterator[int]:
    raise LookupError("boom")
    yield 1


@pytest.mark.parametrize("function", [boom, async_boom, items_boom, async_items_boom])
async def test_an_error_is_raised_before_the_answer_begins(function: Callable[..., Any]) -> None:
    with pytest.raises(LookupError, match="boom"):
        await answer_of(function)


@pytest.mark.parametrize("error", [TimeoutError(), asyncio.TimeoutError(), aiohttp.ClientError("no host")])
async def test_a_timeout_inside_a_function_is_not_the_model_servers(error: Exception) -> None:
    def fails() -> None:
        raise error

    async def fails_later() -> AsyncIterator[int]:
        yield 1
        raise error

    with pytest.raises(FunctionFailed):
        await answer_of(fails)
    with pytest.raises(FunctionFailed):
        await answer_of(fails_later)


async def test_a_function_that_ends_its_thread_is_an_error() -> None:
    def exits() -> None:
        sys.exit(1)

    def ends() -> None:
        next(iter(()))

    for function, error in ((exits, FunctionFailed), (ends, RuntimeError)):
        with anyio.fail_after(GUARD_S), pytest.raises(error):
            await answer_of(function)


class Unknown:
    """Has no form in JSON."""


NESTED: list[Any] = []
NESTED.append(NESTED)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (
            Unknown(),
            "Unknown, which can't be sent: tests.lib.declare.test_functions.Unknown has no form in JSON",
        ),
        (
            {"a": [Unknown()]},
            "dict, which can't be sent: tests.lib.declare.test_functions.Unknown has no form",
        ),
        ({"a": Path("file")}, "dict, which can't be sent: pathlib"),
        (float("nan"), "float, which can't be sent: Out of range"),
        ({("a",): 1}, "dict, which can't be sent: keys must be str"),
        (NESTED, "list, which can't be sent: Circular reference"),
        (Path("/nowhere/at/all"), "which can't be sent: [Errno 2]"),
        (Path("/"), "which can't be sent: [Errno 21]"),
    ],
)
async def test_a_result_that_can_not_be_sent_is_an_error_that_names_all(result: Any, said: str) -> None:
    def gives_it() -> Any:
        return result

    async def items_of_it() -> AsyncIterator[Any]:
        yield result

    for function in (gives_it, items_of_it):
        if function is items_of_it and isinstance(result, Path):
            continue
        with pytest.raises(FunctionFailed) as failed:
            async with RemoteFunction(function, "/route").call({}) as answer:
                pytest.fail(f"answered {answer}")
        begin = "/route tests.lib.declare.test_functions.test_a_result_that_can_not_be_sent_is_an_error_that"
        assert str(failed.value).startswith(begin)
        assert f".{function.__name__} returned " in str(failed.value)
        assert said in str(failed.value)


async def test_a_file_that_becomes_shorter_breaks_the_answer_off(tmp_path: Path) -> None:
    path = tmp_path / "long.bin"
    path.write_bytes(b"x" * 2 * FILE_CHUNK_BYTES)
    async with RemoteFunction(lambda: path).call({}) as answer:
        assert isinstance(answer, FunctionAnswer)
        assert await answer.content.readany() == b"x" * FILE_CHUNK_BYTES
        os.truncate(path, FILE_CHUNK_BYTES)
        with pytest.raises(FunctionFailed, match=f"lacks the last {FILE_CHUNK_BYTES} of"):
            await answer.content.readany()


async def test_a_file_that_becomes_longer_is_sent_at_its_first_length(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"abc")
    async with RemoteFunction(lambda: path).call({}) as answer:
        assert isinstance(answer, FunctionAnswer)
        with path.open("ab") as file:
            file.write(b"def")
        assert (answer.content_type, answer.content_length) == ("text/plain", 3)
        assert await answer.read() == b"abc"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_items_of_bytes_are_sent_as_they_are(kind: Callable[[bytes], Any]) -> None:
    def pieces() -> Iterator[Any]:
        yield from (kind(b"ab"), kind(b""), kind(b"c"))

    assert await answer_of(pieces) == ("application/octet-stream", b"abc")


async def test_a_stream_of_bytes_and_of_json_is_an_error() -> None:
    def mixed() -> Iterator[Any]:
        yield b"ab"
        yield "c"

    async with RemoteFunction(mixed).call({}) as answer:
        assert isinstance(answer, FunctionAnswer)
        assert await answer.content.readany() == b"ab"
        with pytest.raises(FunctionFailed, match="returned str, which can't be sent"):
            await answer.content.readany()


# The client leaves


async def test_an_async_function_is_cancelled_with_its_request() -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def waits() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    call = asyncio.create_task(answer_of(waits))
    await began.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert cancelled.is_set()


async def test_a_cancelled_request_waits_for_its_plain_function() -> None:
    loop, began, go, ended = asyncio.get_running_loop(), asyncio.Event(), threading.Event(), threading.Event()

    def works() -> str:
        loop.call_soon_threadsafe(began.set)
        assert go.wait(GUARD_S)
        ended.set()
        return "thrown away"

    call = asyncio.create_task(answer_of(works))
    await began.wait()
    call.cancel()
    await asyncio.wait({call}, timeout=0)
    assert not call.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert ended.is_set()


async def test_a_second_cancellation_waits_for_no_thread() -> None:
    loop, began, go = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def works() -> Iterator[int]:
        loop.call_soon_threadsafe(began.set)
        assert go.wait(GUARD_S)
        yield 1

    with anyio.fail_after(GUARD_S):
        async with anyio.create_task_group() as group:
            group.start_soon(answer_of, works)
            await began.wait()
            group.cancel_scope.cancel()
    go.set()


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_items_are_computed_only_when_read(kind: str) -> None:
    made: list[int] = []
    closed = threading.Event()

    def count() -> Iterator[int]:
        try:
            for number in range(10):
                made.append(number)
                yield number
        finally:
            closed.set()

    async def count_later() -> AsyncIterator[int]:
        for number in count():
            yield number

    async with RemoteFunction(count if kind == "plain" else count_later).call({}) as answer:
        assert isinstance(answer, FunctionAnswer)
        assert await answer.content.readany() == b"0\n"
    assert made == [0]
    if kind == "plain":
        assert closed.is_set()


def test_functions_that_can_not_be_called_with_a_payloads_fields() -> None:
    def by_position(a: int, b: int, /, c: int) -> None: ...

    def path_of(path: str) -> str:
        return path

    def length_of(upload: Any, times: int = 1) -> int:
        return times

    def of_array(array: Annotated[Threads, pydantic.Field()]) -> None: ...

    problem = RemoteFunction(of_array).problem(False, False)
    assert problem is not None
    assert problem.startswith("has an annotation that can't be used: Unable to generate pydantic-core schema")

    no_upload = "can't be called with upload= alone, as it is for an upload"
    for function, receives_uploads, problem in (
        (
            by_position,
            False,
            "takes a, b by position only, but a payload's fields are passed as keywords",
        ),
        (
            by_position,
            True,
            "takes a, b by position only, but a payload's fields are passed as keywords",
        ),
        (type, False, "has no signature, so its parameters are not known"),
        (plain, False, None),
        (path_of, True, no_upload),
        (path_of, False, None),
        (length_of, True, None),
    ):
        assert RemoteFunction(function).problem(receives_uploads, False) == problem


def test_the_name_is_that_of_the_wrapped_function() -> None:
    assert RemoteFunction(functools.partial(functools.partial(plain))).name.endswith("test_functions.plain")
    assert RemoteFunction(Model()).name.endswith("test_functions.Model")
