"""The routes of the embeddings worker: those of Text Embeddings Inference, and those of infinity.

Owns each route's payload class. A server answers 404 for a route that only the other one has.
"""

from __future__ import annotations

from workers.embeddings.data_types import InputsRequest, TextsRequest, TextsRerankRequest
from workers.openai.handlers import GetHandler, ModelsHandler, OpenAIHandler


class EmbedHandler(OpenAIHandler):
    path = "/embed"
    payload = InputsRequest


class EmbedAllHandler(EmbedHandler):
    path = "/embed_all"


class EmbedSparseHandler(EmbedHandler):
    path = "/embed_sparse"


class PredictHandler(EmbedHandler):
    path = "/predict"


class SimilarityHandler(EmbedHandler):
    path = "/similarity"


class TokenizeHandler(EmbedHandler):
    path = "/tokenize"


class TextsRerankHandler(OpenAIHandler):
    path = "/rerank"
    payload = TextsRerankRequest


class TextsHandler(OpenAIHandler):
    path = "/embeddings"
    payload = TextsRequest


class OpenAITextsHandler(TextsHandler):
    path = "/v1/embeddings"


class ClassifyHandler(OpenAIHandler):
    path = "/classify"
    payload = TextsRequest


class InfoHandler(GetHandler):
    path = "/info"


class InfinityModelsHandler(GetHandler):
    path = "/models"


# All handlers, in the order of README.md.
HANDLERS: tuple[type[OpenAIHandler], ...] = (
    EmbedHandler,
    EmbedAllHandler,
    EmbedSparseHandler,
    PredictHandler,
    SimilarityHandler,
    TokenizeHandler,
    TextsRerankHandler,
    TextsHandler,
    OpenAITextsHandler,
    ClassifyHandler,
    InfoHandler,
    InfinityModelsHandler,
    ModelsHandler,
)
