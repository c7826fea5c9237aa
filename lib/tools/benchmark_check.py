"""Whether a worker's benchmark would do: its payload, how much work that is, and one request."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lib.data_types import UNSIGNED_AUTH_DATA, EndpointHandler, JsonDataException
from lib.declare.declared_handler import DeclaredHandler, DeclaredPayload
from lib.errors import result_or_error
from lib.metrics import DEFAULT_WORKLOAD
from lib.model.benchmark_keeper import BenchmarkKeeper
from lib.model.connection import ModelServer
from lib.model.readiness import Readiness
from lib.request.lanes import WorkloadCounter
from lib.runtime.clock import Clock, time_limit
from lib.tools.findings import Findings
from lib.tools.load_test import client_json

REQUEST_LIMIT_S = 60.0
MAX_EXCERPT = 200


def check_payload(handler: EndpointHandler[Any], found: Findings) -> bool:
    """Whether a payload for the benchmark can be made; what is wrong with it goes to `found`."""
    payload = result_or_error(handler.make_benchmark_payload)
    if isinstance(payload, JsonDataException):
        found.problem("benchmark", f"its own payload is refused: {_fields(payload)}")
    elif isinstance(payload, Exception):
        found.problem("benchmark", f"make_benchmark_payload raised {payload!r}")
    else:
        _check_round_trip(handler, payload, found)
        _check_workload(payload, found)
    return not isinstance(payload, Exception)


def _check_round_trip(handler: EndpointHandler[Any], payload: Any, found: Findings) -> None:
    """Would a client that sends what the benchmark sends be let in? In one of two forms, it should be."""
    if isinstance(handler, DeclaredHandler) and handler.samples is not None:
        found.ok("benchmark", "its payload is let in, as a client's would be")
        return
    typed: Any = payload.typed if isinstance(payload, DeclaredPayload) else payload
    forms = (partial(client_json, typed), partial(handler.generate_payload_json, payload))
    refusals = [_refusal(handler, form) for form in forms]
    if None in refusals:
        found.ok("benchmark", "a client that sends its payload is let in")
    elif handler.accepts_uploads:
        found.note("benchmark", "clients send uploads: whether its payload would be let in is not looked at")
    else:
        found.problem("benchmark", f"a client that sends its payload is refused: {refusals[0]}")


def _refusal(handler: EndpointHandler[Any], form: Callable[[], Any]) -> str | None:
    """Why the payload in this form is not read, or None."""
    message = result_or_error(lambda: json.loads(json.dumps(form())))
    if isinstance(message, Exception):
        return f"it is not JSON: {message}"
    envelope = {"auth_data": dict(UNSIGNED_AUTH_DATA), "payload": message}
    read = result_or_error(lambda: handler.read_payload(envelope))
    if isinstance(read, JsonDataException):
        return _fields(read)
    return repr(read) if isinstance(read, Exception) else None


def _check_workload(payload: Any, found: Findings) -> None:
    count = getattr(payload, "count_workload", None)
    if count is None:
        found.note("workload", f"the payload has no count_workload: each request counts {DEFAULT_WORKLOAD:g}")
        return
    counted: Any = result_or_error(count)
    if isinstance(counted, Exception):
        found.problem("workload", f"count_workload raised {counted!r}: {DEFAULT_WORKLOAD:g} is counted")
    elif isinstance(counted, bool) or not isinstance(counted, (int, float)) or not 0 <= counted < math.inf:
        found.problem(
            "workload",
            f"count_workload gave {counted!r}, no finite number ≥ 0: {DEFAULT_WORKLOAD:g} is counted",
        )
    elif not counted:
        found.problem("workload", "the benchmark's payload counts 0: its throughput would be 0")
    else:
        found.ok("workload", f"the benchmark's payload counts {counted:g}")


async def send_one(handler: EndpointHandler[Any], server: ModelServer, clock: Clock, found: Findings) -> None:
    """One request as the benchmark sends it, to its last byte."""
    name = type(handler).__name__
    rating = BenchmarkKeeper(
        handler,
        server,
        Readiness((), False, clock),
        WorkloadCounter(name).count,
        max_concurrency=1,
        model_name="",
        directory=Path(),
        time_limit_s=REQUEST_LIMIT_S,
        clock=clock,
    )
    began = clock.monotonic()
    with time_limit(clock, REQUEST_LIMIT_S):
        attempted = await rating.attempt()
        took = f"after {clock.monotonic() - began:.3f} s"
        if attempted.ok:
            found.ok("request", f"answered {attempted.message.partition(':')[0]} {took}")
        else:
            found.problem("request", f"failed {took}: {attempted.message[:MAX_EXCERPT]}")
        return
    found.problem("request", f"no answer within {REQUEST_LIMIT_S:g} s")


def _fields(error: JsonDataException) -> str:
    return json.dumps(error.message, default=str)
