"""Load test of the embeddings worker.

`python -m workers.embeddings.test_load -n 1000 -rps 0.5 -k "$API_KEY" -e "$ENDPOINT_NAME"`

With `-l` it uses the local engine, which needs neither a key nor a name.
"""

from __future__ import annotations

from lib.test_utils import test_args, test_load_cmd
from workers.embeddings.data_types import TextsRequest

WORKER_ENDPOINT = "/embeddings"

if __name__ == "__main__":
    test_load_cmd(TextsRequest, WORKER_ENDPOINT, arg_parser=test_args)
