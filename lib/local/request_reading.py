"""Reads the parts that requests to all routes of the local engine share: body, endpoint in the path, API key.

Owns HTTP requests up to the JSON object in the body. Does not own the fields of that object (messages.py,
groups.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from lib.errors import BodyTooLarge
from lib.local.messages import BadMessage, Fields, parse_object, wrong_endpoint_name
from lib.runtime.hosts import is_loopback, parse_host_port
from lib.wire import LOOPBACK_HEADER

# The largest message has 10,000 finished requests of about 200 bytes each.
MAX_BODY_BYTES = 8 * 1024 * 1024
# A worker's loopback port has no TLS.
_LOOPBACK_SCHEME = "http://"
# A proxy on this machine connects from it for clients elsewhere.
_SET_BY_PROXIES = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")


async def read_message(request: web.Request) -> Mapping[str, object]:
    """Return the JSON object in the body. Raises `BadMessage` (400) and `BodyTooLarge` (413)."""
    return parse_object(await read_bytes(request))


async def read_optional_message(request: web.Request) -> Mapping[str, object]:
    """Like `read_message`, but an empty body counts as an empty object.

    Clients may send a body, or none, with any method.
    """
    body = await read_bytes(request)
    return parse_object(body) if body else {}


async def read_bytes(request: web.Request, limit_bytes: int = MAX_BODY_BYTES) -> bytes:
    """Return the body. Raises `BadMessage` (400) and `BodyTooLarge` (413)."""
    try:
        return await request.clone(client_max_size=limit_bytes).read()
    except web.HTTPRequestEntityTooLarge as e:
        raise BodyTooLarge(f"the body is larger than {limit_bytes} bytes") from e
    except web.RequestPayloadError as e:
        raise BadMessage(f"the body can't be read: {e}") from e


def endpoint_in_path(request: web.Request) -> str | None:
    """The endpoint in the path, if it names one. Raises `BadMessage` (400) for an invalid name."""
    name = request.match_info.get("endpoint")
    if name is not None and (what := wrong_endpoint_name(name)):
        raise BadMessage(f"the path's endpoint {what}")
    return name


def loopback_url_in(request: web.Request) -> str:
    """The URL of the loopback port of the worker that reports, `http://HOST:PORT`; "" if it names none.

    The engine asks this URL, so another machine is not believed, nor is a report that a proxy passed on.
    """
    url = request.headers.get(LOOPBACK_HEADER, "")
    authority = parse_host_port(url.removeprefix(_LOOPBACK_SCHEME))
    if (
        not url.startswith(_LOOPBACK_SCHEME)
        or not url.isascii()
        or authority is None
        or authority.port not in range(1, 65536)
        or not is_loopback(authority.host)
        or not is_loopback(request.remote or "")
        or any(name in request.headers for name in _SET_BY_PROXIES)
    ):
        return ""
    return url


def api_key_of(request: web.Request, message: Mapping[str, object]) -> str:
    """The API key from the message, the query or the bearer token, in this order; "" without one.

    Raises `BadMessage` (400) if the message's `api_key` is not a string.
    """
    fields = Fields(message)
    in_body = fields.text("api_key") if fields.has("api_key") else ""
    fields.finish()
    return in_body or request.query.get("api_key", "") or _bearer(request)


def _bearer(request: web.Request) -> str:
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""
