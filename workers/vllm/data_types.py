"""The payloads of the vllm worker: OpenAI's, all of them, since vLLM speaks that protocol."""

from workers.openai.data_types import ChatRequest, CompletionRequest, OpenAIRequest

__all__ = ["ChatRequest", "CompletionRequest", "OpenAIRequest"]
