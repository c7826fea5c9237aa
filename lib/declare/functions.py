"""Python functions as models: the result of a `remote_function`, in the form of a model server's answer.

Owns the running of an author's function, async or plain, value or generator, and the threads in which plain
ones run. The answer is passed on like a model server's (lib/model/relay.py). How arguments are read is in
lib/fields/arguments.py, the form of results in results.py, and whether a function can be called at all in
lib/fields/callables.py.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from lib.declare.results import (
    BYTES_TYPE,
    Body,
    FileBody,
    body_of,
    is_binary,
    is_quick,
    opened,
)
from lib.errors import ModelDown, describe_error, is_out_of_files, result_or_error
from lib.fields.annotations import union_members
from lib.fields.arguments import Arguments
from lib.fields.callables import accepts, is_async, parameters_of, without_partials
from lib.fields.json_values import RAW_BYTES, name_of_type, to_json
from lib.runtime.stable_name import stable_name

T = TypeVar("T")
Items = AsyncGenerator[Any, None]

STREAM_TYPE = "application/x-ndjson"
_END = object()
_POSITIONAL_ONLY = inspect.Parameter.POSITIONAL_ONLY


class FunctionFailed(Exception):
    """An author's function failed in a way that looks like a model server's failure: 500, not 502 or 504."""


class FunctionBody:
    """The body of an answer computed here, with the methods of `aiohttp.StreamReader` that are used."""

    def __init__(self, begin: bytes, next_chunk: Callable[[], Awaitable[bytes]] | None = None) -> None:
        self._begin = begin
        self._next_chunk = next_chunk

    @property
    def is_in_memory(self) -> bool:
        return self._next_chunk is None

    async def readany(self) -> bytes:
        """The next chunk; of a stream, the next item. b"" at the end."""
        chunk, self._begin = self._begin, b""
        if chunk or self._next_chunk is None:
            return chunk
        return await self._next_chunk()

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
    """An author's function, called with arguments read from a payload's fields; `route` is for messages.

    An async function is cancelled when its client leaves. A plain one runs in a thread, which nothing can
    stop: the request keeps its slot until the function returns, and the result is thrown away.
    """

    def __init__(self, function: Callable[..., Any], route: str = "") -> None:
        self._function = function
        self._route = route
        self.threads = Threads()

    @property
    def name(self) -> str:
        function = self.documented
        return stable_name(function if hasattr(function, "__qualname__") else type(function))

    @property
    def documented(self) -> Any:
        """The author's function itself, or what a `functools.partial` calls."""
        return without_partials(self._function)

    def problem(self, receives_uploads: bool, has_heartbeat: bool) -> str | None:
        """The reason why the function can't be called with a payload's fields as keywords, or None.

        If it `receives_uploads`, it must also accept `upload` as its only keyword. If it `has_heartbeat`, its
        result must be JSON or text.
        """
        parameters = parameters_of(self._function)
        if parameters is None:
            return "has no signature, so its parameters are not known"
        unreadable = result_or_error(lambda: self.arguments)
        if isinstance(unreadable, Exception):
            return f"has an annotation that can't be used: {describe_error(unreadable)}"
        unnamed = [p.name for p in parameters if p.kind is _POSITIONAL_ONLY and p.default is p.empty]
        if unnamed:
            return (
                f"takes {', '.join(unnamed)} by position only, but a payload's fields are passed as keywords"
            )
        if receives_uploads and not accepts(self._function, 0, "upload"):
            return "can't be called with upload= alone, as it is for an upload"
        if has_heartbeat and is_binary(self.arguments.returned):
            return "returns a file or bytes, which can't follow the newlines of keepalive_s: leave it unset"
        return None

    @property
    def upload_class(self) -> type[Any] | None:
        """The class of the first parameter that is annotated with one that is made of an upload, or None."""
        arguments = result_or_error(lambda: self.arguments)  # `problem` says what is wrong with them
        fields = () if isinstance(arguments, Exception) else arguments.fields
        members = (member for field in fields for member in union_members(field.annotation))
        return next((m for m in members if isinstance(m, type) and hasattr(m, "from_upload")), None)

    @functools.cached_property
    def arguments(self) -> Arguments:
        """The function's parameters, which read the keyword arguments for a call from a payload."""
        return Arguments(self._label, self._function)

    @asynccontextmanager
    async def call(
        self, arguments: Mapping[str, Any]
    ) -> AsyncGenerator[FunctionAnswer | web.StreamResponse, None]:
        """The answer: `{"result": …}`, bytes, a file, a stream, or the response that the function returned.

        Raises what the function raises, also for a stream's first item, and `FunctionFailed` for a result
        that can't be sent.
        """
        result = await self._result(arguments)
        if inspect.isgenerator(result):
            result = self.threads.iterate(cast("Generator[Any, None, None]", result))
        async with AsyncExitStack() as stack:
            if isinstance(result, web.StreamResponse):
                yield result
            elif inspect.isasyncgen(result):
                items = _Chunks(self, await stack.enter_async_context(aclosing(cast(Items, result))))
                begin = await items.next_chunk()  # the answer begins with it: a failure before it is a 500
                yield FunctionAnswer(items.content_type, FunctionBody(begin, items.next_chunk))
            elif isinstance(result, Path):
                try:
                    file = await stack.enter_async_context(opened(result))
                except OSError as e:
                    if is_out_of_files(e):
                        raise
                    raise self.unsendable(result, e) from e
                next_chunk = functools.partial(self._next_of_file, result, file)
                yield FunctionAnswer(file.content_type, FunctionBody(b"", next_chunk), file.size_bytes)
            else:
                body = await self._body_of(result)
                yield FunctionAnswer(body.content_type, FunctionBody(body.content), len(body.content))

    def unsendable(self, result: Any, reason: Exception) -> FunctionFailed:
        """The error for a `result` that can't be sent for `reason`."""
        return FunctionFailed(f"{self._label} returned {name_of_type(result)}, which can't be sent: {reason}")

    @property
    def _label(self) -> str:
        return f"{self._route} {self.name}".strip()

    async def _next_of_file(self, path: Path, file: FileBody) -> bytes:
        try:
            return await file.next_chunk()
        except (OSError, ValueError) as e:
            raise self.unsendable(path, e) from e

    async def _body_of(self, result: Any) -> Body:
        make = functools.partial(body_of, result)
        try:
            return make() if is_quick(result) else await self.threads.run(make)
        except FunctionFailed:
            raise
        except Exception as e:  # an object's own conversion may raise anything
            raise self.unsendable(result, e) from e

    async def _result(self, arguments: Mapping[str, Any]) -> Any:
        """The function's result; for a generator function, the generator before any of its code has run."""
        call = functools.partial(self._function, **arguments)
        lazy = _returns_lazily(self._function)
        result: Any = call() if lazy else await _with_own_errors(self.threads.run(call))
        return await _with_own_errors(result) if inspect.isawaitable(result) else result


class _Chunks:
    """A function's `items` as a body: lines of JSON or, if the first one is bytes, the bytes of all."""

    def __init__(self, function: RemoteFunction, items: Items) -> None:
        self.content_type = STREAM_TYPE
        self._function = function
        self._items = items
        self._has_begun = False

    async def next_chunk(self) -> bytes:
        """The next item; b"" at the end. Raises `FunctionFailed` for one that can't be sent."""
        chunk = b""
        while not chunk:  # an item of no bytes is not the end
            try:
                item = await _with_own_errors(self._items.__anext__())
            except StopAsyncIteration:
                break
            chunk = self._bytes_of(item)
        return chunk

    def _bytes_of(self, item: Any) -> bytes:
        if not self._has_begun:
            self._has_begun = True
            if isinstance(item, RAW_BYTES):
                self.content_type = BYTES_TYPE
        try:
            if self.content_type == STREAM_TYPE:
                return to_json(item) + b"\n"
            if isinstance(item, RAW_BYTES):
                return bytes(cast(bytes, item))
            raise TypeError("the items before it are bytes")
        except Exception as e:  # an object's own conversion may raise anything
            raise self._function.unsendable(item, e) from e


def _returns_lazily(function: Callable[..., Any]) -> bool:
    """Whether a call returns before any of the function's code has run."""
    return is_async(function) or inspect.isgeneratorfunction(function)


async def _with_own_errors(result: Awaitable[T]) -> T:
    """Await `result`; turn timeouts and client errors of the author's own calls into `FunctionFailed`.

    That the model server is down stays a `ModelDown` (503).
    """
    try:
        return await result
    except ModelDown:
        raise
    except (TimeoutError, asyncio.TimeoutError, aiohttp.ClientError) as e:
        raise FunctionFailed(f"remote_function raised {e!r}") from e


def _set_result(done: asyncio.Future[Any], result: Any) -> None:
    if not done.done():
        done.set_result(result)
