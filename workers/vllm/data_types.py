"""The payloads of the vllm worker: those of the OpenAI worker, since vLLM implements the same API."""

from workers.openai.data_types import ChatRequest, CompletionRequest, OpenAIRequest

__all__ = ["ChatRequest", "CompletionRequest", "OpenAIRequest"]
