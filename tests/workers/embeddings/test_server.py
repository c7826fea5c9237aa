"""The embeddings worker's backend and routes, with and without environment variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib.errors import SettingsError
from workers.embeddings import server
from workers.embeddings.benchmark import EmbeddingsBenchmarkHandler

POSTED = [
    *("/embed", "/embed_all", "/embed_sparse", "/predict", "/similarity", "/tokenize", "/rerank"),
    *("/embeddings", "/v1/embeddings", "/classify"),
]
READ = ["/info", "/models", "/v1/models"]


def test_the_defaults_of_the_worker() -> None:
    backend, routes = server.build({})
    handler = backend.benchmark_handler

    assert backend.model_server_url == "http://127.0.0.1:18000"
    assert backend.model_log_file == Path("/var/log/portal/embeddings.log")
    assert [r.path for r in routes if r.method == "POST"] == [*POSTED, *READ]
    assert [r.path for r in routes if r.method == "GET"] == READ
    assert backend.allow_parallel_requests
    assert isinstance(handler, EmbeddingsBenchmarkHandler)
    assert (handler.endpoint, handler.healthcheck_endpoint) == ("/embeddings", "/health")


def test_routes_with_json_are_carried_without_aiohttp() -> None:
    backend, routes = server.build({})
    assert set(backend.direct_routes(routes)) == set(POSTED)


def test_every_malformed_variable_is_named() -> None:
    with pytest.raises(SettingsError, match=r"(?s)MODEL_SERVER_URL.*MAX_QUEUE_TIME"):
        server.build({"MODEL_SERVER_URL": "nowhere", "MAX_QUEUE_TIME": "long"})


def test_benchmark_payloads_differ_and_have_the_configured_number_of_words() -> None:
    assert EmbeddingsBenchmarkHandler().benchmark_words == 64
    handler = EmbeddingsBenchmarkHandler(benchmark_words=30)
    texts = [text for _ in range(4) for text in handler.make_benchmark_payload().input["input"]]
    assert {len(text.split()) for text in texts} == {30}
    assert len(set(texts)) == len(texts)
