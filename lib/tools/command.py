"""What a command of `pyworker` is, and the kinds of arguments that several of them take.

Owns exit statuses: 0 when all went well, 1 when it did not, 2 for what can't work as it was asked (a port
in use is one), and for a signal what a shell makes of it. The commands themselves are in commands/.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

EXIT_FAILED = 1
EXIT_USAGE = 2
# What a shell makes of a process that a signal ended: this, and the signal's number.
EXIT_SIGNAL = 128
EXIT_INTERRUPTED = EXIT_SIGNAL + 2


@dataclass(frozen=True)
class Command:
    """One subcommand. `configure` adds its arguments, `run` gives the exit status."""

    help: str
    description: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.ArgumentParser, argparse.Namespace], int]


def port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError("must be 0 to 65535")
    return int(text)


def not_empty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def json_object(text: str) -> Mapping[str, Any]:
    try:
        value: object = json.loads(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('must be a JSON object: {"name": value}')
    return cast("dict[str, Any]", value)


def cost(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError("must be a finite number, 0 or more")
    return number
