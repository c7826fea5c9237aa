"""The load rules of the ready-made workers, on lines that model servers of several versions have logged."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from lib.data_types import LogAction
from tests.docs.blocks import ROOT, codes, table

# Lines that mean that the model is loaded, by worker.
LOADED = {
    "llama": [
        "srv  llama_server: listening on http://127.0.0.1:8080",
        "0.02.345.678 I srv  llama_server: listening on unix:///run/llama.sock",
        "main: server is listening on http://127.0.0.1:8080 - starting the main loop",
        "srv    main: server is listening on unix:///run/llama.sock - starting the main loop",
        "llama server listening at http://127.0.0.1:8080",
        '{"timestamp":1700000000,"level":"INFO","function":"main","line":2720,"message":"HTTP server '
        'listening","hostname":"127.0.0.1","port":8080}',
        'INFO [                    main] HTTP server listening | tid="1" timestamp=1 n_threads_http="7"',
    ],
    "vllm": [
        "INFO:     Application startup complete.",
        "\x1b[32mINFO\x1b[0m:     Application startup complete.",
        "(APIServer pid=4711) INFO:     Application startup complete.",
        "\x1b[0;36m(APIServer pid=4711)\x1b[0;0m INFO:     Application startup complete.",
    ],
    "sglang": [
        "The server is fired up and ready to roll!",
        "[2026-01-31 12:00:00] The server is fired up and ready to roll!",
        "[2026-01-31 12:00:00 TP0] The server is fired up and ready to roll!",
    ],
    "tgi": [
        "2023-03-01T12:00:00.000000Z  INFO text_generation_router: router/src/main.rs:155: Connected",
        "2024-07-01T12:00:00.000000Z  INFO text_generation_router: router/src/main.rs:361: Connected",
        "2025-03-01T12:00:00Z  INFO text_generation_router::server: router/src/server.rs:2402: Connected",
        "\x1b[2m2025-03-01T12:00:00Z\x1b[0m \x1b[32m INFO\x1b[0m \x1b[2mtext_generation_router::server\x1b[0m"
        "\x1b[2m:\x1b[0m \x1b[2mrouter/src/server.rs\x1b[0m\x1b[2m:\x1b[0m\x1b[2m2402:\x1b[0m Connected",
        '{"timestamp":"2024-01-01T00:00:00Z","level":"INFO","message":"Connected","target":'
        '"text_generation_router","filename":"router/src/main.rs","line_number":278}',
        '{"timestamp":"2025-01-01T00:00:00Z","level":"INFO","message":"Connected","target":'
        '"text_generation_router::server","filename":"router/src/server.rs","line_number":2402}',
    ],
    "ollama": [
        'time=2026-01-31T12:00:00.000Z level=INFO source=routes.go:1187 msg="Listening on [::]:11434 '
        '(version 0.6.5)"',
        'time=2026-01-31T12:00:00.000Z level=INFO source=routes.go:999 msg="Listening on 127.0.0.1:11434 '
        '(version 0.1.24)"',
    ],
    "embeddings": [
        "2024-08-17T08:07:43.812616Z  INFO text_embeddings_router::http::server: "
        "router/src/http/server.rs:1779: Ready",
        "\x1b[2m2026-01-31T12:00:00.000000Z\x1b[0m \x1b[32m INFO\x1b[0m \x1b[2mtext_embeddings_router::http::"
        "server\x1b[0m\x1b[2m:\x1b[0m \x1b[2mrouter/src/http/server.rs\x1b[0m\x1b[2m:\x1b[0m\x1b[2m1881:"
        "\x1b[0m Ready",
        '{"timestamp":"2026-01-31T12:00:00Z","level":"INFO","message":"Ready","target":'
        '"text_embeddings_router::http::server","filename":"router/src/http/server.rs","line_number":1881}',
        "INFO:     Application startup complete.",
    ],
    "whisper": [
        "INFO:     Application startup complete.",
        "whisper server listening at http://127.0.0.1:8080",
    ],
    "comfyui": ["To see the GUI go to: http://127.0.0.1:8188", "To see the GUI go to: http://[::]:18188"],
    "hello_world": ["2026-01-31 12:00:00,123 infer server has started"],
}
# Lines of a server whose model is still loading.
LOADING = {
    "llama": [
        "main: HTTP server is listening, hostname: 127.0.0.1, port: 8080, http threads: 7",
        "main: loading model",
        "srv    load_model: loading model '/models/model.gguf'",
        "main: model loaded",
        "srv  llama_server: model loaded",
    ],
    "vllm": [
        "INFO:     Started server process [4711]",
        "INFO:     Waiting for application startup.",
        "INFO 01-31 12:00:00 api_server.py:1090] Starting vLLM API server on http://0.0.0.0:18000",
    ],
    "sglang": [
        "INFO:     Application startup complete.",
        "INFO:     Uvicorn running on http://127.0.0.1:18000 (Press CTRL+C to quit)",
    ],
    "tgi": [
        "2024-07-01T12:00:00.000000Z  INFO text_generation_launcher: Starting Webserver",
        "2024-07-01T12:00:00Z  INFO shard-manager: text_generation_launcher: Shard ready in 9.0s rank=0",
        "2024-07-01T12:00:00.000000Z  INFO text_generation_router: router/src/main.rs:317: Warming up model",
    ],
    "ollama": [
        'time=2026-01-31T12:00:00.000Z level=INFO source=images.go:863 msg="total blobs: 0"',
        "Couldn't find '/root/.ollama/id_ed25519'. Generating new private key.",
    ],
    "embeddings": [
        "2024-08-17T08:07:43.809812Z  WARN text_embeddings_router: router/src/lib.rs:267: Backend does not "
        "support a batch size > 4",
        "2026-01-31T12:00:00.000000Z  INFO text_embeddings_router: router/src/lib.rs:248: Warming up model",
        "2024-08-17T08:07:43.812568Z  INFO text_embeddings_router::http::server: "
        "router/src/http/server.rs:1778: Starting HTTP server: 0.0.0.0:8080",
        "INFO:     Waiting for application startup.",
    ],
    "whisper": [
        "INFO:     Started server process [4711]",
        "whisper_init_from_file_with_params_no_state: loading model from 'models/ggml-base.en.bin'",
    ],
    "comfyui": ["Starting server", "Import times for custom nodes:"],
    "hello_world": ["loading model"],
}
# The same for servers that the openai worker's README has a load line for.
OTHERS = {
    "transformers serve": "INFO:     Application startup complete.",
}


def is_loaded(worker: str, line: str) -> bool:
    """Whether a load rule of the worker matches the line."""
    module: Any = importlib.import_module(f"workers.{worker}.server")
    backend, _ = module.build({"COMFYUI_DIALECT": "native", "MODEL_NAME": "tiny"})
    return any(text in line for action, text in backend.log_actions if action is LogAction.ModelLoaded)


@pytest.mark.parametrize(("worker", "line"), [(w, line) for w, lines in LOADED.items() for line in lines])
def test_the_line_of_each_version_matches(worker: str, line: str) -> None:
    assert is_loaded(worker, line)


@pytest.mark.parametrize(("worker", "line"), [(w, line) for w, lines in LOADING.items() for line in lines])
def test_lines_before_the_model_is_loaded_do_not_match(worker: str, line: str) -> None:
    assert not is_loaded(worker, line)


def test_the_documented_lines_of_other_servers_match() -> None:
    text = (ROOT / "workers" / "openai" / "README.md").read_text()
    rows = table(text.partition("Load lines of other servers")[2].partition("Each of the three")[0])
    documented = {row[0].split(",")[0]: codes(row[1])[0] for row in rows}
    assert {server: text in OTHERS[server] for server, text in documented.items()} == dict.fromkeys(
        OTHERS, True
    )
