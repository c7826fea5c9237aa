"""The worker's routes as a page for people, made of their OpenAPI document (openapi.py).

Owns what is read from a document, and the HTML of it, of which the local engine makes its page too. It has no
script, and everything in it that is an author's or a client's is escaped.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from aiohttp import web

from lib.fields.schemas import REFERENCE, Schema, resolved
from lib.fields.value_limits import Limits

# A page without scripts, that loads nothing.
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'",
}
_STYLE = """
:root { color-scheme: light dark; --line: #9aa3b2; --muted: light-dark(#5a6270, #a2aab8); }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 52rem; padding: 1rem 1.25rem 3rem; }
h2 { border-top: 1px solid var(--line); font-size: 1.1rem; margin: 2rem 0 0.25rem; padding-top: 1rem; }
code, pre { font: 13px/1.5 ui-monospace, monospace; }
pre { border: 1px solid var(--line); border-radius: 4px; overflow-x: auto; padding: 0.6rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid var(--line); padding: 0.25rem 1.25rem 0.25rem 0; text-align: left; }
th { font-weight: normal; }
thead th { color: var(--muted); }
.hint { color: var(--muted); }
"""
NO_ROUTES = "No route has a handler: add one to the worker's routes."
ENVELOPE = (
    "A JSON body is <code>{&quot;auth_data&quot;: {…}, &quot;payload&quot;: {…}}</code>: "
    "<code>auth_data</code> is the engine's answer to a request for a route, unchanged. What follows "
    "describes <code>payload</code>."
)
_INITIAL: Mapping[str, Any] = {"string": "", "integer": 0, "number": 0, "boolean": False, "array": []}
_COLUMNS = ("field", "type", "where", "")
_ANY_OBJECT = "The payload is a JSON object; which fields it has, the author's code knows."
_UPLOAD = "The body may be a file of any media type. The request then needs the header X-Vast-Auth."
# The description of the answer of a route with `keepalive_s`.
KEPT_ALIVE = (
    "The answer, after newlines while the work lasts. The status is sent with the first of them, so a "
    'failure after it is {"error": …} in the body of a 200.'
)
# Of a default, in characters of JSON; a longer one is left out of the words about a field.
_MAX_DEFAULT = 60
_WORDS: Mapping[str, str] = {
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "true or false",
    "object": "object",
    "array": "list",
    "null": "null",
}


# What a length of theirs counts: characters, fields; of any other type, items.
_KINDS: Mapping[str, type[Any]] = {"string": str, "object": dict}


@dataclass(frozen=True)
class DescribedField:
    """A field of a route's payload, or a parameter of its path or query; `where` says which.

    `words` say what it accepts, and its default. `initial` is an example; without one a value of its type if
    it is required, and otherwise None.
    """

    name: str
    where: str
    words: str
    is_required: bool
    initial: Any


@dataclass(frozen=True)
class DescribedRoute:
    """A route as an OpenAPI document describes it.

    Its body may be JSON (`takes_json`), or of any media type (`takes_uploads`). `example` is a payload; None
    without one. `is_kept_alive`: newlines are sent before the answer, whose status says nothing then.
    """

    method: str
    path: str
    summary: str
    takes_json: bool
    takes_uploads: bool
    fields: Sequence[DescribedField]
    example: Any
    is_kept_alive: bool = False


def routes_in(document: Mapping[str, Any]) -> Iterator[DescribedRoute]:
    """The routes of an OpenAPI document as openapi.py makes it.

    Another may raise `LookupError`, `TypeError`, `ValueError`, `AttributeError` or `RecursionError`.
    """
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {})
            schema, example = _payload(content.get("application/json", {}).get("schema", {}))
            whole = resolved(schema, document["components"]["schemas"])
            required = whole.get("required", ())
            parameters = operation["parameters"]
            fields = [_field(p["name"], p["in"], p["schema"], p["required"], p) for p in parameters]
            for name, each in whole.get("properties", {}).items():
                fields.append(_field(name, "payload", each, name in required, {}))
            yield DescribedRoute(
                method=method.upper(),
                path=path,
                summary=str(operation["summary"]),
                takes_json="application/json" in content,
                takes_uploads="*/*" in content,
                fields=fields,
                example=example,
                is_kept_alive=operation.get("responses", {}).get("200") == {"description": KEPT_ALIVE},
            )


def _field(name: str, where: str, schema: Schema, required: bool, more: Mapping[str, Any]) -> DescribedField:
    """A field; `more` may have its example."""
    initial = more.get("example", _initial(schema) if required else None)
    words = type_in_words(schema) + _default_in_words(schema)
    return DescribedField(str(name), str(where), words, bool(required), initial)


def _default_in_words(schema: Schema) -> str:
    """The default in a schema; "" for null, which says nothing, and for a long one."""
    text = json.dumps(schema.get("default"), ensure_ascii=False)
    return "" if text == "null" or len(text) > _MAX_DEFAULT else f", by default {text}"


def _initial(schema: Schema) -> Any:
    """The default of a schema, or a value that it accepts."""
    if "default" in schema:
        return schema["default"]
    if schema.get("enum"):
        return schema["enum"][0]
    if schema.get("anyOf"):
        return _initial(schema["anyOf"][0])
    return _INITIAL.get(str(schema.get("type")), {})


def page_of(document: Mapping[str, Any], engine_url: str | None) -> str:
    """The page of an OpenAPI document; `engine_url` is that of a local engine to which the worker reports."""
    parts = ["<h1>Routes of this worker</h1>", _introduction(document, engine_url)]
    parts += ["\n".join((*described(route), *_command(route))) for route in routes_in(document)]
    if not document["paths"]:
        parts.append(f"<p>{NO_ROUTES}</p>")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n<title>Routes of this worker</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def html_response(page: str, headers: Mapping[str, str]) -> web.Response:
    """The answer that has `page`; what UTF-8 can't encode in it, lone surrogates, becomes "?"."""
    body = page.encode(errors="replace")
    return web.Response(body=body, content_type="text/html", charset="utf-8", headers=headers)


def _introduction(document: Mapping[str, Any], engine_url: str | None) -> str:
    url = escape(document["servers"][0]["url"])
    text = f"Clients call them at <code>{url}</code>. "
    if has_envelope(document):
        text += f"{ENVELOPE} "
    text += 'As <a href="/openapi.json">OpenAPI document</a>.'
    if engine_url is not None:
        page = escape(f"{engine_url}/docs", quote=True)
        text += f' To try them, open <a href="{page}">the page of the local engine</a>, which signs requests.'
    return f"<p>{text}</p>"


def has_envelope(document: Mapping[str, Any]) -> bool:
    """Whether the requests with a JSON body are signed, in an envelope."""
    return "Envelope" in document["components"]["schemas"]


def described(route: DescribedRoute) -> Iterator[str]:
    """The heading of a route, its summary, and the table of its fields, as lines of HTML."""
    yield f"<h2><code>{escape(route.method)} {escape(route.path)}</code></h2>"
    if route.summary != route.path:
        yield f"<p>{escape(route.summary)}</p>"
    rows = [_row(field) for field in route.fields]
    if rows:
        heads = "".join(f'<th scope="col">{text}' for text in _COLUMNS)
        yield f'<table class="data"><thead><tr>{heads}</thead><tbody>'
        yield from rows
        yield "</tbody></table>"
    elif route.takes_json:
        yield f'<p class="hint">{_ANY_OBJECT}</p>'
    if route.takes_uploads:
        yield f'<p class="hint">{_UPLOAD}</p>'
    if route.is_kept_alive:
        yield f'<p class="hint">{escape(KEPT_ALIVE)}</p>'


def _command(route: DescribedRoute) -> Iterator[str]:
    if route.example is not None:
        payload = json.dumps(route.example, ensure_ascii=False)
        command = shlex.join(["pyworker", "request", route.path, payload, "-l"])
        yield f"<pre>{escape(command)}</pre>"


def _row(field: DescribedField) -> str:
    cells = (escape(field.words), escape(field.where), "required" if field.is_required else "")
    columns = zip(_COLUMNS[1:], cells, strict=True)
    return f'<tr><th scope="row"><code>{escape(field.name)}</code>' + "".join(
        f'<td data-label="{label}">{cell}' for label, cell in columns
    )


def _payload(schema: Schema) -> tuple[Schema, Any]:
    """The schema of the payload in that of a body, and its example or None."""
    if "allOf" in schema:
        schema = schema["allOf"][1]["properties"]["payload"]
    return schema, next(iter(schema.get("examples", ())), None)


def type_in_words(schema: Mapping[str, Any]) -> str:
    """Say in words what a schema accepts."""
    if "$ref" in schema:
        return schema["$ref"].removeprefix(REFERENCE)
    if "enum" in schema:
        return "one of " + ", ".join(json.dumps(each, ensure_ascii=False) for each in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(type_in_words(each) for each in schema["anyOf"]))
    kind = schema.get("type")
    if not isinstance(kind, str):
        return "any value"
    if schema.get("prefixItems"):
        items = schema["prefixItems"]
        return f"list of {len(items)}: " + ", ".join(type_in_words(each) for each in items)
    limits = Limits.in_schema(schema).after(_KINDS.get(kind, list))
    words = f"{_WORDS.get(kind, kind)} {limits}".rstrip()
    return (
        f"{words}, each {type_in_words(schema['items'])}"
        if schema.get("items") and kind == "array"
        else words
    )
