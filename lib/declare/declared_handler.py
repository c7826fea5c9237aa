"""The handler behind a `HandlerConfig`: its fields as an ordinary `EndpointHandler` (authoring.md §2).

Owns what a declared handler does with a payload, a client's or the benchmark's. What may be declared
together is lib/worker.py's.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import aiohttp
from aiohttp import web

from lib.data_types import ApiPayload, EndpointHandler
from lib.declare.functions import RemoteFunction
from lib.fields.json_fields import JsonDataException
from lib.request.workload import DEFAULT_WORKLOAD
from lib.uploads import Upload

if TYPE_CHECKING:
    from lib.model.caller import ModelCaller

Json = dict[str, Any]
RequestParser = Callable[[Json], Json]
WorkloadCalculator = Callable[[Json], float]
ResponseGenerator = Callable[
    [web.Request, aiohttp.ClientResponse], Awaitable[web.StreamResponse] | web.StreamResponse
]

# The envelope of a benchmark's payload, for classes that read it themselves.
_NO_AUTH = {"signature": "", "cost": 0.0, "endpoint": "", "reqnum": 0, "url": ""}


@dataclass
class DeclaredPayload:
    """A payload as JSON; `typed` is it as the declared payload class has it, or the JSON itself."""

    json: Json
    typed: Any
    workload_calculator: WorkloadCalculator | None = None

    def generate_payload_json(self) -> Any:
        own = getattr(self.typed, "generate_payload_json", None)
        return own() if own else self.json

    def generate_payload_multipart(self) -> Json | None:
        own = getattr(self.typed, "generate_payload_multipart", None)
        return own() if own else None

    def generate_payload_upload(self) -> Upload | None:
        own = getattr(self.typed, "generate_payload_upload", None)
        return own() if own else None

    def count_workload(self) -> float:
        if self.workload_calculator is not None:
            return self.workload_calculator(self.json)
        own = getattr(self.typed, "count_workload", None)
        return own() if own else DEFAULT_WORKLOAD


class Samples:
    """The benchmark's payloads as JSON: those of `dataset` in turn, or what `generator` makes each time."""

    def __init__(self, dataset: Sequence[Json] | None, generator: Callable[[], Json] | None) -> None:
        self._next: Callable[[], Json] = generator or partial(next, itertools.cycle(dataset or ()))

    def take(self) -> Json:
        """The next one, the caller's to change: a request parser may."""
        return copy.deepcopy(self._next())


@dataclass(kw_only=True)
class DeclaredHandler(EndpointHandler[DeclaredPayload]):
    """A handler for `route` on the model server, or for `function` instead of one."""

    route: str
    method: str = "POST"
    payload_class: type[Any] | None = None
    request_parser: RequestParser | None = None
    response_generator: ResponseGenerator | None = None
    workload_calculator: WorkloadCalculator | None = None
    function: RemoteFunction | None = None
    samples: Samples | None = None

    @property
    def endpoint(self) -> str:
        return self.route

    @property
    def benchmark_name(self) -> str:
        return f"{self.route} {self.function.name}" if self.function else self.route

    @property
    def benchmark_method(self) -> str:
        return self.method

    @classmethod
    def payload_cls(cls) -> type[DeclaredPayload]:
        return DeclaredPayload

    @property
    def accepts_compressed_answers(self) -> bool:
        return self.response_generator is None

    @property
    def takes_uploads(self) -> bool:
        return hasattr(self.payload_class, "from_upload")

    def read_upload(self, upload: Upload) -> DeclaredPayload:
        return _uploaded(cast(Any, self.payload_class).from_upload(upload))

    def read_payload(self, req_data: Json) -> DeclaredPayload:
        return self._read(req_data["payload"])

    def make_benchmark_payload(self) -> DeclaredPayload:
        if self.samples is not None:
            return self._read(self.samples.take())
        typed = cast(Any, self.payload_class).for_test()
        if takes_only_uploads(self.payload_class):
            return _uploaded(typed)
        return DeclaredPayload(cast(Json, typed.generate_payload_json()), typed, self.workload_calculator)

    def call_model(self, model: ModelCaller, payload: DeclaredPayload) -> AbstractAsyncContextManager[Any]:
        if self.function is not None:
            return self.function.call(payload.generate_payload_json())
        return super().call_model(model, payload)

    def _read(self, raw: Json) -> DeclaredPayload:
        """Raises `JsonDataException` (422) under "payload"."""
        message = raw if self.request_parser is None else _parsed(self.request_parser, raw)
        try:
            own = self.payload_class
            typed = message if own in (None, dict) else cast(Any, own).from_json_msg(message)
            payload = DeclaredPayload(message, typed, self.workload_calculator)
            if self.function is not None:
                self.function.check(payload.generate_payload_json())
        except JsonDataException as e:
            raise JsonDataException({"payload": e.message}) from e
        return payload


@dataclass(kw_only=True)
class AnsweringHandler(DeclaredHandler):
    """A declared handler whose `response_generator` makes the client's answer."""

    async def generate_client_response(
        self, client_request: web.Request, model_response: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        assert self.response_generator is not None
        response = self.response_generator(client_request, model_response)
        return await response if inspect.isawaitable(response) else response


def sample_payload(handler: EndpointHandler[Any], samples: Samples) -> Any:
    """A benchmark payload for a handler of an author's own class, read as a client's would be."""
    return handler.read_payload({"auth_data": dict(_NO_AUTH), "payload": samples.take()})


def makes_own_samples(payload_class: type[Any] | None) -> bool:
    """Whether the payload class has a `for_test` of its own."""
    own = getattr(payload_class, "for_test", None)
    return own is not None and getattr(own, "__func__", own) is not cast(Any, ApiPayload.for_test).__func__


def takes_only_uploads(payload_class: type[Any] | None) -> bool:
    """Whether no JSON makes a payload of this class: it is an `Upload`'s that has no reader of JSON."""
    reader = getattr(payload_class, "from_json_msg", None)
    return getattr(reader, "__func__", reader) is cast(Any, Upload.from_json_msg).__func__


def _uploaded(typed: Any) -> DeclaredPayload:
    """An upload as the payload class has it; a function has it as its keyword `upload`."""
    return DeclaredPayload({"upload": typed}, typed)


def _parsed(parser: RequestParser, raw: Json) -> Json:
    """What an author's parser makes of a payload. Raises `JsonDataException` for the client's faults."""
    try:
        parsed: Any = parser(raw)
    except JsonDataException as e:
        raise JsonDataException({"payload": e.message}) from e
    except KeyError as e:
        raise JsonDataException({"payload": _missing(e, raw)}) from e
    except ValueError as e:
        raise JsonDataException({"payload": str(e) or "invalid"}) from e
    if not isinstance(parsed, dict):
        raise TypeError(f"request_parser gave {type(parsed).__name__}, not the payload as a dict")
    return cast(Json, parsed)


def _missing(error: KeyError, raw: Json) -> Json:
    """The field that a parser looked for in vain, or whose value it looked up in vain."""
    key = error.args[0] if error.args else "?"
    looked_up = [name for name, value in raw.items() if value == key]
    return dict.fromkeys(looked_up, f"unknown: {key!r}") or {str(key): "missing parameter"}
