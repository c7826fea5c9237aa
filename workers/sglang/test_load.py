"""Load test of the sglang worker: `python -m workers.sglang.test_load -n 1000 -rps 0.5 -k KEY -e NAME`."""

from __future__ import annotations

from lib.test_utils import test_args, test_load_cmd
from workers.openai.data_types import CompletionRequest
from workers.openai.test_load import WORKER_ENDPOINT

if __name__ == "__main__":
    test_load_cmd(CompletionRequest, WORKER_ENDPOINT, arg_parser=test_args)
