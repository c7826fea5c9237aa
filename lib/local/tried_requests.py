"""Requests that a person sends from the engine's page of an API: signed, sent, and the answer shown.

Owns the message that asks for one, the request that is made of it, and the form in which its answer is given
to the page. Does not own the choice of the worker (worker_calls.py) or the page (docs_page.py).
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import logging
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import aiohttp
from aiohttp import web

from lib.client import RouteAnswer, auth_headers
from lib.errors import AnswerCut, ClientGone, Invalid, describe_error
from lib.local.messages import BadMessage, Fields, parse_object
from lib.model.messages import fill_path, text_fields, text_form, with_query
from lib.runtime.settings import Settings

log = logging.getLogger(__name__)

# The message may be as large as a JSON body of the gateway's. Its files are in base64, so they may have ¾ of
# this together.
MAX_TRIED_BYTES = Settings.max_json_bytes
METHODS = ("POST", "GET", "PUT", "PATCH", "DELETE")
# Their payload is in the URL's query (docs/protocol.md, "Request").
WITHOUT_BODY = ("GET", "DELETE")
# UTF-8 can't encode them; JSON can have them. In an envelope they stay escaped.
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
# The names in a form are in header lines of its parts.
_NOT_IN_FORM_NAME = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class TriedFile:
    """A file to send. `field` is its name in a form; "" makes the file the whole body."""

    field: str
    name: str
    content_type: str
    content: bytes


@dataclass(frozen=True)
class TriedRequest:
    """A request to the route `method` and `path`, which may have parameters in braces.

    `path_values` are the values of these, `cost` is in workload units.
    """

    endpoint: str
    api_key: str
    method: str
    path: str
    path_values: Mapping[str, object]
    payload: Mapping[str, object]
    files: Sequence[TriedFile]
    cost: float

    @property
    def has_envelope(self) -> bool:
        """Whether it is sent in an envelope; otherwise the signature is in a header."""
        return self.method not in WITHOUT_BODY and not self.files

    def target(self) -> str:
        """The path, with the payload as its query where that can't be in the body.

        Raises `BadMessage` (400) if a parameter of the path is missing or wrong.
        """
        try:
            path = fill_path(self.path, self.path_values, has_rest=True)
        except Invalid as e:
            raise BadMessage(f"path_values: {json.dumps(e.message)}") from e
        in_query = not self.has_envelope and not self._is_form
        return (with_query(path, self.payload) if in_query else None) or path

    def sent(self, worker: RouteAnswer) -> str:
        """The JSON text of the signed envelope, or of `auth_data` where the payload is beside it."""
        if not self.has_envelope:
            return json.dumps(worker.auth_data)
        return json.dumps({"auth_data": worker.auth_data, "payload": self.payload})

    def options(self, worker: RouteAnswer, sent: str) -> dict[str, Any]:
        """The headers and the body of the request to `worker`, as arguments of aiohttp's client."""
        if self.has_envelope:
            return {"headers": {"Content-Type": "application/json"}, "data": io.BytesIO(sent.encode())}
        headers = auth_headers(worker)
        if self._is_form:
            return {"headers": headers, "data": self._form()}
        if self.files:
            (file,) = self.files
            headers["Content-Type"] = file.content_type
            return {"headers": headers, "data": io.BytesIO(file.content)}
        return {"headers": headers}

    def check(self, fields: Fields) -> None:
        """Record a problem in `fields` for what can't be in a URL or in a form."""
        beside = [] if self.has_envelope else text_fields(self.payload)
        for where, pairs in (("path_values", text_fields(self.path_values)), ("payload", beside)):
            if any(_LONE_SURROGATE.search(name + text) for name, text in pairs):
                fields.problem(where, "has a lone surrogate, which can only be in an envelope")
        if self._is_form:
            if any(_NOT_IN_FORM_NAME.search(name) for name in self.payload):
                fields.problem("payload", "has a name that can't be in a form")
            for name in {file.field for file in self.files} & self.payload.keys():
                fields.problem("files", f"name a field of the payload too: {name!r}")

    @property
    def _is_form(self) -> bool:
        return bool(self.files) and bool(self.files[0].field)

    def _form(self) -> aiohttp.FormData:
        form = text_form(self.payload)
        for file in self.files:
            content = io.BytesIO(file.content)
            form.add_field(file.field, content, filename=file.name, content_type=file.content_type)
        return form


def read_tried(body: bytes) -> TriedRequest:
    """Read the body of `POST /local/try` (docs/local-engine.md, "Trying a route"). Raises `BadMessage` (400).

    A large one takes a while: call it in a thread.
    """
    fields = Fields(parse_object(body))
    files = [_read_file(each) for each in fields.objects("files")] if fields.has("files") else []
    tried = TriedRequest(
        endpoint=fields.text("endpoint"),
        api_key=fields.text("api_key") if fields.has("api_key") else "",
        method=fields.text("method"),
        path=fields.text("path"),
        path_values=_object(fields, "path_values"),
        payload=_object(fields, "payload"),
        files=files,
        cost=fields.number("cost", 0.0) if fields.has("cost") else 1.0,
    )
    if tried.method not in METHODS:
        fields.problem("method", f"must be one of {', '.join(METHODS)}")
    if files and tried.method in WITHOUT_BODY:
        fields.problem("files", f"can't be sent by {tried.method}, which has no body")
    if len(files) > 1 and not all(file.field for file in files):
        fields.problem("files", "must all have a field of the form: one without is the whole body")
    tried.check(fields)
    fields.finish()
    return tried


def _object(fields: Fields, name: str) -> Mapping[str, object]:
    value = fields.value(name)
    if value is not None and not isinstance(value, dict):
        fields.problem(name, "must be an object")
        return {}
    return cast("Mapping[str, object]", value or {})


def _read_file(entry: Fields) -> TriedFile:
    content = b""
    try:
        content = base64.b64decode(entry.text("base64"), validate=True)
    except (binascii.Error, ValueError):
        entry.problem("base64", "must be base64")
    for name in ("field", "name"):
        if _NOT_IN_FORM_NAME.search(entry.text(name)):
            entry.problem(name, "must have no control characters or lone surrogates")
    content_type = entry.text("type") if entry.has("type") else ""
    if not content_type.isascii() or not content_type.isprintable():
        entry.problem("type", "must be a media type")
    return TriedFile(
        entry.text("field"), entry.text("name"), content_type or "application/octet-stream", content
    )


async def relay_answer(
    request: web.Request, tried: TriedRequest, sent: str, answer: aiohttp.ClientResponse
) -> web.StreamResponse:
    """Give `answer` to the page as it arrives (docs/local-engine.md, "Trying a route").

    The worker's headers are in the first line only: they must not become headers of the engine's. That the
    worker's answer breaks off is told at the end: if this one broke off too, a browser might show neither.
    Raises `ClientGone`.
    """
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    head = {
        "url": str(answer.url),
        "method": tried.method,
        "sent": sent,
        "in_header": not tried.has_envelope,
        "status": answer.status,
        "reason": answer.reason or "",
        "headers": list(answer.headers.items()),
    }
    error = ""
    try:
        await response.prepare(request)
        await response.write(json.dumps(head).encode() + b"\n")
        try:
            async for part in _parts(answer):
                await response.write(b"%d\n" % len(part) + part)
        except AnswerCut as e:
            error = str(e)
            log.warning("%s %s: %s", tried.method, tried.path, e)
        await response.write(b"0\n" + json.dumps({"error": error}).encode() + b"\n")
        await response.write_eof()
    except ConnectionError as e:
        raise ClientGone from e
    return response


async def _parts(answer: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    try:
        async for part in answer.content.iter_any():
            yield part
    except (aiohttp.ClientError, OSError) as e:
        raise AnswerCut(f"the worker's answer ended early: {describe_error(e)}") from e
