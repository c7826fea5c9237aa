"""The worker in front of my_model. What to make your own is marked 1 to 4."""

import os
from typing import Any

from lib.worker import BenchmarkConfig, HandlerConfig, Worker, WorkerConfig

# 1. Where your model server is. The one in model_server.py stands in for it until then.
MODEL_SERVER_URL = os.environ.get("MODEL_SERVER_URL", "http://127.0.0.1:5001")


# 2. How much work a request is, in a unit of your choice that grows with the time it takes: here, words.
def count_work(payload: dict[str, Any]) -> float:
    return float(payload.get("max_words", 20))


# 3. A typical request: the benchmark measures the machine by it.
TYPICAL = {"prompt": "Once upon a time", "max_words": 20}

# 4. The routes that clients call, which are the model server's own. Answers are passed on as they come: what
#    it streams is streamed. Set allow_parallel_requests=False if it takes one request at a time.
generate = HandlerConfig(
    "/generate",
    allow_parallel_requests=True,
    workload_calculator=count_work,
    benchmark_config=BenchmarkConfig(dataset=[TYPICAL], runs=3),
)
stream = HandlerConfig("/generate_stream", allow_parallel_requests=True, workload_calculator=count_work)

# Ready is what answers its health check. If the model server logs, say where and what its lines mean:
# model_log_file="/var/log/my_model.log", log_action_config=LogActionConfig(on_load=["…"], on_error=["…"])
worker = Worker(WorkerConfig(MODEL_SERVER_URL, model_healthcheck_url="/health", handlers=[generate, stream]))

if __name__ == "__main__":
    worker.run()
