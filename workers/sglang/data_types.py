"""The payloads of the sglang worker: OpenAI's, all of them, since SGLang speaks that protocol."""

from workers.openai.data_types import ChatRequest, CompletionRequest, OpenAIRequest

__all__ = ["ChatRequest", "CompletionRequest", "OpenAIRequest"]
