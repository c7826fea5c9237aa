"""The load test in one call (authoring.md §1, Load test).

Owns a name that the documentation gives. The arguments are those of test_utils.py.
"""

from __future__ import annotations

from typing import Any

from lib.test_utils import test_args, test_load_cmd

__all__ = ["run"]

# For pytest: nothing here is a test.
__test__ = False


def run(payload: Any, worker_endpoint: str) -> None:
    """Send `payload` to the worker's route `worker_endpoint` as the command line says, print what came of
    it, and exit.

    `payload` is a payload, or a class with `for_test`. The arguments are those of `test_load_cmd`.
    """
    test_load_cmd(payload, worker_endpoint, test_args)
