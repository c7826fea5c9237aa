"""Load test of the comfyui worker.

`python -m workers.comfyui.test_load -n 100 -rps 0.1 -k "$API_KEY" -e "$ENDPOINT_NAME"`

With `-l` it uses the local engine, which needs neither a key nor a name.
"""

from __future__ import annotations

from lib.test_utils import test_args, test_load_cmd
from workers.comfyui.data_types import GenerateInput

WORKER_ENDPOINT = "/generate/sync"

if __name__ == "__main__":
    test_load_cmd(GenerateInput, WORKER_ENDPOINT, arg_parser=test_args)
