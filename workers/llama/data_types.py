"""The payloads of the llama worker: OpenAI's, all of them, since llama.cpp speaks that protocol."""

from workers.openai.data_types import ChatRequest, CompletionRequest, OpenAIRequest

__all__ = ["ChatRequest", "CompletionRequest", "OpenAIRequest"]
