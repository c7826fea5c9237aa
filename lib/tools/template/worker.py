"""The worker for my_model. The parts to edit are numbered 1 to 4."""

import os
from typing import Any

from lib.worker import BenchmarkConfig, HandlerConfig, Worker, WorkerConfig

# 1. The URL of your model server. Until you have one, it is the server in model_server.py.
MODEL_SERVER_URL = os.environ.get("MODEL_SERVER_URL", "http://127.0.0.1:5001")


# 2. The workload of a request, in a unit of your choice that grows with the time it takes: here, words.
def count_work(payload: dict[str, Any]) -> float:
    return float(payload.get("max_words", 20))


# 3. A typical request. The benchmark sends it to measure how much workload per second the machine can do.
TYPICAL = {"prompt": "Once upon a time", "max_words": 20}

# 4. The routes that clients call, which are also the model server's routes. Answers are passed on as they
#    arrive, so streams stay streams. Set allow_parallel_requests=False if the model server can only process
#    one request at a time.
generate = HandlerConfig(
    "/generate",
    allow_parallel_requests=True,
    workload_calculator=count_work,
    benchmark_config=BenchmarkConfig(dataset=[TYPICAL], runs=3),
)
stream = HandlerConfig("/generate_stream", allow_parallel_requests=True, workload_calculator=count_work)

# The worker is ready when the model server's health check succeeds. If the model server writes a log, name
# the file and the lines that show its state: model_log_file="/var/log/my_model.log",
# log_action_config=LogActionConfig(on_load=["…"], on_error=["…"])
worker = Worker(WorkerConfig(MODEL_SERVER_URL, model_healthcheck_url="/health", handlers=[generate, stream]))

if __name__ == "__main__":
    worker.run()
