"""Payloads that the worker's own handlers accept, made of its benchmark's; for suggested commands.

Owns which of them a handler accepts, as `pyworker check` asks too, and the route `/examples` of the loopback
port (docs/protocol.md, "Management routes").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

from aiohttp import web
from anyio.to_thread import run_sync as in_thread

from lib.backend import Backend
from lib.data_types import UNSIGNED_AUTH_DATA, EndpointHandler, JsonDataException
from lib.declare.bare_route import BareRouteHandler
from lib.declare.declared_handler import DeclaredHandler, DeclaredPayload
from lib.errors import result_or_error
from lib.fields.client_json import client_json
from lib.request.lanes import lane_of

# A longer example, in characters of JSON, is left out: nobody could read the command.
MAX_EXAMPLE = 2000


def examples_route(backend: Backend, routes: Sequence[web.AbstractRouteDef]) -> web.RouteDef:
    """The route that answers an example for each of the author's `routes`."""
    return web.get("/examples", partial(_examples, backend, routes))


async def _examples(
    backend: Backend, routes: Sequence[web.AbstractRouteDef], request: web.Request
) -> web.Response:
    # In a thread, as it calls author code that may take long.
    return web.json_response(await in_thread(_all_examples, backend, routes))


def _all_examples(backend: Backend, routes: Sequence[web.AbstractRouteDef]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for route, handler in handled_routes(backend, routes):
        # A guarded function is left out: its handler accepts anything, whatever the function needs.
        if not isinstance(handler, BareRouteHandler):
            named = {"method": route.method, "path": route.path, "accepts_uploads": handler.accepts_uploads}
            found.append({**named, "payload": example_for(backend, handler)})
    return found


def handled_routes(
    backend: Backend, routes: Sequence[web.AbstractRouteDef]
) -> Iterator[tuple[web.RouteDef, EndpointHandler[Any]]]:
    """Those of `routes` that a handler of `backend` serves, each with its handler."""
    for route in routes:
        lane = lane_of(backend.served, route)
        if isinstance(route, web.RouteDef) and lane is not None:
            yield route, cast("EndpointHandler[Any]", lane.handler)


def example_for(backend: Backend, handler: EndpointHandler[Any]) -> Any:
    """A payload that a client may send to `handler`, of its own or of the benchmark; or None."""
    for source in (handler, backend.benchmark_handler):
        payload = None if source is None else result_or_error(source.make_benchmark_payload)
        if source is None or isinstance(payload, Exception):
            continue
        for message in client_messages(source, payload):
            if refusal(handler, message) is None and len(json.dumps(message)) <= MAX_EXAMPLE:
                return message
    return None


def client_messages(handler: EndpointHandler[Any], payload: Any) -> Iterator[Any]:
    """The forms in which a client might send the benchmark's `payload`, with an exception for one that fails.

    They are a declared sample, if there are any, the fields of the payload class, and the JSON that the model
    server receives.
    """
    if isinstance(handler, DeclaredHandler) and handler.samples is not None:
        yield result_or_error(partial(_as_json, handler.samples.next))
    typed: Any = payload.typed if isinstance(payload, DeclaredPayload) else payload
    for form in (partial(client_json, typed), partial(handler.generate_payload_json, payload)):
        yield result_or_error(partial(_as_json, form))


def _as_json(form: Callable[[], Any]) -> Any:
    return json.loads(json.dumps(form()))


def refusal(handler: EndpointHandler[Any], message: Any) -> str | None:
    """The reason why `handler` does not accept `message`, JSON or an exception, from a client; or None."""
    if isinstance(message, Exception):
        return f"it is not JSON: {message}"
    envelope = {"auth_data": dict(UNSIGNED_AUTH_DATA), "payload": message}
    read = result_or_error(lambda: handler.read_payload(envelope))
    if isinstance(read, JsonDataException):
        return json.dumps(read.message, default=str)
    return repr(read) if isinstance(read, Exception) else None
