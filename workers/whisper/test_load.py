"""Load test of the whisper worker.

`python -m workers.whisper.test_load -n 1000 -rps 0.5 -k "$API_KEY" -e "$ENDPOINT_NAME"`

With `-l` it uses the local engine, which needs neither a key nor a name.
"""

from __future__ import annotations

from lib.test_utils import test_args, test_load_cmd
from workers.whisper.data_types import ToneRequest

WORKER_ENDPOINT = "/v1/audio/transcriptions"

if __name__ == "__main__":
    test_load_cmd(ToneRequest, WORKER_ENDPOINT, arg_parser=test_args)
