"""The payload of an authenticated request: JSON, the parameters of a URL, or an upload on disk.

Owns reading the bodies that authentication has left unread (docs/protocol.md, "Bodies"). It does not check a
payload's fields: the handler does.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio

from lib.access.authenticator import Admission
from lib.access.body import BodyReader, let_read_again
from lib.access.envelope import check_bounds, object_in
from lib.access.spool import SpoolRoom, spooled
from lib.errors import BodyTooLarge, Draining, MediaTypeRefused
from lib.fields.json_fields import Parameters
from lib.request.incoming import IncomingRequest
from lib.uploads import Upload

# Limits of an object that is read before its sender is known.
SMALL_OBJECT_BYTES = 1024 * 1024
SMALL_OBJECT_VALUES = 25_000


class PayloadReader:
    """Reads payloads. `bodies` reads JSON, `uploads` bodies of other media types, which take of `room`."""

    def __init__(self, bodies: BodyReader, uploads: BodyReader, room: SpoolRoom) -> None:
        self._bodies = bodies
        self._uploads = uploads
        self._room = room
        self._receiving: set[anyio.CancelScope] = set()
        self._is_stopped = False

    async def read_json(self, request: IncomingRequest, admission: Admission) -> dict[str, Any]:
        """Read the payload as JSON, or the URL's parameters for a request without a body.

        Raises what `BodyReader.read_verified` raises, `Invalid` (422), `MediaTypeRefused` (415) for a body
        that is not JSON, and `admission.failure`.
        """
        if admission.failure is not None:
            error, admission.failure = admission.failure, None
            try:
                raise error
            finally:
                del error  # its traceback has this frame: they would keep each other alive, and the body
        if admission.payload is not None:
            return admission.payload
        if not request.body_exists:
            return _parameters(request)
        if is_upload(request, admission):
            raise MediaTypeRefused(f"this route takes application/json, not {request.content_type}")
        body = await self._bodies.read_verified(request)
        self._bodies.verified.keep(request, len(body), await check_bounds(body))
        content = object_in(body)
        let_read_again(request, body, content)
        return content

    @asynccontextmanager
    async def receive(
        self, request: IncomingRequest, admission: Admission, accepts_uploads: bool
    ) -> AsyncGenerator[dict[str, Any] | Upload, None]:
        """The payload as `read_json` returns it, or an upload, which is on disk until the block ends.

        Raises `Draining` (503) if the worker is stopped before the whole body has arrived, what `read_json`
        raises, and what `spooled` raises.
        """
        if self._is_stopped and admission.failure is None:
            raise Draining()
        received: dict[str, Any] | Upload | None = None
        async with AsyncExitStack() as stack:
            with anyio.CancelScope() as scope:
                self._receiving.add(scope)
                try:
                    if accepts_uploads and is_upload(request, admission):
                        received = await self._spool(request, stack)
                    else:
                        received = await self.read_json(request, admission)
                finally:
                    self._receiving.discard(scope)
            if received is None:  # `stop` cancelled the scope
                raise Draining()
            yield received

    def stop(self) -> None:
        """Cancel the bodies that are still being received, and receive no more: the worker is stopping."""
        self._is_stopped = True
        for scope in self._receiving:
            scope.cancel()

    async def _spool(self, request: IncomingRequest, stack: AsyncExitStack) -> Upload:
        parts = self._uploads.parts(request)
        path, size_bytes = await stack.enter_async_context(spooled(parts, self._room))
        let_read_again(request, path)
        query = {name: request.query.getall(name) for name in request.query}
        content_type = request.headers.get("Content-Type") or request.content_type
        return Upload(path, content_type, size_bytes, query)


def is_upload(request: IncomingRequest, admission: Admission) -> bool:
    """Whether the body is an upload: it is the payload, and its media type is not JSON."""
    is_unread = admission.payload is None and admission.failure is None
    return is_unread and request.body_exists and not is_json(request.content_type)


def is_json(media_type: str) -> bool:
    """Whether `media_type` is JSON: `application/json`, or with the suffix `+json` (RFC 6839)."""
    return media_type == "application/json" or media_type.endswith("+json")


def _parameters(request: IncomingRequest) -> Parameters:
    """The parameters of the query and of the path; a repeated name has a list of its values."""
    query = {name: request.query.getall(name) for name in request.query}
    texts = {name: values if len(values) > 1 else values[0] for name, values in query.items()}
    return Parameters({**texts, **request.match_info})


async def small_object(bodies: BodyReader, request: IncomingRequest) -> dict[str, Any]:
    """The JSON object in a body of at most 1 MiB, before the request is authenticated.

    Raises `BodyTooLarge` (413), `Invalid` (422), and what `BodyReader.read` raises.
    """
    async with bodies.read(request) as body:
        if len(body) > SMALL_OBJECT_BYTES:
            raise BodyTooLarge(f"the body is larger than {SMALL_OBJECT_BYTES} bytes")
        await check_bounds(body, SMALL_OBJECT_VALUES)
        return object_in(body)
