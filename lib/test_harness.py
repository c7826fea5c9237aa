"""The load test in one call (docs/writing-a-worker.md, "Load test").

Owns a name that existing workers import. The arguments are those of lib/test_utils.py.
"""

from __future__ import annotations

from typing import Any

from lib.test_utils import test_args, test_load_cmd

__all__ = ["run"]

# Tells pytest that nothing here is a test.
__test__ = False


def run(payload: Any, worker_endpoint: str) -> None:
    """Run the load test that the command line describes, print a summary, and exit.

    `payload` is one payload for all requests, or a class whose `for_test` makes one for each.
    `worker_endpoint` is the worker's route. The exit status is that of `lib.test_utils.test_load_cmd`.
    """
    test_load_cmd(payload, worker_endpoint, test_args)
