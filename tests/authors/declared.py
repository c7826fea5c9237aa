"""A declared worker: a model server behind one route, a Python function behind the other."""

import os
from typing import Any

from lib.worker import HandlerConfig, LogActionConfig, Worker, WorkerConfig


def parse(payload: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": payload["prompt"], "max_tokens": int(payload.get("max_tokens", 16))}


def shout(text: str, times: int = 1) -> str:
    return " ".join([text.upper()] * times)


worker = Worker(
    WorkerConfig(
        model_server_url=os.environ["TEST_MODEL_URL"],
        model_log_file=os.environ["MODEL_LOG"],
        log_action_config=LogActionConfig(on_load=["model is ready"], on_error=["CUDA error"]),
        benchmark_route="/echo",
        benchmark_data=[{"prompt": "Once"}, {"prompt": "upon", "max_tokens": "8"}],
        handlers=[
            HandlerConfig("/echo", request_parser=parse, workload_calculator=lambda p: p["max_tokens"]),
            HandlerConfig("/shout", remote_function=shout),
        ],
    )
)

if __name__ == "__main__":
    worker.run(host="127.0.0.1")
