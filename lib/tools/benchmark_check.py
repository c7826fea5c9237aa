"""The checks of a worker's benchmark in `pyworker check`: its payload, its workload, and one request.

Owns these checks only. The benchmark itself is in lib/model/benchmark.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from lib.data_types import EndpointHandler, JsonDataException
from lib.declare.declared_handler import DeclaredHandler, DeclaredPayload
from lib.errors import result_or_error
from lib.metrics import DEFAULT_WORKLOAD, WorkloadCounter, counter_name
from lib.model.benchmark_request import BenchmarkRequest
from lib.model.connection import ModelServer
from lib.model.flow import send_alone
from lib.request.lanes import name_of_handler
from lib.routes.examples import client_messages, refusal
from lib.runtime.clock import Clock, time_limit
from lib.tools.findings import Findings

REQUEST_LIMIT_S = 60.0
MAX_EXCERPT = 200


def check_payload(handler: EndpointHandler[Any], found: Findings) -> bool:
    """Whether a payload for the benchmark can be made; problems with it are added to `found`."""
    payload = result_or_error(handler.make_benchmark_payload)
    if isinstance(payload, JsonDataException):
        found.problem("benchmark", f"the handler refuses its own payload: {_fields(payload)}")
    elif isinstance(payload, Exception):
        found.problem("benchmark", f"make_benchmark_payload raised {payload!r}")
    else:
        _check_round_trip(handler, payload, found)
        _check_workload(payload, found)
    return not isinstance(payload, Exception)


def _check_round_trip(handler: EndpointHandler[Any], payload: Any, found: Findings) -> None:
    """Check that the worker would accept the benchmark's payload from a client, in one of two forms.

    The forms are the fields of the payload class, and the JSON that the model server receives.
    """
    if isinstance(handler, DeclaredHandler) and handler.samples is not None:
        if handler.samples.substitution is None:
            found.ok("benchmark", "a client that sends its payload is accepted")
        else:
            found.warning("benchmark", f"a sample was {handler.samples.substitution}")
        return
    typed: Any = payload.typed if isinstance(payload, DeclaredPayload) else payload
    messages = list(client_messages(handler, payload))
    refusals = [refusal(handler, message) for message in messages]
    if None in refusals:
        found.ok("benchmark", "a client that sends its payload is accepted")
    elif handler.accepts_uploads or (_has_form(typed) and isinstance(messages[-1], Exception)):
        what = "uploads" if handler.accepts_uploads else "what its payload class makes a form of"
        found.note(
            "benchmark",
            f"clients send {what}, so it is not checked whether one with its payload would be accepted",
        )
    else:
        found.problem("benchmark", f"a client that sends its payload is refused: {refusals[0]}")


def _has_form(typed: Any) -> bool:
    """Whether a payload is sent as a form."""
    make: Callable[[], Any] = getattr(typed, "generate_payload_multipart", lambda: None)
    form = result_or_error(make)
    return form is not None and not isinstance(form, Exception)


def _check_workload(payload: Any, found: Findings) -> None:
    count = getattr(payload, "count_workload", None)
    if count is None:
        found.note(
            "workload", f"the payload has no count_workload: each request counts as {DEFAULT_WORKLOAD:g}"
        )
        return
    counted: Any = result_or_error(count)
    counter = counter_name(payload)
    if isinstance(counted, Exception):
        found.problem("workload", f"{counter} raised {counted!r}; the request counts as {DEFAULT_WORKLOAD:g}")
    elif isinstance(counted, bool) or not isinstance(counted, (int, float)) or not 0 <= counted < math.inf:
        found.problem(
            "workload",
            f"{counter} returned {counted!r}, not a finite number ≥ 0; "
            f"the request counts as {DEFAULT_WORKLOAD:g}",
        )
    elif not counted:
        found.problem("workload", "the benchmark's payload counts as 0, so the throughput would be 0")
    else:
        found.ok("workload", f"the benchmark's payload counts as {counted:g}")


async def send_one(handler: EndpointHandler[Any], server: ModelServer, clock: Clock, found: Findings) -> None:
    """Send one request as the benchmark does, and read the answer to its end."""
    request = BenchmarkRequest(handler, server, WorkloadCounter(name_of_handler(handler)).count)
    began = clock.monotonic()
    with time_limit(clock, REQUEST_LIMIT_S):
        attempted = await send_alone(request.send, clock)
        took = f"after {clock.monotonic() - began:.3f} s"
        if attempted.ok:
            found.ok("request", f"answered {attempted.message.partition(':')[0]} {took}")
        else:
            found.problem("request", f"failed {took}: {attempted.message[:MAX_EXCERPT]}")
        return
    found.problem("request", f"no answer within {REQUEST_LIMIT_S:g} s")


def _fields(error: JsonDataException) -> str:
    return json.dumps(error.message, default=str)
