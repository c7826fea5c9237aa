"""A model answer without a model server: recorded chunks as a stream of events."""

from __future__ import annotations

from collections.abc import Iterable

from multidict import CIMultiDict, CIMultiDictProxy


class RecordedBody:
    """The chunks, one at a time."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)

    async def readany(self) -> bytes:
        return next(self._chunks, b"")


class RecordedAnswer:
    """Implements what `pass_on` needs, without aiohttp's client."""

    status = 200
    reason = None
    content_type = "text/event-stream"
    content_length = None

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.content = RecordedBody(chunks)
        fields = {"Content-Type": self.content_type, "X-Source": "recorded", "Connection": "keep-alive"}
        self.headers = CIMultiDictProxy(CIMultiDict(fields))
