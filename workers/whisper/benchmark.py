"""The benchmark of the whisper worker: transcriptions of a tone.

Owns the benchmark's requests. The tone is in data_types.py.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web
from anyio.to_thread import run_sync

from workers.openai.data_types import OpenAIRequest
from workers.openai.error_events import has_error
from workers.openai.handlers import TranscriptionsHandler
from workers.openai.route_choice import RouteChoice
from workers.whisper.data_types import ToneRequest
from workers.whisper.handlers import InferenceHandler

if TYPE_CHECKING:
    from lib.backend import ModelCaller

PATHS = (TranscriptionsHandler.path, InferenceHandler.path)
# Answers of a server without the route.
REFUSALS = frozenset({404, 405})


@dataclass(kw_only=True)
class WhisperBenchmarkHandler(TranscriptionsHandler):
    """Requests transcriptions of a tone of 30 s, at a random pitch, from the route that the server has."""

    _choice: RouteChoice = field(default_factory=lambda: RouteChoice(REFUSALS), init=False)

    def make_benchmark_payload(self) -> OpenAIRequest:
        return ToneRequest.for_test()

    @asynccontextmanager
    async def call_model(
        self, model: ModelCaller, payload: OpenAIRequest
    ) -> AsyncGenerator[web.Response, None]:
        assert isinstance(payload, ToneRequest)
        form = self.with_model(await run_sync(payload.generate_payload_multipart))
        _, outcome = await self._choice.ask({path: partial(model.post_form, path, form) for path in PATHS})
        if isinstance(outcome.body, bytes) and outcome.status < 300 and has_error(outcome.body):
            outcome.set_status(502)  # older versions of whisper.cpp answer errors with 200
        yield outcome
