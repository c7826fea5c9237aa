"""The handler behind a `HandlerConfig`, an `EndpointHandler` like any other.

Owns what a declared handler does with a payload, a client's or the benchmark's, and what is wrong with such
a handler by itself. Which fields can't be combined is in handler_config.py.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import aiohttp
from aiohttp import web

from lib.data_types import UNSIGNED_AUTH_DATA, ApiPayload, EndpointHandler, sends_json
from lib.declare.functions import RemoteFunction
from lib.errors import response_from, result_or_error
from lib.fields.callables import call_problems, same_function
from lib.fields.json_error import payload_refusal
from lib.fields.json_fields import JsonDataException, read_typed, reader_of
from lib.fields.json_values import simplified
from lib.metrics import DEFAULT_WORKLOAD
from lib.uploads import Upload

if TYPE_CHECKING:
    from lib.model.caller import ModelCaller

log = logging.getLogger(__name__)

Json = dict[str, Any]
RequestParser = Callable[[Json], Any]
WorkloadCalculator = Callable[[Json], float]
ResponseGenerator = Callable[
    [web.Request, aiohttp.ClientResponse], Awaitable[web.StreamResponse] | web.StreamResponse
]
# Methods whose requests have no body: the payload's fields become the query.
_HAVE_NO_BODY = frozenset({"GET", "DELETE"})


@dataclass
class DeclaredPayload:
    """A payload as JSON and, in `typed`, as an instance of the payload class; without one, the JSON again.

    `json` is an object, unless a request parser returned something else. `arguments` are those of the
    handler's function, if it has one.
    """

    json: Any
    typed: Any
    workload_calculator: WorkloadCalculator | None = None
    arguments: Json = field(default_factory=dict[str, Any])

    def generate_payload_json(self) -> Any:
        own = getattr(self.typed, "generate_payload_json", None)
        if own:
            return own()
        return self.json if hasattr(self.typed, "from_json_msg") else simplified(self.typed)

    def generate_payload_multipart(self) -> Json | None:
        own = getattr(self.typed, "generate_payload_multipart", None)
        return own() if own else None

    def generate_payload_upload(self) -> Upload | None:
        own = getattr(self.typed, "generate_payload_upload", None)
        return own() if own else None

    @property
    def counter_name(self) -> str:
        """The name of the author's code that counts the workload."""
        return "workload_calculator" if self.workload_calculator is not None else "count_workload"

    def count_workload(self) -> float:
        if self.workload_calculator is not None:
            return self.workload_calculator(self.json)
        own = getattr(self.typed, "count_workload", None)
        return own() if own else DEFAULT_WORKLOAD


Reader = Callable[[Json], Any]


class Samples:
    """The benchmark's payloads as JSON: those of `dataset` in turn, or a new one of `generator` each time.

    `substitution` describes how a sample that was refused was replaced last; None if none was.
    """

    def __init__(self, dataset: Sequence[Json] | None, generator: Callable[[], Json] | None) -> None:
        self._next: Callable[[], Json] = generator or partial(next, itertools.cycle(dataset or ()))
        self.substitution: str | None = None

    def next(self) -> Json:
        """A copy of the next sample, which a request parser may change."""
        return copy.deepcopy(self._next())

    def read(self, reader: Reader, substitutes: Mapping[str, Reader]) -> Any:
        """Read the next sample as a client's payload is read; if it is refused, by the first that accepts it.

        `substitutes` has readers by what they use in its place. Raises what `reader` raises if all refuse.
        """
        sample = self._next()
        payload = result_or_error(lambda: reader(copy.deepcopy(sample)))  # a request parser may change it
        if not isinstance(payload, Exception):
            return payload
        for what, substitute in substitutes.items():
            substituted = result_or_error(lambda: substitute(copy.deepcopy(sample)))  # noqa: B023 - called here
            if not isinstance(substituted, Exception):
                first, self.substitution = self.substitution is None, f"refused ({payload!r}): used {what}"
                if first:
                    log.warning("a sample of the benchmark was %s", self.substitution)
                return substituted
        raise payload


@dataclass(kw_only=True)
class DeclaredHandler(EndpointHandler[DeclaredPayload]):
    """A handler that calls `route` on the model server or, if given, `function` in its place."""

    route: str
    methods: tuple[str, ...] = ("POST",)
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
        return "POST" if "POST" in self.methods else self.methods[0]

    @classmethod
    def payload_cls(cls) -> type[DeclaredPayload]:
        return DeclaredPayload

    @property
    def passes_answers_on(self) -> bool:
        return self.function is None and self.response_generator is None

    @property
    def sends_json(self) -> bool:
        return sends_json(self.payload_class)

    @property
    def accepts_uploads(self) -> bool:
        return hasattr(self.payload_class, "from_upload")

    def read_upload(self, upload: Upload) -> DeclaredPayload:
        try:
            typed = cast(Any, self.payload_class).from_upload(upload)
        except (JsonDataException, ValueError) as e:
            raise payload_refusal(e) from e
        return self._with_arguments(_payload_of_upload(typed))

    def read_payload(self, req_data: Json) -> DeclaredPayload:
        return self._read(req_data["payload"])

    def make_benchmark_payload(self) -> DeclaredPayload:
        if self.samples is None:
            return self._test_payload()
        substitutes: dict[str, Reader] = {}
        if self.request_parser is not None:  # samples are often written in the form that it returns
            substitutes["it without request_parser"] = self._typed
        if defines_for_test(self.payload_class):
            substitutes["for_test() instead"] = lambda _: self._test_payload()
        return self.samples.read(self._read, substitutes)

    def call_model(self, model: ModelCaller, payload: DeclaredPayload) -> AbstractAsyncContextManager[Any]:
        if self.function is not None:
            return self.function.call(payload.arguments)
        return super().call_model(model, payload)

    def on_cut(self) -> None:
        """Abandon the threads in which `function` still runs: a thread can't be cancelled."""
        if self.function is not None:
            self.function.threads.leave_behind()

    def problems(self) -> list[str]:
        return [
            *super().problems(),
            *call_problems("request_parser", self.request_parser, 1),
            *call_problems("workload_calculator", self.workload_calculator, 1),
            *call_problems("response_generator", self.response_generator, 2, may_be_async=True),
            *self._function_problems(),
            *self._payload_problems(),
        ]

    def _function_problems(self) -> Iterator[str]:
        # If the payload class makes JSON of an upload, the function receives that, not the upload.
        receives_uploads = self.accepts_uploads and not hasattr(self.payload_class, "generate_payload_json")
        if self.function and (problem := self.function.problem(receives_uploads, bool(self.keepalive_s))):
            yield f"remote_function {problem}"
        elif self.function and receives_uploads and accepts_only_uploads(self.payload_class):
            others = [f.name for f in self.function.arguments.fields if f.name != "upload"]
            if others:
                yield (
                    f"remote_function takes {', '.join(others)}, but an upload fills only upload: read the "
                    "URL's parameters from upload.query, and a form's fields from the file upload.path"
                )

    def _payload_problems(self) -> Iterator[str]:
        own = self.payload_class
        if self.request_parser is not None and accepts_only_uploads(own):
            yield "request_parser is given, but an upload has no JSON: use its class's from_upload"
        if self.workload_calculator is not None and self.accepts_uploads:
            yield "workload_calculator is given, but an upload has no JSON: use its class's count_workload"
        if own not in (None, dict) and not hasattr(own, "from_json_msg") and not reader_of(own).has_fields:
            yield f"payload_class {cast(Any, own).__name__} has no from_json_msg, and is no class of fields"
        if self.extra == "forbid" and own in (None, dict) and self.function is None:
            yield "extra is 'forbid', but there is neither a payload_class nor a remote_function with fields"

    def _test_payload(self) -> DeclaredPayload:
        """The payload class's `for_test()`."""
        typed = cast(Any, self.payload_class).for_test()
        if accepts_only_uploads(self.payload_class):
            return self._with_arguments(_payload_of_upload(typed))
        return self._with_arguments(DeclaredPayload(_json_of(typed), typed, self.workload_calculator))

    def _read(self, raw: Json) -> DeclaredPayload:
        """The payload in `raw`. Raises `JsonDataException` (422) under "payload"."""
        if self.request_parser is None:
            return self._typed(raw)
        message = _parsed(self.request_parser, raw)
        if not isinstance(message, dict) and (self.function or not _HAVE_NO_BODY.isdisjoint(self.methods)):
            where = "remote_function takes" if self.function else "a GET or DELETE sends"
            raise TypeError(
                f"request_parser returned {type(message).__name__}, but {where} the fields of a dict"
            )
        return self._typed(message)

    def _typed(self, message: Any) -> DeclaredPayload:
        """The payload in `message`, a request parser's result. Raises `JsonDataException` (422)."""
        try:
            own = self.payload_class
            typed = message if own in (None, dict) else read_typed(own, message)
        except (JsonDataException, ValueError) as e:
            raise payload_refusal(e) from e
        return self._with_arguments(DeclaredPayload(message, typed, self.workload_calculator))

    def _with_arguments(self, payload: DeclaredPayload) -> DeclaredPayload:
        """Read the arguments of `function` from `payload`. Raises `JsonDataException` (422)."""
        if self.function is not None:
            arguments, typed = self.function.arguments, payload.typed
            makes_json = hasattr(typed, "generate_payload_json")
            try:
                payload.arguments = ({} if makes_json else arguments.of_instance(typed)) or arguments.read(
                    payload.generate_payload_json()
                )
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
        return response_from(
            self.response_generator, await response if inspect.isawaitable(response) else response
        )


def payload_from(samples: Samples, handler: EndpointHandler[Any], own: Callable[[], Any]) -> Any:
    """The next of `samples`, read by a handler class as it reads a client's payload.

    `own` makes its own payload, for a sample that it refuses.
    """

    def read(sample: Json) -> Any:
        return handler.read_payload({"auth_data": dict(UNSIGNED_AUTH_DATA), "payload": sample})

    return samples.read(read, {"make_benchmark_payload() instead": lambda _: own()})


def defines_for_test(payload_class: type[Any] | None) -> bool:
    """Whether the payload class has a `for_test` of its own."""
    own = getattr(payload_class, "for_test", None)
    return own is not None and not same_function(own, ApiPayload.for_test)


def accepts_only_uploads(payload_class: type[Any] | None) -> bool:
    """Whether the class accepts uploads only: an `Upload` without a `from_json_msg` of its own."""
    reader = getattr(payload_class, "from_json_msg", None)
    return same_function(reader, Upload.from_json_msg)


def _json_of(typed: Any) -> Any:
    """The JSON of `typed`, or its form fields if it makes no JSON.

    Raises what `generate_payload_json` raises if there are none.
    """
    message = result_or_error(typed.generate_payload_json)
    if not isinstance(message, Exception):
        return message
    own = getattr(typed, "generate_payload_multipart", None)
    form: Json | None = own() if own else None
    if form is None:
        raise message
    return form


def _payload_of_upload(typed: Any) -> DeclaredPayload:
    """The payload for an upload; a function gets it as its keyword `upload`."""
    return DeclaredPayload({"upload": typed}, typed)


def _parsed(parser: RequestParser, raw: Json) -> Any:
    """Call an author's parser. Raises `JsonDataException` (422) for what is the client's fault.

    A result of None, of a parser that lacks a `return`, is a `TypeError`.
    """
    try:
        parsed: Any = parser(raw)
    except KeyError as e:
        raise JsonDataException({"payload": _key_problems(e, raw)}) from e
    except (JsonDataException, ValueError) as e:
        raise payload_refusal(e) from e
    if parsed is None:
        raise TypeError("request_parser returned None, not the payload")
    return parsed


def _key_problems(error: KeyError, raw: Json) -> Json:
    """The problem behind a parser's KeyError: a field with an unknown value, or a missing field."""
    key = error.args[0] if error.args else "?"
    with_that_value = [name for name, value in raw.items() if value == key]
    return dict.fromkeys(with_that_value, f"unknown: {key!r}") or {str(key): "missing parameter"}
