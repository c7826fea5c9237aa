"""The load test as workers' `test_load.py` call it (authoring.md §1, Load test).

Owns names that workers in the field import. The load test itself is in tools/load_test.py.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from lib.client import add_target_arguments
from lib.tools.load_command import add_load_arguments, run_load_test

__all__ = ["print_truncate_res", "test_args", "test_load_cmd"]

# For pytest: nothing here is a test, whatever its name begins with.
__test__ = False

# Longer answers are shown by their beginning and end, in characters.
_HEAD = 50
_TAIL = 100

test_args = argparse.ArgumentParser(description="Send requests to an endpoint and measure them.")
add_target_arguments(test_args)


def test_load_cmd(payload_cls: Any, endpoint: str, arg_parser: argparse.ArgumentParser) -> None:
    """Run the load test that the command line asks for, print what it has shown, and exit.

    `payload_cls` is a class with `for_test`, called for each request, or one payload; `endpoint` is the
    worker's route; `arg_parser` is `test_args`, to which an author may have added. The exit status is 0 if
    every request succeeded, 1 if not, and 130 after Ctrl-C.
    """
    # A parser of its own: that of the caller stays as it was, and can be used again.
    parser = argparse.ArgumentParser(parents=[arg_parser], add_help=False, description=arg_parser.description)
    add_load_arguments(parser)
    args = parser.parse_args()
    sys.exit(run_load_test(parser, args, endpoint, payload_cls))


def print_truncate_res(res: Any) -> None:
    """Print an answer, a long one without its middle."""
    text = str(res)
    shown = text if len(text) <= _HEAD + _TAIL else f"{text[:_HEAD]}....{text[-_TAIL:]}"
    print(shown)  # noqa: T201 - it is what this is for


test_load_cmd.__test__ = False  # pyright: ignore[reportFunctionMemberAccess] - read by pytest
