"""A description of the worker's routes as an OpenAPI document (OpenAPI Specification 3.1.0).

Owns the document, and its routes on the loopback port: `/openapi.json`, and `/docs`, whose page is made in
api_page.py (docs/protocol.md, "Management routes"). What a payload may be is said by the readers of its types
(lib/fields/readers.py).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

from aiohttp import web
from anyio.to_thread import run_sync as in_thread

from lib.backend import Backend
from lib.data_types import ApiPayload, EndpointHandler
from lib.declare.bare_route import BareRouteHandler
from lib.declare.declared_handler import DeclaredHandler, accepts_only_uploads
from lib.fields.callables import same_function
from lib.fields.json_fields import reader_of
from lib.fields.schemas import REFERENCE, Definitions, Schema, resolved
from lib.routes.api_page import HEADERS, KEPT_ALIVE, html_response, page_of
from lib.routes.examples import example_for, handled_routes
from lib.runtime.hosts import is_loopback_url
from lib.runtime.own_version import own_version

_OBJECT: Schema = {"type": "object"}
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_AUTH_DATA: Schema = {
    "type": "object",
    "description": "The engine's whole answer to a request for a route, unchanged.",
    "properties": {
        "url": {"type": "string"},
        "reqnum": {"type": "integer"},
        "signature": {"type": "string"},
        "endpoint": {"type": "string"},
        "cost": {"type": ["number", "string"]},
        "request_idx": {"type": ["integer", "null"]},
    },
    "required": ["url", "reqnum", "signature", "endpoint", "cost"],
}
_ENVELOPE: Schema = {
    "type": "object",
    "description": "What each signed request with a JSON body is in.",
    "properties": {
        "auth_data": {"$ref": f"{REFERENCE}AuthData"},
        "session_id": {"type": "string", "description": "The session that the request belongs to."},
    },
    "required": ["auth_data"],
}
_HEADER_AUTHENTICATION: Schema = {
    "type": "apiKey",
    "in": "header",
    "name": "X-Vast-Auth",
    "description": "auth_data as JSON in Base64, for requests without an envelope.",
}
_REFUSALS: Mapping[str, str] = {
    "401": "The signature is wrong, was used before, or is for another worker.",
    "422": "The request is wrong: the answer names every wrong field.",
    "429": "It would wait too long: try again after Retry-After.",
    "503": "The worker isn't ready: try again after Retry-After.",
}


def openapi_routes(backend: Backend, routes: Sequence[web.AbstractRouteDef]) -> list[web.RouteDef]:
    """The routes that answer a description of the author's `routes`: as a document and as a page."""
    return [
        web.get("/openapi.json", partial(_openapi, backend, routes)),
        web.get("/docs", partial(_page, backend, routes)),
    ]


async def _openapi(
    backend: Backend, routes: Sequence[web.AbstractRouteDef], request: web.Request
) -> web.Response:
    return web.json_response(await _description(backend, routes))


async def _page(
    backend: Backend, routes: Sequence[web.AbstractRouteDef], request: web.Request
) -> web.Response:
    local = next(filter(is_loopback_url, backend.running.settings.report_addrs), None)
    page = page_of(await _description(backend, routes), local)
    return html_response(page, HEADERS)


async def _description(backend: Backend, routes: Sequence[web.AbstractRouteDef]) -> dict[str, Any]:
    settings = backend.running.settings
    describe = partial(description_of, backend, routes, settings.public_url, settings.engine != "none")
    return await in_thread(describe)  # it calls author code that may take long


def description_of(
    backend: Backend, routes: Sequence[web.AbstractRouteDef], url: str, is_signed: bool
) -> dict[str, Any]:
    """The OpenAPI document of `routes`, which clients call at `url`; `is_signed`: in envelopes.

    A route that no handler of `backend` serves is left out: it takes no payload.
    """
    definitions = Definitions()
    if is_signed:
        definitions.adopt({"AuthData": _AUTH_DATA, "Envelope": _ENVELOPE})
    paths: dict[str, dict[str, Any]] = {}
    for route, handler in handled_routes(backend, routes):
        path = web.UrlDispatcher().add_resource(route.path).canonical
        operation = _operation(backend, handler, route, path, definitions, is_signed)
        paths.setdefault(path, {})[route.method.lower()] = operation
    components: dict[str, Any] = {"schemas": definitions.schemas}
    components["responses"] = {status: {"description": text} for status, text in _REFUSALS.items()}
    if is_signed:
        components["securitySchemes"] = {"header": _HEADER_AUTHENTICATION}
    return {
        "openapi": "3.1.0",
        "info": {"title": "PyWorker", "version": own_version()},
        "servers": [{"url": url}],
        "paths": paths,
        "components": components,
    }


def _operation(
    backend: Backend,
    handler: EndpointHandler[Any],
    route: web.RouteDef,
    path: str,
    definitions: Definitions,
    is_signed: bool,
) -> dict[str, Any]:
    definitions.refuses_unknown = handler.extra == "forbid"
    schema = _payload_schema(handler, definitions)
    in_path: list[str] = re.findall(r"\{(\w+)\}", path)
    fields = resolved(schema, definitions.schemas).get("properties", {})
    example = None if isinstance(handler, BareRouteHandler) else example_for(backend, handler)
    values = cast("Mapping[str, Any]", example if isinstance(example, dict) else {})
    if fields and not set(values).intersection(fields):
        example = None  # that of another handler, of whose fields this one knows none
    operation: dict[str, Any] = {
        "summary": _summary(handler) or path,
        "parameters": [_parameter(name, "path", True, {"type": "string"}, values) for name in in_path],
        "responses": {
            "200": {"description": KEPT_ALIVE if handler.keepalive_s else "The answer."},
            **{status: {"$ref": f"#/components/responses/{status}"} for status in _REFUSALS},
        },
    }
    if route.method in _WITH_BODY:
        operation["requestBody"] = {
            "required": True,
            "content": _content(handler, _without(schema, in_path), example, is_signed),
        }
        # An envelope authenticates itself; an upload needs the header.
        if is_signed:
            operation["security"] = [{}, {"header": []}] if handler.accepts_uploads else []
        return operation
    operation["parameters"] += _query(resolved(schema, definitions.schemas), in_path, values)
    if is_signed:
        operation["security"] = [{"header": []}]
    return operation


def _content(
    handler: EndpointHandler[Any], schema: Schema, example: Any, is_signed: bool
) -> dict[str, dict[str, Any]]:
    """The bodies that a route takes, by their media types."""
    content: dict[str, dict[str, Any]] = {}
    if not (isinstance(handler, DeclaredHandler) and accepts_only_uploads(handler.payload_class)):
        body = _in_envelope(schema, example) if is_signed else {**schema, **_example(example)}
        content["application/json"] = {"schema": body}
    if handler.accepts_uploads:
        content["*/*"] = {"schema": {}}
    return content


def _in_envelope(schema: Schema, example: Any) -> Schema:
    payload: Schema = {"properties": {"payload": {**schema, **_example(example)}}, "required": ["payload"]}
    return {"allOf": [{"$ref": f"{REFERENCE}Envelope"}, payload]}


def _example(example: Any) -> dict[str, Any]:
    return {} if example is None else {"examples": [example]}


def _payload_schema(handler: EndpointHandler[Any], definitions: Definitions) -> Schema:
    """The schema of the payload; that of any object where only the author's code knows."""
    cls: Any = handler.payload_cls()
    if isinstance(handler, DeclaredHandler):
        cls = handler.payload_class
        if handler.request_parser is not None:
            return _OBJECT
        if cls is None and handler.function is not None:
            return handler.function.arguments.schema(definitions)
    if cls is None or isinstance(handler, BareRouteHandler) or _reads_itself(cls):
        return _OBJECT
    return reader_of(cls).schema(definitions) or _OBJECT


def _reads_itself(cls: Any) -> bool:
    """Whether `cls` has code of its own that reads payloads, whose fields may have other names then."""
    own = getattr(cls, "from_json_msg", None)
    return own is not None and not same_function(own, ApiPayload.from_json_msg)


def _summary(handler: EndpointHandler[Any]) -> str:
    """The first line of the author's text about the route; "" without one."""
    source: Any = type(handler)
    if isinstance(handler, BareRouteHandler):
        source = handler.function
    elif isinstance(handler, DeclaredHandler):
        source = handler.function.documented if handler.function is not None else handler.payload_class
    own = getattr(source, "__doc__", None) if source is not None else None
    text = inspect.cleandoc(own).partition("\n")[0] if own else ""
    is_generated = text.startswith(f"{getattr(source, '__name__', '')}(")  # as `dataclass` writes it
    return "" if is_generated else text


def _without(schema: Schema, names: Sequence[str]) -> Schema:
    """`schema` without the fields `names`, which are in the path; one that is a reference stays whole."""
    if "properties" not in schema or not names:
        return schema
    left = {name: each for name, each in schema["properties"].items() if name not in names}
    required = [name for name in schema.get("required", ()) if name in left]
    return {**schema, "properties": left, "required": required}


def _query(schema: Schema, in_path: Sequence[str], values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parameters of a request without a body: the fields of its payload."""
    required: Sequence[str] = schema.get("required", ())
    return [
        _parameter(name, "query", name in required, each, values)
        for name, each in schema.get("properties", {}).items()
        if name not in in_path
    ]


def _parameter(
    name: str, place: str, required: bool, schema: Schema, values: Mapping[str, Any]
) -> dict[str, Any]:
    """A parameter, with its example if `values` have one."""
    example = {"example": values[name]} if name in values else {}
    return {"name": name, "in": place, "required": required, "schema": schema, **example}
