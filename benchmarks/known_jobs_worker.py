"""A worker for the servers of jobs in known_servers.py, declared as its author would.

usage: MODEL_SERVER_URL=… python -m benchmarks.known_jobs_worker images|audio

It also needs the variables of an instance, or `ENGINE=none` (docs/operating.md, "Environment").
"""

from __future__ import annotations

import os
import sys
from typing import Any

from benchmarks.known_servers import SERVERS, JobServer
from lib.worker import BenchmarkConfig, HandlerConfig, Worker, WorkerConfig


def worker(name: str, model_server_url: str) -> Worker:
    """Declare the worker for the server `name`."""
    server = SERVERS[name]
    assert isinstance(server, JobServer)

    def workload(payload: dict[str, Any]) -> float:
        return server.workload

    run = HandlerConfig(
        "/run",
        healthcheck="/health",
        allow_parallel_requests=server.slots > 1,
        workload_calculator=workload,
        benchmark_config=BenchmarkConfig(dataset=[{"prompt": "a lighthouse"}, {"prompt": "a harbour"}]),
    )
    return Worker(WorkerConfig(model_server_url=model_server_url, handlers=[run]))


if __name__ == "__main__":
    worker(sys.argv[1], os.environ["MODEL_SERVER_URL"]).run()
