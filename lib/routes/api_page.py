"""The worker's routes as a page for people, made of their OpenAPI document (openapi.py).

Owns the HTML. It has no script, and everything in it that is an author's or a client's is escaped.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from lib.fields.schemas import REFERENCE, Schema, resolved

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
th { color: var(--muted); font-weight: normal; }
.note { color: var(--muted); }
"""
_ANY_OBJECT = "The payload is a JSON object; which fields it has, the author's code knows."
_UPLOAD = "The body may be a file of any media type. The request then needs the header X-Vast-Auth."
_WORDS: Mapping[str, str] = {
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "true or false",
    "object": "object",
    "array": "list",
    "null": "null",
}


def page_of(document: Mapping[str, Any], engine_url: str | None) -> str:
    """The page of an OpenAPI document; `engine_url` is that of a local engine to which the worker reports."""
    parts = ["<h1>Routes of this worker</h1>", _introduction(document, engine_url)]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append("\n".join(_route(document, method.upper(), path, operation)))
    if not document["paths"]:
        parts.append("<p>No route has a handler: add one to the worker's routes.</p>")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n<title>Routes of this worker</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _introduction(document: Mapping[str, Any], engine_url: str | None) -> str:
    url = escape(document["servers"][0]["url"])
    text = f"Clients call them at <code>{url}</code>. "
    if "Envelope" in document["components"]["schemas"]:
        envelope = escape('{"auth_data": {…}, "payload": {…}}')
        text += (
            f"A JSON body is <code>{envelope}</code>: <code>auth_data</code> is the engine's answer to a "
            "request for a route, unchanged. What follows describes <code>payload</code>. "
        )
    text += 'As <a href="/openapi.json">OpenAPI document</a>.'
    if engine_url is not None:
        page = escape(engine_url, quote=True)
        text += f' The <a href="{page}">local engine</a> signs requests and shows what became of them.'
    return f"<p>{text}</p>"


def _route(
    document: Mapping[str, Any], method: str, path: str, operation: Mapping[str, Any]
) -> Iterator[str]:
    yield f"<h2><code>{escape(method)} {escape(path)}</code></h2>"
    if operation["summary"] != path:
        yield f"<p>{escape(operation['summary'])}</p>"
    content: Mapping[str, Any] = operation.get("requestBody", {}).get("content", {})
    rows = [_row(p["name"], p["schema"], p["required"], p["in"]) for p in operation["parameters"]]
    example: Any = None
    if "application/json" in content:
        schema, example = _payload(content["application/json"]["schema"])
        whole = resolved(schema, document["components"]["schemas"])
        required = whole.get("required", ())
        fields: Mapping[str, Any] = whole.get("properties", {})
        rows += [_row(name, each, name in required, "payload") for name, each in fields.items()]
        if not fields and not rows:
            yield f'<p class="note">{_ANY_OBJECT}</p>'
    if rows:
        yield "<table><tr><th>field<th>type<th>where<th></tr>"
        yield from rows
        yield "</table>"
    if "*/*" in content:
        yield f'<p class="note">{_UPLOAD}</p>'
    if example is not None:
        payload = json.dumps(example, ensure_ascii=False)
        command = shlex.join(["pyworker", "request", path, payload, "-l"])
        yield f"<pre>{escape(command)}</pre>"


def _row(name: str, schema: Mapping[str, Any], required: bool, place: str) -> str:
    cells = (f"<code>{escape(name)}</code>", escape(type_in_words(schema)), escape(place))
    return "<tr>" + "".join(f"<td>{cell}" for cell in (*cells, "required" if required else "")) + "</tr>"


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
    if schema.get("items") and schema.get("type") == "array":
        return f"list, each {type_in_words(schema['items'])}"
    kind = schema.get("type")
    return _WORDS.get(kind, kind) if isinstance(kind, str) else "any value"
