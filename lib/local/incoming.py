"""What every route of the local engine reads alike: the body, the endpoint in the path, the key.

Owns the reading of HTTP requests, up to a message; messages.py and groups.py read those.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from lib.errors import BodyTooLarge
from lib.local.messages import BadMessage, Fields, parse_object, wrong_endpoint_name

# The largest message is 10,000 finished requests (protocol.md §3) of some 200 bytes each.
MAX_BODY_BYTES = 8 * 1024 * 1024


async def read_message(request: web.Request) -> Mapping[str, object]:
    """The JSON object that is the body. Raises `BadMessage` and `BodyTooLarge`."""
    return parse_object(await read_bytes(request))


async def read_optional_message(request: web.Request) -> Mapping[str, object]:
    """The same, and an empty one where there is no body: clients send one along with any method, or none."""
    body = await read_bytes(request)
    return parse_object(body) if body else {}


async def read_bytes(request: web.Request) -> bytes:
    """The body. Raises `BadMessage` and `BodyTooLarge`."""
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge as e:
        raise BodyTooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes") from e
    except web.RequestPayloadError as e:
        raise BadMessage(f"the body can't be read: {e}") from e


def endpoint_in_path(request: web.Request) -> str | None:
    """The endpoint that the path names, if it does. Raises `BadMessage` for what can't be one."""
    name = request.match_info.get("endpoint")
    if name is not None and (what := wrong_endpoint_name(name)):
        raise BadMessage(f"the path's endpoint {what}")
    return name


def api_key_of(request: web.Request, message: Mapping[str, object]) -> str:
    """The key in the message, else in the query, else the bearer token, else "". Raises `BadMessage`."""
    fields = Fields(message)
    in_body = fields.text("api_key") if fields.has("api_key") else ""
    fields.finish()
    return in_body or request.query.get("api_key", "") or _bearer(request)


def _bearer(request: web.Request) -> str:
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""
