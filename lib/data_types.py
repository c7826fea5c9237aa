"""What a worker's author subclasses: `ApiPayload`, `EndpointHandler`; and `AuthData`, `LogAction`.

Owns the names and defaults of authoring.md §1, which workers in the field are written against. How a
handler is run is in backend.py; how JSON becomes a dataclass is in lib/fields/json_fields.py.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import KW_ONLY, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

import aiohttp
from aiohttp import web

from lib.fields.json_fields import JsonDataException, read_dataclass, read_fields
from lib.runtime.stable_name import stable_name

if TYPE_CHECKING:
    from typing_extensions import Self

    from lib.model.caller import ModelCaller
    from lib.uploads import Upload

__all__ = ["ApiPayload", "AuthData", "EndpointHandler", "JsonDataException", "LogAction"]

P = TypeVar("P")
OnDisconnect = Literal["cancel", "finish"]

# What the wire's integers must fit into: the engine's own are 64 bits wide.
_INT64 = 2**63


class LogAction(Enum):
    """What a line of the model server's log means."""

    ModelLoaded = 1
    ModelError = 2
    Info = 3


@dataclass
class AuthData:
    """The part of a `/route/` answer that a request brings along (protocol.md §2).

    `cost` is in workload units, finite and ≥ 0; `request_idx` is ≥ 1, or None for none.
    """

    signature: str
    cost: float
    endpoint: str
    reqnum: int
    url: str
    request_idx: int | None = None

    @classmethod
    def from_json_msg(cls, json_msg: Mapping[str, Any]) -> Self:
        """Raises `JsonDataException` naming each field that is missing or wrong; ignores unknown ones."""
        message = {key: _cost(value) if key == "cost" else value for key, value in json_msg.items()}
        values: dict[str, Any] = {}
        problems: dict[str, Any] = {}
        try:
            values = read_fields(cls, message)
        except JsonDataException as e:
            problems = e.message
        for name, value in message.items():
            if name not in problems and (problem := _out_of_range(name, value)):
                problems[name] = problem
        if problems:
            raise JsonDataException(problems)
        values["request_idx"] = values.get("request_idx") or None
        return cls(**values)


def _cost(value: Any) -> Any:
    """`value` as a float where it is a number or the text of one, else as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return value
    try:
        return float(value)
    except ValueError:
        return value
    except OverflowError:  # an integer past every float
        return math.inf


def _out_of_range(name: str, value: Any) -> str | None:
    """What is wrong with `value`, whose type is right."""
    if not _is_finite(value):
        return "must be finite"
    if name in ("cost", "request_idx") and value is not None and value < 0:
        return "must be 0 or more"
    if name in ("reqnum", "request_idx") and value is not None and not -_INT64 <= value < _INT64:
        return "must fit into 64 bits"
    return None


def _is_finite(root: Any) -> bool:
    """Whether no NaN and no infinity lies in `root`, at any depth."""
    pending = [root]
    while pending:
        value = pending.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return False
        if isinstance(value, dict):
            pending.extend(cast("dict[str, Any]", value).values())
        elif isinstance(value, list):
            pending.extend(cast("list[Any]", value))
    return True


@dataclass
class ApiPayload(ABC):
    """A request's payload, from the client's JSON to what the model server is sent.

    A class that merely has these methods serves as well.
    """

    @classmethod
    def from_json_msg(cls, json_msg: dict[str, Any]) -> Self:
        """The payload in `json_msg`, by default from the subclass's dataclass fields.

        Raises `JsonDataException({field: what is wrong})`, which the client gets as 422.
        """
        return read_dataclass(cls, json_msg)

    def generate_payload_json(self) -> dict[str, Any]:
        """The JSON object for the model server; by default the dataclass as a dict."""
        return dataclasses.asdict(self)

    def generate_payload_multipart(self) -> dict[str, Any] | None:
        """Form fields to send instead of JSON, or None for JSON.

        A `(filename, bytes, content_type)` tuple is a file, a list repeats its field, None is left out,
        a dict or a nested list is sent as JSON, other scalars as text; bare bytes are a `TypeError`.
        """
        return None

    @abstractmethod
    def count_workload(self) -> float:
        """How much work this is, in the author's own unit; finite and ≥ 0."""

    @classmethod
    def for_test(cls) -> Self:
        """A typical payload, for load tests and, by default, for the benchmark."""
        raise NotImplementedError(f"{cls.__name__}.for_test is not defined")


@dataclass
class EndpointHandler(ABC, Generic[P]):
    """One route of the worker: where its requests go and what is special about them.

    `benchmark_runs` is in rounds; `max_queue_time` and `keepalive_s` are in seconds. What each field
    does is told in authoring.md §1.
    """

    benchmark_runs: int = 8
    benchmark_words: int = 100
    _: KW_ONLY
    allow_parallel_requests: bool | None = None
    max_queue_time: float | None = None
    max_concurrency: int | None = None
    benchmark_concurrency: int | None = None
    benchmark_warmup: bool = True
    on_disconnect: OnDisconnect = "cancel"
    keepalive_s: float | None = None

    @property
    @abstractmethod
    def endpoint(self) -> str | None:
        """Path on the model server, or an absolute URL; read for each request, once its payload is made."""

    @property
    def healthcheck_endpoint(self) -> str | None:
        """Path or absolute URL to GET, or None for no check."""
        return None

    @classmethod
    @abstractmethod
    def payload_cls(cls) -> type[P]:
        """The payload's class; `dict` takes the payload as it came."""

    @property
    def benchmark_name(self) -> str:
        """What a saved benchmark is for: a handler of another name is measured anew."""
        return stable_name(type(self))

    @property
    def benchmark_method(self) -> str:
        """The method of the benchmark's requests, which no client chooses."""
        return "POST"

    def make_benchmark_payload(self) -> P:
        """A payload for the benchmark; made anew for each of its requests."""
        return cast(Any, self.payload_cls()).for_test()

    def generate_payload_json(self, payload: P) -> Any:
        """The JSON for the model server; by default the payload's own."""
        own = getattr(payload, "generate_payload_json", None)
        return own() if own else payload

    def call_model(self, model: ModelCaller, payload: P) -> AbstractAsyncContextManager[Any]:
        """The model's response to `payload`, as an async context manager.

        By default of one request to `endpoint`, by the client's method: a POST, or a GET with the payload
        in its query; a `{name}` in `endpoint` is filled in (`ModelCaller.send`).
        The place to speak another protocol to the model server, or to compute the answer here. It gives
        what `generate_client_response` takes, or an `aiohttp.web.StreamResponse` that is the answer.
        """
        upload = getattr(payload, "generate_payload_upload", _none)()
        if upload is not None:
            return model.send_upload(self.endpoint, upload)
        form = getattr(payload, "generate_payload_multipart", _none)()
        if form is not None:
            return model.send_form(self.endpoint, form)
        message = self.generate_payload_json(payload)
        return model.send(self.endpoint, message)  # read last: some handlers decide it on the way

    async def generate_client_response(
        self, client_request: web.Request, model_response: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        """The client's answer; by default the model server's, passed on as it comes (protocol.md §2)."""
        from lib.model.relay import pass_on  # here: lib.model imports this module

        return await pass_on(client_request, model_response)

    @property
    def accepts_compressed_answers(self) -> bool:
        """Whether the model server may compress its answers: only where they are passed on as they come.

        By default, if neither `call_model` nor `generate_client_response` is the author's own.
        """
        own, base = cast(Any, type(self)), cast(Any, EndpointHandler)
        same_call = own.call_model is base.call_model
        return same_call and own.generate_client_response is base.generate_client_response

    async def on_client_disconnect(self, payload: P) -> None:
        """The client of `payload` has left while the model worked; its call is closed by now.

        The place to stop what closing a connection doesn't stop.
        """

    @classmethod
    def get_data_from_request(
        cls, req_data: dict[str, Any]
    ) -> tuple[AuthData, P] | tuple[AuthData, P, str | None]:
        """The whole envelope, authenticated by now → its `AuthData` and the payload.

        Raises `JsonDataException`, which the client gets as 422.
        """
        return AuthData.from_json_msg(req_data["auth_data"]), cls._payload_in(req_data)

    def read_payload(self, req_data: dict[str, Any]) -> P:
        """The payload in a whole envelope, authenticated by now. Raises `JsonDataException` (422)."""
        reader: Any = type(self).get_data_from_request
        if getattr(reader, "__func__", reader) is _DEFAULT_READER:
            return self._payload_in(req_data)  # the same, without reading `auth_data` once more
        return self.get_data_from_request(req_data)[1]

    @property
    def takes_uploads(self) -> bool:
        """Whether bodies that are not JSON are taken: by default, if the payload class has `from_upload`."""
        return hasattr(self.payload_cls(), "from_upload")

    def read_upload(self, upload: Upload) -> P:
        """The payload in a body that is not JSON, authenticated by now. Raises `JsonDataException` (422)."""
        return cast(Any, self.payload_cls()).from_upload(upload)

    @classmethod
    def _payload_in(cls, req_data: dict[str, Any]) -> P:
        payload_cls: Any = cls.payload_cls()
        raw = req_data["payload"]
        try:
            return raw if payload_cls is dict else payload_cls.from_json_msg(raw)
        except JsonDataException as e:
            raise JsonDataException({"payload": e.message}) from e


_DEFAULT_READER = cast(Any, EndpointHandler.get_data_from_request).__func__


def _none() -> None:
    return None
