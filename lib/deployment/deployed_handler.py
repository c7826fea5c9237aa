"""The handler of one function of a deployment.

Owns how the function is called, and what an exception of it becomes: an answer that the client raises, and
an error in the reports. The format of calls and answers is in lib/deployment/remote_call.py.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp import web

from lib.data_types import EndpointHandler
from lib.declare.functions import FunctionFailed, Threads
from lib.deployment.remote_call import CallFormat, RemoteCall
from lib.deployment.sdk import Json, RegisteredFunction
from lib.errors import async_result_or_error
from lib.fields.callables import is_async
from lib.fields.json_fields import JsonDataException
from lib.request.exchange import Exchange, log_failure
from lib.runtime.stable_name import stable_name

if TYPE_CHECKING:
    from lib.model.caller import ModelCaller


@dataclass(kw_only=True)
class DeployedHandler(EndpointHandler[RemoteCall]):
    """Answers calls of `function` at `route`. A plain one runs in a thread, an async one on the event loop.

    `make_sample` makes a payload of its benchmark, if it has one.
    """

    route: str
    function: RegisteredFunction
    format: CallFormat
    make_sample: Callable[[], Json] | None = None
    threads: Threads = field(default_factory=Threads)

    @property
    def endpoint(self) -> str:
        return self.route

    @classmethod
    def payload_cls(cls) -> type[RemoteCall]:
        return RemoteCall

    @property
    def benchmark_name(self) -> str:
        return f"{self.route} {stable_name(self.function.func)}"

    def make_benchmark_payload(self) -> RemoteCall:
        assert self.make_sample is not None
        return self._read(self.make_sample())

    def generate_payload_json(self, payload: RemoteCall) -> Json:
        return self.format.write_call(*payload.args, **payload.kwargs)

    def read_payload(self, req_data: dict[str, Any]) -> RemoteCall:
        try:
            return self._read(req_data["payload"])
        except JsonDataException as e:
            raise JsonDataException({"payload": e.message}) from e

    @asynccontextmanager
    async def call_model(
        self, model: ModelCaller, payload: RemoteCall
    ) -> AsyncGenerator[web.StreamResponse, None]:
        """The answer, `{"result": {"ok": …}}`, or `{"result": {"err": …}}` with the function's exception.

        In the benchmark, an exception of the function is raised as `FunctionFailed`.
        """
        answer = await async_result_or_error(self._answer(payload))
        if isinstance(answer, Exception):
            answer = self._failed(model.client_request, answer)
        yield web.json_response({"result": answer})

    def on_cut(self) -> None:
        """Abandon the threads in which the function still runs: a thread can't be cancelled."""
        self.threads.leave_behind()

    def _read(self, payload: Json) -> RemoteCall:
        call = self.format.read_call(payload)
        return replace(call, workload_calculator=self.function.workload_calculator)

    async def _answer(self, call: RemoteCall) -> Json:
        run = partial(self.function.func, *call.args, **call.kwargs)
        result = run() if is_async(self.function.func) else await self.threads.run(run)
        return self.format.write_result(await result if inspect.isawaitable(result) else result)

    def _failed(self, request: web.Request | None, error: Exception) -> Json:
        name = self.function.func.__name__
        if request is None:
            raise FunctionFailed(f"{name} raised {error!r}") from error
        exchange = Exchange.of(request)
        assert exchange is not None
        log_failure(exchange, logging.WARNING, f"{name} raised an exception", error)
        request["outcome"] = "errored"
        return self.format.write_error(error)
