"""The payloads of the sglang worker: those of the OpenAI worker, since SGLang implements the same API."""

from workers.openai.data_types import ChatRequest, CompletionRequest, OpenAIRequest

__all__ = ["ChatRequest", "CompletionRequest", "OpenAIRequest"]
