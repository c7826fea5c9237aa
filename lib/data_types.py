"""The classes that authors of workers subclass, `ApiPayload` and `EndpointHandler`, and `AuthData`.

Owns their names and defaults, on which workers in the field depend (docs/writing-a-worker.md, "Classes").
How a handler is run is in lib/backend.py; how JSON becomes a dataclass is in lib/fields/json_fields.py.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass
from functools import partial
from types import FunctionType, MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

import aiohttp
from aiohttp import web
from anyio import CapacityLimiter
from anyio.to_thread import run_sync as in_thread

from lib.fields.annotations import mismatch
from lib.fields.callables import is_coroutine_function
from lib.fields.json_error import payload_refusal
from lib.fields.json_fields import JsonDataException, read_dataclass, read_fields
from lib.fields.limits import below_minimum, invalid_durations, is_finite
from lib.fields.unknown_fields import Extra
from lib.model.answer import AnswerScanner
from lib.model.log_rules import LogAction
from lib.model.relay import pass_on
from lib.request.own_requests import RequestMetrics
from lib.runtime.stable_name import stable_name

if TYPE_CHECKING:
    from typing_extensions import Self

    from lib.model.caller import ModelCaller
    from lib.uploads import Upload

__all__ = [
    "UNSIGNED_AUTH_DATA",
    "AnswerScanner",
    "ApiPayload",
    "AuthData",
    "EndpointHandler",
    "JsonDataException",
    "LogAction",
    "RequestMetrics",
]

P = TypeVar("P")
OnDisconnect = Literal["cancel", "finish"]

# The `auth_data` beside a payload that no client sent, for handlers that read whole envelopes.
UNSIGNED_AUTH_DATA: Mapping[str, Any] = MappingProxyType(
    {"signature": "", "cost": 0.0, "endpoint": "", "reqnum": 0, "url": ""}
)
# The value of a handler's field that was not given.
_NOT_GIVEN: Any = object()
# Fields whose names handlers may have used for themselves before they were fields, with their types.
_NEWER_FIELDS: tuple[tuple[str, Any], ...] = (
    ("has_benchmark", bool),
    ("do_warmup_benchmark", bool),
    ("concurrency", int | None),
)
# The shortest time between two newlines of a heartbeat, in seconds: more of them would only be load.
MIN_KEEPALIVE_S = 0.1
# Integers of a request must be less than this: the engine's own are 64 bits wide.
_INT64 = 2**63


@dataclass
class AuthData:
    """The engine's answer to `/route/`, which a request carries (docs/protocol.md, "Envelope").

    `cost` is in workload units, finite and ≥ 0. `request_idx` is ≥ 1, or None without one. `reqnum` and
    `request_idx` fit into 64 bits.
    """

    signature: str
    cost: float
    endpoint: str
    reqnum: int
    url: str
    request_idx: int | None = None

    @classmethod
    def from_json_msg(cls, json_msg: Mapping[str, Any]) -> Self:
        """Read `json_msg`; ignore unknown fields. Raises `JsonDataException` (422) naming each wrong one."""
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
    """Convert a number, or a string that holds one, to a float; return anything else unchanged."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return value
    try:
        return float(value)
    except ValueError:
        return value
    except OverflowError:  # an integer larger than every float
        return math.inf


def _out_of_range(name: str, value: Any) -> str | None:
    """The problem of `value`, whose type is right, or None."""
    if not is_finite(value):
        return "must be finite"
    if name in ("cost", "request_idx") and value is not None and value < 0:
        return "must be 0 or more"
    if name in ("reqnum", "request_idx") and value is not None and not -_INT64 <= value < _INT64:
        return "must fit into 64 bits"
    return None


@dataclass
class ApiPayload(ABC):
    """A request's payload: read from the client's JSON, sent to the model server.

    A payload class need not be a subclass; it must have the methods that its handler uses.
    """

    @classmethod
    def from_json_msg(cls, json_msg: dict[str, Any]) -> Self:
        """Make the payload of `json_msg`, by default from the subclass's dataclass fields.

        Raises `JsonDataException({field: problem})`, which the client gets as 422.
        """
        return read_dataclass(cls, json_msg)

    def generate_payload_json(self) -> dict[str, Any]:
        """The JSON object for the model server; by default the dataclass as a dict."""
        return dataclasses.asdict(self)

    def generate_payload_multipart(self) -> dict[str, Any] | None:
        """Form fields to send instead of JSON, or None to send JSON.

        A `(filename, content, content_type)` tuple is a file; its content is bytes, or a `Path` from which it
        is read. A list repeats its field; None is left out; a dict or a nested list is sent as JSON, any
        other scalar as text. Bare bytes raise `TypeError`.
        """
        return None

    @abstractmethod
    def count_workload(self) -> float:
        """The payload's workload, in a unit of the author's choice; finite and ≥ 0.

        A workload that is neither, or an exception, counts as `DEFAULT_WORKLOAD`.
        """

    @classmethod
    def for_test(cls) -> Self:
        """A typical payload, for load tests and, by default, for the benchmark."""
        raise NotImplementedError(f"{cls.__name__}.for_test is not defined")


@dataclass
class EndpointHandler(ABC, Generic[P]):
    """One route of the worker: how its requests are read, queued, sent and answered.

    `max_queue_time` is the longest wait in the queue in seconds, None for the backend's `max_wait_time`;
    `max_concurrency` the number of requests at once, None for one, or no limit with
    `allow_parallel_requests` (None: the backend's). `on_disconnect` says whether a request whose client has
    left is cancelled or finished. `keepalive_s` is in seconds between the newlines that keep a waiting
    client's connection open, 0.1 at least, None for none. `idempotent` says that the model server may execute
    a request twice: then one whose connection broke before any answer is sent once more. A payload with a
    workload of more than `max_workload` is refused with 422; with None, more than 1,000 times the benchmark's
    payload and than an hour of `max_perf` counts as the larger of these two. `benchmark_concurrency`
    requests are kept in flight in the benchmark, None for as many as give the highest throughput; other than
    8, at least `benchmark_runs` times as many end. `benchmark_words` is the length of a prompt for handlers
    that use it. With `extra="ignore"`, the names of a payload's unknown fields are logged once; "forbid"
    refuses the request with 422.

    The last four are the fields of another implementation. `has_benchmark`: a declared worker that names no
    benchmark measures this handler. `concurrency` is an older name of `benchmark_concurrency`;
    `do_warmup_benchmark` False is the same as `benchmark_warmup` False. `remote_function` computes the
    answers of a declared worker's `handler_class` (`call_remote_dispatch_function`). A subclass may set every
    field as a class attribute, with or without `@dataclass`.
    """

    benchmark_runs: int = 8
    benchmark_words: int = 100
    _: KW_ONLY
    allow_parallel_requests: bool | None = None
    max_queue_time: float | None = None
    max_concurrency: int | None = None
    max_workload: float | None = None
    benchmark_concurrency: int | None = None
    benchmark_warmup: bool = True
    on_disconnect: OnDisconnect = "cancel"
    keepalive_s: float | None = None
    idempotent: bool = False
    extra: Extra = "ignore"
    has_benchmark: bool = True
    concurrency: int | None = None
    do_warmup_benchmark: bool = True
    remote_function: Callable[..., Any] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if value is not _NOT_GIVEN:  # then the class attribute is the field's value
            super().__setattr__(name, value)

    def __post_init__(self) -> None:
        own = inspect.getattr_static(type(self), "remote_function")
        if "remote_function" not in vars(self) and _is_no_method(own):
            self.remote_function = own  # as an attribute of the class, it would be bound
        self.adopt_older_fields()

    def adopt_older_fields(self) -> None:
        """Set `benchmark_concurrency` and `benchmark_warmup` by `concurrency` and `do_warmup_benchmark`.

        A property or a method of one of these names is the subclass's own, and sets nothing.
        """
        older = None if has_own_member(self, "concurrency") else self.concurrency
        if older is not None and self.benchmark_concurrency is None:
            self.benchmark_concurrency = older
        if not has_own_member(self, "do_warmup_benchmark") and not self.do_warmup_benchmark:
            self.benchmark_warmup = False

    @property
    @abstractmethod
    def endpoint(self) -> str | None:
        """The path on the model server, or an absolute URL; read for each request after its payload."""

    @property
    def healthcheck_endpoint(self) -> str | None:
        """The path or absolute URL of the model server's health check, a GET; None for no check."""
        return None

    @classmethod
    @abstractmethod
    def payload_cls(cls) -> type[P]:
        """The payload's class; `dict` accepts any payload and leaves it unchanged."""

    @property
    def benchmark_name(self) -> str:
        """Identifies this handler in the saved benchmark; a new name forces a new measurement."""
        return stable_name(type(self))

    @property
    def benchmark_method(self) -> str:
        """The HTTP method of the benchmark's requests."""
        return "POST"

    def make_benchmark_payload(self) -> P:
        """Make a payload for one request of the benchmark."""
        return cast(Any, self.payload_cls()).for_test()

    def generate_payload_json(self, payload: P) -> Any:
        """The JSON for the model server, by default from the payload's `generate_payload_json`."""
        own = getattr(payload, "generate_payload_json", None)
        return own() if own else payload

    def endpoint_for(self, payload: P) -> str | None:
        """The `endpoint` for `payload`, for handlers that choose it by the payload."""
        return self.endpoint

    def scan_answer(self) -> AnswerScanner | None:
        """Make an object that judges one answer by its content while it is passed on; None by default.

        Override it, and not `generate_client_response`, where the answer is only looked at: passing it on
        stays as cheap as it can be.
        """
        return None

    def call_model(self, model: ModelCaller, payload: P) -> AbstractAsyncContextManager[Any]:
        """Call the model with `payload`; an async context manager of its response.

        By default this is one request to `endpoint_for(payload)` with the client's method, with the payload
        in the body or, for GET and DELETE, in the query; a `{name}` in it is filled in (`ModelCaller.send`).
        Override it to speak another protocol to the model server, or to compute the answer here. The context
        manager yields the argument of `generate_client_response`, or an `aiohttp.web.StreamResponse`, which
        is the client's answer.
        """
        upload = getattr(payload, "generate_payload_upload", _no_body)()
        if upload is not None:
            return model.send_upload(self.endpoint_for(payload), upload)
        form = getattr(payload, "generate_payload_multipart", _no_body)()
        if form is not None:
            return model.send_form(self.endpoint_for(payload), form)
        message = self.generate_payload_json(payload)
        return model.send(self.endpoint_for(payload), message)  # some choose the endpoint in the line before

    async def call_remote_dispatch_function(self, params: dict[str, Any]) -> Any:
        """Compute the result for `params`, the payload's JSON; by default by `remote_function(**params)`.

        A declared worker's `handler_class` that has a `remote_function`, or overrides this, answers
        `{"result": …}` without a call of the model server. An override that only raises an exception or
        returns a constant has no effect: another implementation requires one of every handler.
        """
        if self.remote_function is None:
            raise NotImplementedError(f"{type(self).__name__} has no remote_function")
        call = partial(self.remote_function, **params)
        if is_coroutine_function(self.remote_function):
            return await call()
        # The handler's queue limits these threads. The shared limit of others would let jobs hold up reports.
        return await in_thread(call, limiter=CapacityLimiter(1))

    async def generate_client_response(
        self, client_request: web.Request, model_response: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        """Make the client's answer of the model server's, by default by passing it on unchanged.

        See docs/protocol.md, "Passing the answer on". `client_request["outcome"]`, set to "served" or
        "errored", overrides the outcome that follows from the status.
        """
        scanner = self.scan_answer()
        if scanner is None:
            return await pass_on(client_request, model_response)
        response = await pass_on(client_request, model_response, on_chunk=scanner.add)
        if outcome := scanner.outcome(model_response.status):
            client_request["outcome"] = outcome
        return response

    @property
    def accepts_compressed_answers(self) -> bool:
        """Whether the model server may compress its answers: only if they are passed on unread.

        By default true if answers are passed on and `scan_answer` is not overridden.
        """
        own, base = cast(Any, type(self)), cast(Any, EndpointHandler)
        return self.passes_answers_on and own.scan_answer is base.scan_answer

    @property
    def passes_answers_on(self) -> bool:
        """Whether the model is called and its answer passed on as by default, which the worker does itself.

        By default true if neither `call_model` nor `generate_client_response` is overridden, and the payload
        is sent as JSON.
        """
        own, base = cast(Any, type(self)), cast(Any, EndpointHandler)
        same_call = own.call_model is base.call_model and "call_model" not in vars(self)
        return same_call and own.generate_client_response is base.generate_client_response

    @property
    def sends_json(self) -> bool:
        """Whether a payload that came as JSON is sent as JSON: never as a form or an upload."""
        return sends_json(self.payload_cls())

    def on_cut(self) -> None:
        """Called when the worker stops and cuts off the requests that did not finish in time.

        The place to stop waiting for what cannot be cancelled, such as threads.
        """

    async def on_client_disconnect(self, payload: P) -> None:
        """Called after the client of `payload` left while the model worked and the call was closed.

        The place to stop work that goes on although its connection is closed.
        """

    def running(self) -> AbstractAsyncContextManager[Any]:
        """The handler's lifetime, as an async context manager; by default an empty one.

        The worker enters it before it can be ready, and leaves it when no request is in progress any more:
        each has finished, or was cut off at the end of the drain. The place for threads, pools and clients
        that requests share.
        """
        return nullcontext()

    def problems(self) -> list[str]:
        """One line for each thing that is wrong with the handler itself; the worker refuses to start then.

        A subclass that adds checks of its own extends the list of `super().problems()`.
        """
        problems = [
            *below_minimum(self, 1, "max_concurrency", "benchmark_concurrency"),
            *self._older_field_problems(),
            *invalid_durations(self, "max_queue_time", "keepalive_s"),
            *self._heartbeat_problems(),
            *below_minimum(self, 0, "max_workload"),
        ]
        typed: list[tuple[str, Any]] = [("on_disconnect", OnDisconnect), ("idempotent", bool)]
        typed += [(name, kind) for name, kind in _NEWER_FIELDS if not has_own_member(self, name)]
        extra: Any = self.extra
        if isinstance(extra, str):  # anything else, such as a dict, is an attribute of the author's own
            typed.append(("extra", Extra))
        mismatches = (mismatch(name, kind, getattr(self, name)) for name, kind in typed)
        return [*problems, *filter(None, mismatches)]

    def _heartbeat_problems(self) -> Iterator[str]:
        if self.keepalive_s is not None and 0 < self.keepalive_s < MIN_KEEPALIVE_S:
            yield f"keepalive_s is {self.keepalive_s}, less than {MIN_KEEPALIVE_S} s: proxies wait for longer"

    def _older_field_problems(self) -> Iterator[str]:
        """Yield a line for each field of another implementation that has no effect here."""
        best = self.benchmark_concurrency
        if not has_own_member(self, "concurrency") and self.concurrency not in (None, best):
            yield f"concurrency is {self.concurrency}, but benchmark_concurrency {best}"
        without_warmup = not has_own_member(self, "do_warmup_benchmark") and not self.do_warmup_benchmark
        if self.benchmark_warmup and without_warmup:
            yield "do_warmup_benchmark is False, but benchmark_warmup True"
        own_property = isinstance(inspect.getattr_static(type(self), "remote_function"), property)
        if not own_property and self.remote_function is not None and "call_model" not in vars(self):
            yield (
                "remote_function is given, but only that of a HandlerConfig, or of its handler_class without "
                "a call_model, is called"
            )

    @classmethod
    def get_data_from_request(
        cls, req_data: dict[str, Any]
    ) -> tuple[AuthData, P] | tuple[AuthData, P, str | None]:
        """Read a whole, authenticated envelope into its `AuthData` and the payload.

        Raises `JsonDataException`, which the client gets as 422.
        """
        return AuthData.from_json_msg(req_data["auth_data"]), cls._payload_in(req_data)

    def read_payload(self, req_data: dict[str, Any]) -> P:
        """Read the payload of a whole, authenticated envelope. Raises `JsonDataException` (422)."""
        reader: Any = type(self).get_data_from_request
        if getattr(reader, "__func__", reader) is _DEFAULT_READER:
            return self._payload_in(req_data)  # the same, without reading `auth_data` again
        return self.get_data_from_request(req_data)[1]

    @property
    def accepts_uploads(self) -> bool:
        """Whether bodies other than JSON are accepted, by default if the payload class has `from_upload`."""
        return hasattr(self.payload_cls(), "from_upload")

    def read_upload(self, upload: Upload) -> P:
        """Make the payload of an authenticated body that is not JSON. Raises `JsonDataException` (422)."""
        try:
            return cast(Any, self.payload_cls()).from_upload(upload)
        except (JsonDataException, ValueError) as e:
            raise payload_refusal(e) from e

    @classmethod
    def _payload_in(cls, req_data: dict[str, Any]) -> P:
        payload_cls: Any = cls.payload_cls()
        raw = req_data["payload"]
        try:
            return raw if payload_cls is dict else payload_cls.from_json_msg(raw)
        except (JsonDataException, ValueError) as e:
            raise payload_refusal(e) from e


_DEFAULT_READER = cast(Any, EndpointHandler.get_data_from_request).__func__


def _take_defaults_from_class(init: Any) -> None:
    """Leave a field that is not given to the class attribute of its name, which a subclass may set.

    The `__init__` that `@dataclass` makes for a subclass does so too. With the values themselves as defaults,
    one that is given could not be told from a default.
    """
    for field in dataclasses.fields(EndpointHandler):
        field.default = _NOT_GIVEN
    init.__defaults__ = (_NOT_GIVEN,) * len(init.__defaults__)
    init.__kwdefaults__ = dict.fromkeys(init.__kwdefaults__, _NOT_GIVEN)


_take_defaults_from_class(cast(Any, EndpointHandler).__init__)


def sends_json(payload_class: type[Any] | None) -> bool:
    """Whether payloads of the class are sent as JSON only: it makes neither forms nor uploads of them."""
    form = getattr(payload_class, "generate_payload_multipart", None)
    has_form = form is not None and form is not cast(Any, ApiPayload).generate_payload_multipart
    return not has_form and not hasattr(payload_class, "generate_payload_upload")


def _no_body() -> None:
    return None


def has_own_member(handler: EndpointHandler[Any], name: str) -> bool:
    """Whether the class of `handler` uses the name of a field for a property or a method of its own."""
    return hasattr(inspect.getattr_static(type(handler), name), "__get__")


def _is_no_method(attribute: Any) -> bool:
    """Whether a class attribute is a function that was not defined in a class."""
    return (
        isinstance(attribute, FunctionType) and "." not in attribute.__qualname__.rpartition("<locals>.")[2]
    )
