"""Python functions as models: what `remote_function` gives, in the shape of a model server's answer.

Owns the running of an author's function, async or plain, value or generator, and the threads that plain
ones run in. The answer is passed on like a model server's (lib/model/relay.py).
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
from lib.fields.json_fields import JsonDataException
from lib.runtime.stable_name import stable_name

T = TypeVar("T")
Items = AsyncGenerator[Any, None]

STREAM_TYPE = "application/x-ndjson"
_END = object()
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_POSITIONAL_ONLY = inspect.Parameter.POSITIONAL_ONLY


class FunctionFailed(Exception):
    """An author's function raised what would pass for a failure of a model server (500, not 502 or 504)."""


class FunctionBody:
    """The body of an answer computed here, as far as `aiohttp.StreamReader` is used to read one."""

    def __init__(self, begin: bytes, items: Items | None = None) -> None:
        self._begin = begin
        self._items = items

    async def readany(self) -> bytes:
        """The next chunk, of a stream a line; b"" at the end."""
        chunk, self._begin = self._begin, b""
        if chunk or self._items is None:
            return chunk
        return await _line(self._items)

    async def iter_any(self) -> AsyncIterator[bytes]:
        while chunk := await self.readany():
            yield chunk

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.iter_any()


class FunctionAnswer:
    """An answer computed here, with what of `aiohttp.ClientResponse` its users need."""

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
    """Threads for an author's plain code, one for each call: it is the queue that limits them."""

    def __init__(self) -> None:
        self._calls: set[asyncio.Future[Any]] = set()

    async def run(self, call: Callable[[], Any]) -> Any:
        """What `call` gives or raises.

        When this is cancelled, the client has left: it is over when `call` is. Cancelled once more, or by
        `leave_behind`, it is over at once; the thread goes on, and doesn't keep the process from ending.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()

        def work() -> None:
            outcome: Any = FunctionFailed("remote_function ended its thread")
            try:
                outcome = result_or_error(call)
            except SystemExit as e:
                outcome = FunctionFailed(f"remote_function raised {e!r}")
            finally:
                with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(_conclude, done, outcome)

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
        outcome = done.result()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def iterate(self, items: Generator[Any, None, None]) -> Items:
        """The items of a plain generator, each made in a thread."""
        try:
            while (item := await self.run(functools.partial(next, items, _END))) is not _END:
                yield item
        finally:
            if inspect.getgeneratorstate(items) != inspect.GEN_RUNNING:  # else its thread was left behind
                await self.run(items.close)

    def leave_behind(self) -> None:
        """The worker stops: wait no longer for what runs in threads."""
        for done in self._calls:
            _conclude(done, FunctionFailed("the worker stopped before remote_function was done"))


class RemoteFunction:
    """An author's function, called with a payload's fields as keywords.

    An async one is cancelled when its client leaves. A plain one runs in a thread, which nothing can
    stop: its caller keeps its place in the queue until it is done, and what it gives is thrown away.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.threads = Threads()
        parameters = inspect.signature(function).parameters.values()
        named = [p for p in parameters if p.kind in _NAMED]
        self._known = {p.name for p in named}
        self._required = [p.name for p in named if p.default is p.empty]
        self._takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)

    @property
    def name(self) -> str:
        function = self._function
        while isinstance(function, functools.partial):
            function = cast("functools.partial[Any]", function).func
        return stable_name(function if hasattr(function, "__qualname__") else type(function))

    def check(self, payload: Mapping[str, Any]) -> None:
        """Raises `JsonDataException` naming each keyword that is missing, or that nobody asked for."""
        problems = {name: "missing parameter" for name in self._required if name not in payload}
        if not self._takes_any:
            problems |= {name: "unknown parameter" for name in payload if name not in self._known}
        if problems:
            raise JsonDataException(problems)

    @asynccontextmanager
    async def call(
        self, payload: Mapping[str, Any]
    ) -> AsyncGenerator[FunctionAnswer | web.StreamResponse, None]:
        """The answer: `{"result": …}`, a stream of lines of JSON, or the response that the function made.

        Raises what the function raises, for a stream's first item too, and `TypeError` or `ValueError`
        for a result that is not JSON.
        """
        result = await self._result(payload)
        if inspect.isgenerator(result):
            result = self.threads.iterate(cast("Generator[Any, None, None]", result))
        if inspect.isasyncgen(result):
            async with aclosing(cast(Items, result)) as items:
                # Nothing is sent before the first item: until then a failure is a 500.
                yield FunctionAnswer(STREAM_TYPE, FunctionBody(await _line(items), items))
        elif isinstance(result, web.StreamResponse):
            yield result
        else:
            body = _json({"result": result})
            yield FunctionAnswer("application/json", FunctionBody(body), len(body))

    async def _result(self, payload: Mapping[str, Any]) -> Any:
        """What the function gives; of a generator, the generator, of which nothing has run yet."""
        call = functools.partial(self._function, **payload)
        result: Any = call() if _returns_lazily(self._function) else await _as_own(self.threads.run(call))
        return await _as_own(result) if inspect.isawaitable(result) else result


def unusable(function: Callable[..., Any]) -> str | None:
    """Why `function` can't be called with a payload's fields as keywords; None: it can."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return "has no signature that tells its parameters"
    unnamed = [p.name for p in parameters if p.kind is _POSITIONAL_ONLY and p.default is p.empty]
    return f"takes {', '.join(unnamed)} by position only: a payload gives keywords" if unnamed else None


def takes(function: Callable[..., Any], arguments: int, *keywords: str) -> bool:
    """Whether `function` can be called with so many arguments and these keywords, as far as it tells."""
    try:
        inspect.signature(function).bind(*range(arguments), **dict.fromkeys(keywords))
    except TypeError:
        return False
    except ValueError:  # of a built-in, which has none
        return True
    return True


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling `function` gives something to await or to iterate asynchronously."""
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    own_call = None if isinstance(function, type) else getattr(function, "__call__", None)  # noqa: B004
    return any(kind(function) or kind(own_call) for kind in kinds)


def _returns_lazily(function: Callable[..., Any]) -> bool:
    """Whether a call returns before any of the function's code has run."""
    return is_async(function) or inspect.isgeneratorfunction(function)


async def _line(items: Items) -> bytes:
    """The next of `items` as a line of JSON; b"" at the end."""
    try:
        return _json(await _as_own(items.__anext__())) + b"\n"
    except StopAsyncIteration:
        return b""


def _json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False).encode()


async def _as_own(result: Awaitable[T]) -> T:
    """`result`, where the errors of an author's calls to others aren't taken for the model server's."""
    try:
        return await result
    except (TimeoutError, asyncio.TimeoutError, aiohttp.ClientError) as e:
        raise FunctionFailed(f"remote_function raised {e!r}") from e


def _conclude(done: asyncio.Future[Any], outcome: Any) -> None:
    if not done.done():
        done.set_result(outcome)
