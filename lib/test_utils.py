"""The load test as a worker's `test_load.py` calls it (docs/writing-a-worker.md, "Load test").

Owns names that existing workers import. The command line of the load test is in lib/tools/load_command.py.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from lib.client import add_target_arguments
from lib.tools.load_command import add_load_arguments, run_load_test

__all__ = ["print_truncate_res", "test_args", "test_load_cmd"]

# Tells pytest that nothing here is a test, although names begin with `test`.
__test__ = False

# How much of the beginning and of the end of a long answer is printed, in characters.
_HEAD = 50
_TAIL = 100

test_args = argparse.ArgumentParser(description="Send requests to an endpoint and measure them.")
add_target_arguments(test_args)


def test_load_cmd(payload_cls: Any, endpoint: str, arg_parser: argparse.ArgumentParser) -> None:
    """Run the load test that the command line describes, print a summary, and exit.

    `payload_cls` is a class whose `for_test` makes the payload of each request, or one payload for all of
    them. `endpoint` is the worker's route. `arg_parser` is `test_args`, or a parser made from it with more
    arguments. The exit status is 0 if every request succeeded, 1 if one failed, 2 for wrong arguments, and
    130 after Ctrl-C.
    """
    # A copy, so that the caller can use its parser again.
    parser = argparse.ArgumentParser(parents=[arg_parser], add_help=False, description=arg_parser.description)
    add_load_arguments(parser)
    args = parser.parse_args()
    sys.exit(run_load_test(parser, args, endpoint, payload_cls))


def print_truncate_res(res: Any) -> None:
    """Print an answer; of one longer than 150 characters, only the first 50 and the last 100."""
    text = str(res)
    shown = text if len(text) <= _HEAD + _TAIL else f"{text[:_HEAD]}....{text[-_TAIL:]}"
    print(shown)  # noqa: T201 - printing is its purpose


test_load_cmd.__test__ = False  # pyright: ignore[reportFunctionMemberAccess] - read by pytest
