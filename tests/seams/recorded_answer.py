"""A model answer without a model server: recorded chunks as a stream of events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager

from multidict import CIMultiDict, CIMultiDictProxy

from lib.backend import ModelCaller
from tests.fakes.worker import Job, JobHandler


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


class RecordedHandler(JobHandler):
    """Answers without a model server."""

    @asynccontextmanager
    async def call_model(self, model: ModelCaller, payload: Job) -> AsyncGenerator[RecordedAnswer, None]:
        yield RecordedAnswer([b"data: 1\n\n", b"data: 2\n\n"])
