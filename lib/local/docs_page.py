"""The engine's page of an endpoint's API, on which each route can be tried.

Owns what the page has beyond the routes themselves, which lib/routes/api_page.py makes: the choice of the
endpoint, the forms, and what to do where no worker has described its routes. What the forms do is in
page/docs.js. Everything that is a worker's or a client's is escaped.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote

from lib.local.descriptions import Description
from lib.local.page_headers import page_headers
from lib.routes.api_page import (
    ENVELOPE,
    NO_ROUTES,
    DescribedField,
    DescribedRoute,
    described,
    has_envelope,
)

# Answers that are media are shown from memory.
DOCS_HEADERS = page_headers("img-src data: blob:; media-src blob:")
# Seconds until a page without routes looks for a worker again.
RELOAD_S = 5
MIN_ROWS, MAX_ROWS = 3, 16


@dataclass(frozen=True)
class DocsPage:
    """The page of the endpoint `name`, one of the engine's endpoints `names`.

    `engine_url` is the engine's URL as the browser knows it. With `needs_key`, the person must give the API
    key.
    """

    name: str
    names: Sequence[str]
    engine_url: str
    needs_key: bool

    def of(self, description: Description) -> str:
        """The page with the routes of `description`."""
        parts = [self._introduction(description), *_envelope(description.document)]
        if self.needs_key:
            parts.append(_API_KEY)
        if len(description.routes) > 1:
            parts.append(_index(description.routes))
        for number, route in enumerate(description.routes):
            parts += [f'<section class="route" id="route-{number}">', *described(route)]
            parts += [*_form(route), *self._command(route), "</section>"]
        if not description.routes:
            parts.append(f'<p class="empty">{NO_ROUTES}</p>')
        document = f' <a href="{_path_of(self.name)}/openapi.json">OpenAPI document</a>'
        return self._whole(parts, document=document)

    def without(self, reason: str) -> str:
        """The page without routes: the `reason`, and what to do. It looks again by itself."""
        path = "" if self.names[:1] == [self.name] else f"/e/{quote(self.name, safe='')}"
        report_addr = escape(f"REPORT_ADDR={self.engine_url}{path}")
        text = (
            f'<div class="empty" id="undescribed"><p>{escape(reason)}</p>'
            "<p>To run a worker, with an engine and a page of its own: "
            "<code>pyworker run WORKER --local</code></p>"
            f"<p>A worker that is configured already joins this endpoint with <code>{report_addr}</code></p>"
            f"<p>This page looks again every {RELOAD_S} s.</p></div>"
        )
        return self._whole([text], more_head=f'<meta http-equiv="refresh" content="{RELOAD_S}">\n')

    def _whole(self, parts: Sequence[str], *, more_head: str = "", document: str = "") -> str:
        names = self.names if self.name in self.names else [self.name, *self.names]
        options = "".join(
            f"<option{' selected' if name == self.name else ''}>{escape(name)}</option>" for name in names
        )
        hidden = "" if len(names) > 1 else " hidden"
        return (
            f'<!doctype html>\n<html lang="en">\n<head>\n{_HEAD}{more_head}</head>\n'
            f'<body data-endpoint="{escape(self.name, quote=True)}">\n<header>\n'
            f"<h1>API of the endpoint {escape(self.name)}</h1>\n"
            f'<p class="links"><a href="/">Workers and requests</a>{document}</p>\n'
            f'<label id="endpoint-choice"{hidden}>Endpoint <select id="endpoint">{options}</select></label>\n'
            "</header>\n<main>\n" + "\n".join(parts) + "\n</main>\n</body>\n</html>\n"
        )

    def _introduction(self, description: Description) -> str:
        url = escape(description.worker_url)
        return (
            f'<p class="hint">As worker {description.worker_id}, which clients call at <code>{url}</code>, '
            "describes it. A request that is sent from here is signed by this engine, and goes to the "
            "worker of the endpoint that the engine chooses.</p>"
        )

    def _command(self, route: DescribedRoute) -> Iterator[str]:
        if route.example is not None:
            target = ["--engine", self.engine_url, "-e", self.name, "-k", "KEY" if self.needs_key else "any"]
            method = [] if route.method == "POST" else ["--method", route.method]
            payload = json.dumps(route.example, ensure_ascii=False)
            command = shlex.join(["pyworker", "request", *target, *method, route.path, payload])
            yield f"<details><summary>The same in a terminal</summary><pre>{escape(command)}</pre></details>"


_HEAD = """<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>API - local engine</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/page/page.css">
<link rel="stylesheet" href="/page/docs.css">
<script src="/page/common.js" defer></script>
<script src="/page/docs.js" defer></script>
"""
_API_KEY = """<p><label>API key <input id="api-key" type="password" autocomplete="off"></label>
<span class="hint">the one of <code>pyworker engine --api-key</code></span></p>"""
_ENVELOPE_NOTES = """<p class="hint">A GET or DELETE, and a request with a file, has <code>auth_data</code> in
the header <code>X-Vast-Auth</code> instead, as JSON in base64url.</p>
<p class="hint" id="envelope-note">Send a request to see its envelope here.</p>
<pre id="envelope-sent" hidden></pre>"""
_FILES = """<fieldset class="files">
<legend>Files</legend>
<div class="file">
<label>Field of the form <input class="file-field" value="file"></label>
<label>File <input class="file-content" type="file"{required}></label>
</div>
<button type="button" class="more-files">Another file</button>
<p class="hint">With a file, the request is a form, of which the payload's fields are fields too. If the
file's own field has no name, the file is the whole body.</p>
</fieldset>"""
_ACTIONS = """<p class="actions">
<button type="submit">Send</button>
<button type="button" class="stop" hidden>Stop</button>
<label>Cost <input class="cost" type="number" min="0" step="any" value="1" required></label>
<span class="hint">the workload that the engine counts for it until the worker reports</span>
</p>
</form>
<div class="answer" role="status" hidden></div>"""


def _index(routes: Sequence[DescribedRoute]) -> str:
    links = (
        f'<a href="#route-{number}"><code>{escape(route.method)} {escape(route.path)}</code></a>'
        for number, route in enumerate(routes)
    )
    return f'<nav class="links" aria-label="Routes">{" ".join(links)}</nav>'


def _path_of(endpoint: str) -> str:
    return f"/e/{quote(endpoint, safe='')}"


def _envelope(document: Mapping[str, Any]) -> Iterator[str]:
    if has_envelope(document):
        yield '<section id="envelope"><h2>The signed envelope</h2>'
        yield f"<p>{ENVELOPE}</p>{_ENVELOPE_NOTES}</section>"


def _form(route: DescribedRoute) -> Iterator[str]:
    """The form by which `route` is tried, and the place for its answer."""
    method, path = escape(route.method, quote=True), escape(route.path, quote=True)
    yield f'<form class="try" data-method="{method}" data-path="{path}">'
    yield from (_parameter(field) for field in route.fields if field.where != "payload")
    if route.takes_json or route.takes_uploads:
        text = json.dumps(_payload(route), ensure_ascii=False, indent=2)
        rows = min(MAX_ROWS, max(MIN_ROWS, text.count("\n") + 1))
        name = "Payload" if route.takes_json else "Further fields of the form"
        yield (
            f'<label class="payload">{name}, as JSON '
            f'<textarea spellcheck="false" rows="{rows}">{escape(text)}</textarea></label>'
        )
    if route.takes_uploads:
        yield _FILES.format(required="" if route.takes_json else " required")
    yield _ACTIONS


def _parameter(field: DescribedField) -> str:
    """The input of one parameter; one that isn't text may be given as JSON."""
    name, where, words = (escape(text, quote=True) for text in (field.name, field.where, field.words))
    initial = field.initial
    text = initial if isinstance(initial, str) else "" if initial is None else json.dumps(initial)
    value, required = escape(text, quote=True), " required" if field.is_required else ""
    return (
        f'<label class="parameter"><code>{name}</code> <input data-in="{where}" data-name="{name}" '
        f'value="{value}" placeholder="{words}"{required}></label>'
    )


def _payload(route: DescribedRoute) -> Any:
    """The example, or an object with the fields that are required or have a default."""
    if route.example is not None:
        return route.example
    fields = (each for each in route.fields if each.where == "payload")
    return {each.name: each.initial for each in fields if each.is_required or each.initial is not None}
