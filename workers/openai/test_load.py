"""Load test of the OpenAI worker.

`python -m workers.openai.test_load -n 1000 -rps 0.5 -k "$API_KEY" -e "$ENDPOINT_NAME"`

With `-l` it uses the local engine, which needs neither a key nor a name.
"""

from __future__ import annotations

from lib.test_utils import test_args, test_load_cmd
from workers.openai.data_types import CompletionRequest

WORKER_ENDPOINT = "/v1/completions"

if __name__ == "__main__":
    test_load_cmd(CompletionRequest, WORKER_ENDPOINT, arg_parser=test_args)
