"""The routes of the whisper worker: OpenAI's routes for sound, and that of whisper.cpp's server.

Owns the list of routes. Routes that download or replace the servers' models are left out.
"""

from __future__ import annotations

from workers.openai.handlers import (
    ModelsHandler,
    OpenAIHandler,
    SpeechHandler,
    TranscriptionsHandler,
    TranslationsHandler,
)


class InferenceHandler(TranscriptionsHandler):
    path = "/inference"


# All handlers, in the order of README.md.
HANDLERS: tuple[type[OpenAIHandler], ...] = (
    TranscriptionsHandler,
    TranslationsHandler,
    InferenceHandler,
    SpeechHandler,
    ModelsHandler,
)
