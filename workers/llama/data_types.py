"""The payloads of the llama worker: those of the OpenAI worker, since llama.cpp implements the same API."""

from workers.openai.data_types import ChatRequest, CompletionRequest, OpenAIRequest

__all__ = ["ChatRequest", "CompletionRequest", "OpenAIRequest"]
