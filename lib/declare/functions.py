"""Python functions as models: the result of a `remote_function`, in the form of a model server's answer.

Owns the running of an author's function, async or plain, value or generator, and the threads in which plain
ones run. The answer is passed on like a model server's (lib/model/relay.py); whether a function can be
called at all is in lib/fields/callables.py.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, TypeVar, cast

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from lib.errors import result_or_error
from lib.fields.callables import accepts, is_async, parameters_of
from lib.fields.json_fields import JsonDataException
from lib.runtime.stable_name import stable_name

T = TypeVar("T")
Items = AsyncGenerator[Any, None]

STREAM_TYPE = "application/x-ndjson"
_END = object()
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_POSITIONAL_ONLY = inspect.Parameter.POSITIONAL_ONLY


class FunctionFailed(Exception):
    """An author's function failed in a way that looks like a model server's failure: 500, not 502 or 504."""


class FunctionBody:
    """The body of an answer computed here, with the methods of `aiohttp.StreamReader` that are used."""

    def __init__(self, begin: bytes, items: Items | None = None) -> None:
        self._begin = begin
        self._items = items

    async def readany(self) -> bytes:
        """The next chunk; of a stream, the next line. b"" at the end."""
        chunk, self._begin = self._begin, b""
        if chunk or self._items is None:
            return chunk
        return await _next_line(self._items)

    async def iter_any(self) -> AsyncIterator[bytes]:
        while chunk := await self.readany():
            yield chunk

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.iter_any()


class FunctionAnswer:
    """An answer computed here, with the attributes of `aiohttp.ClientResponse` that are used."""

    status = 200
    reason = "OK"

    def __init__(self, content_type: str, content: FunctionBody, length: int | None = None) -> None:
        self.content_type = content_type
        self.content_length = length
        self.content = content
        headers = CIMultiDict({"Content-Type": content_type})
        if length is not None:
            headers["Content-Length"] = str(length)
        self.headers = CIMultiDictProxy(headers)

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.content])

    async def text(self) -> str:
        return (await self.read()).decode()

    async def json(self) -> Any:
        return json.loads(await self.read())


class Threads:
    """Threads for an author's plain code, one for each call; the handler's queue limits their number."""

    def __init__(self) -> None:
        self._calls: set[asyncio.Future[Any]] = set()

    async def run(self, call: Callable[[], Any]) -> Any:
        """Run `call` in a thread; return its result or raise its exception.

        A first cancellation, when the client left, is raised only after `call` has returned. A second one, or
        `leave_behind`, ends this immediately. The thread then goes on, but doesn't keep the process alive.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()

        def work() -> None:
            result: Any = FunctionFailed("remote_function ended its thread")
            try:
                result = result_or_error(call)
            except SystemExit as e:
                result = FunctionFailed(f"remote_function raised {e!r}")
            finally:
                with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(_set_result, done, result)

        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(work,), name="remote_function", daemon=True).start()
        self._calls.add(done)
        try:
            await asyncio.wait({done})
        except asyncio.CancelledError:
            await asyncio.wait({done})
            raise
        finally:
            self._calls.discard(done)
        result = done.result()
        if isinstance(result, Exception):
            raise result
        return result

    async def iterate(self, items: Generator[Any, None, None]) -> Items:
        """Yield the items of a plain generator, each computed in a thread."""
        try:
            while (item := await self.run(functools.partial(next, items, _END))) is not _END:
                yield item
        finally:
            if inspect.getgeneratorstate(items) != inspect.GEN_RUNNING:  # if so, its thread was left behind
                await self.run(items.close)

    def leave_behind(self) -> None:
        """End every waiting `run` with `FunctionFailed`, as the worker stops; the threads go on."""
        for done in self._calls:
            _set_result(done, FunctionFailed("the worker stopped before remote_function was done"))


class RemoteFunction:
    """An author's function, called with a payload's fields as keywords.

    An async function is cancelled when its client leaves. A plain one runs in a thread, which nothing can
    stop: the request keeps its slot until the function returns, and the result is thrown away.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.threads = Threads()
        parameters = parameters_of(function) or ()  # without a signature, `problem` says so
        named = [p for p in parameters if p.kind in _NAMED]
        self._known = {p.name for p in named}
        self._required = [p.name for p in named if p.default is p.empty]
        self._accepts_any = any(p.kind is p.VAR_KEYWORD for p in parameters)

    @property
    def name(self) -> str:
        function = self._function
        while isinstance(function, functools.partial):
            function = cast("functools.partial[Any]", function).func
        return stable_name(function if hasattr(function, "__qualname__") else type(function))

    def problem(self, receives_uploads: bool) -> str | None:
        """The reason why the function can't be called with a payload's fields as keywords, or None.

        If it `receives_uploads`, it must also accept `upload` as its only keyword.
        """
        parameters = parameters_of(self._function)
        if parameters is None:
            return "has no signature, so its parameters are not known"
        unnamed = [p.name for p in parameters if p.kind is _POSITIONAL_ONLY and p.default is p.empty]
        if unnamed:
            return (
                f"takes {', '.join(unnamed)} by position only, but a payload's fields are passed as keywords"
            )
        if receives_uploads and not accepts(self._function, 0, "upload"):
            return "can't be called with upload= alone, as it is for an upload"
        return None

    def check_keywords(self, payload: Mapping[str, Any]) -> None:
        """Raise `JsonDataException` (422) if `payload` lacks required parameters or has unknown ones."""
        problems = {name: "missing parameter" for name in self._required if name not in payload}
        if not self._accepts_any:
            problems |= {name: "unknown parameter" for name in payload if name not in self._known}
        if problems:
            raise JsonDataException(problems)

    @asynccontextmanager
    async def call(
        self, payload: Mapping[str, Any]
    ) -> AsyncGenerator[FunctionAnswer | web.StreamResponse, None]:
        """The answer: `{"result": …}`, a stream of lines of JSON, or the response that the function returned.

        Raises what the function raises, also for a stream's first item, and `TypeError` or `ValueError` for
        a result that is not JSON.
        """
        result = await self._result(payload)
        if inspect.isgenerator(result):
            result = self.threads.iterate(cast("Generator[Any, None, None]", result))
        if inspect.isasyncgen(result):
            async with aclosing(cast(Items, result)) as items:
                # The answer begins with the first item: a failure before it is a 500.
                yield FunctionAnswer(STREAM_TYPE, FunctionBody(await _next_line(items), items))
        elif isinstance(result, web.StreamResponse):
            yield result
        else:
            body = _json({"result": result})
            yield FunctionAnswer("application/json", FunctionBody(body), len(body))

    async def _result(self, payload: Mapping[str, Any]) -> Any:
        """The function's result; for a generator function, the generator before any of its code has run."""
        call = functools.partial(self._function, **payload)
        lazy = _returns_lazily(self._function)
        result: Any = call() if lazy else await _with_own_errors(self.threads.run(call))
        return await _with_own_errors(result) if inspect.isawaitable(result) else result


def _returns_lazily(function: Callable[..., Any]) -> bool:
    """Whether a call returns before any of the function's code has run."""
    return is_async(function) or inspect.isgeneratorfunction(function)


async def _next_line(items: Items) -> bytes:
    """The next of `items` as a line of JSON; b"" at the end."""
    try:
        return _json(await _with_own_errors(items.__anext__())) + b"\n"
    except StopAsyncIteration:
        return b""


def _json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False).encode()


async def _with_own_errors(result: Awaitable[T]) -> T:
    """Await `result`; turn timeouts and client errors of the author's own calls into `FunctionFailed`."""
    try:
        return await result
    except (TimeoutError, asyncio.TimeoutError, aiohttp.ClientError) as e:
        raise FunctionFailed(f"remote_function raised {e!r}") from e


def _set_result(done: asyncio.Future[Any], result: Any) -> None:
    if not done.done():
        done.set_result(result)
