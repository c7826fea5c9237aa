"""The official worker, of the PyPI package `vastai`, with the same route as this worker.

usage: MODEL_PORT=… MODEL_LOG=… python -m benchmarks.official_worker

It also needs the variables of an instance. Its package sets the level of all log lines to DEBUG when a worker
is made; here they are limited to WARNING again, like this worker's (LOG_LEVEL).
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping
from typing import Any

from benchmarks.fast_model import READY_LINE
from benchmarks.loads import ROUTE


def workload(payload: Mapping[str, Any]) -> float:
    """The tokens that a request may generate."""
    return float(payload.get("max_tokens", 0))


def main() -> None:
    vastai: Any = importlib.import_module("vastai")  # an extra, without type annotations
    handler = vastai.HandlerConfig(
        route=ROUTE,
        allow_parallel_requests=True,
        max_queue_time=None,
        workload_calculator=workload,
        benchmark_config=vastai.BenchmarkConfig(
            dataset=[{"model": "plain", "prompt": "hi", "max_tokens": 200}], runs=1, concurrency=2
        ),
    )
    config = vastai.WorkerConfig(
        model_server_url="http://127.0.0.1",
        model_server_port=int(os.environ["MODEL_PORT"]),
        model_log_file=os.environ["MODEL_LOG"],
        handlers=[handler],
        log_action_config=vastai.LogActionConfig(on_load=[READY_LINE]),
    )
    worker = vastai.Worker(config)
    logging.getLogger().setLevel(logging.WARNING)
    worker.run(host="127.0.0.1")


if __name__ == "__main__":
    main()
