"""The description of one command of `pyworker`, and the argument types and exit statuses that commands share.

Exit statuses are 0 for success, 1 for failure, 2 for a request that can't work (wrong arguments, a port that
is in use), and 128 plus the signal's number after a signal. The commands themselves are in
lib/tools/commands/.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lib.runtime.urls import is_http_url

# Beside a worker's statuses (lib/runtime/exit_status.py): the command line is wrong.
EXIT_USAGE = 2
# A shell reports a process that a signal ended as this plus the signal's number.
EXIT_SIGNAL = 128
EXIT_INTERRUPTED = EXIT_SIGNAL + 2

# The most workers that one local engine starts; each is one or two processes.
MAX_WORKERS = 64


@dataclass(frozen=True)
class Command:
    """One subcommand.

    `help` is its line in the list of commands, `description` opens its own help. `configure` adds its
    arguments to a parser; `run` runs it with the parser and the parsed arguments, and returns the exit
    status.
    """

    help: str
    description: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.ArgumentParser, argparse.Namespace], int]


def environment() -> Mapping[str, str]:
    """This process's environment, for code that reads its settings or starts processes with it."""
    return os.environ  # noqa: TID251 - not read here, only passed on


def print_error(command: str, message: object) -> None:
    """Print the error of a command to standard error, for instance `pyworker run: …`."""
    print(f"pyworker {command}: {message}", file=sys.stderr)


def add_cost_argument(parser: argparse.ArgumentParser, default: float) -> None:
    """Add `--cost`, a request's workload, to `parser`."""
    parser.add_argument(
        "--cost",
        type=_cost,
        default=default,
        metavar="NUMBER",
        help=f"a request's workload, in the worker's unit (default {default:g})",
    )


def port(text: str) -> int:
    """Parse a port, 1 to 65535."""
    return _integer(text, 1, 65535, "a port")


def port_to_listen_on(text: str) -> int:
    """Parse a port, 0 to 65535; 0 is any free port."""
    return _integer(text, 0, 65535, "a port")


def worker_count(text: str) -> int:
    """Parse a number of workers, 1 to MAX_WORKERS."""
    return _integer(text, 1, MAX_WORKERS, "a number of workers")


def _integer(text: str, lowest: int, highest: int, noun: str) -> int:
    if not (text.isascii() and text.isdigit() and lowest <= int(text) <= highest):
        raise argparse.ArgumentTypeError(f"must be {noun}, {lowest} to {highest}")
    return int(text)


def http_url(text: str) -> str:
    """Parse an http or https URL."""
    if not is_http_url(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an http(s) URL")
    return text


def route(text: str) -> str:
    """Parse a worker's route; a missing slash at its beginning is added."""
    return text if text.startswith("/") else f"/{text}"


def not_empty(text: str) -> str:
    """Accept any text but an empty one."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def json_object(text: str) -> Mapping[str, Any]:
    """Parse a JSON object, which is the text itself, in the file `@PATH`, or, for "-", in standard input."""
    source, text = _source_of(text)
    try:
        value: object = json.loads(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{source}is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{source}must be a JSON object: {{"name": value}}')
    return cast("dict[str, Any]", value)


def _source_of(text: str) -> tuple[str, str]:
    """The name of the source that `text` gives, for messages, and what is in it."""
    if text == "-":
        return "standard input ", sys.stdin.read()
    if not text.startswith("@"):
        return "", text
    path = text[1:]
    try:
        return f"{path} ", Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not UTF-8"
        raise argparse.ArgumentTypeError(f"{path} can't be read: {reason}") from e


def positive(text: str) -> float:
    """Parse a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("must be a finite number above 0")
    return number


def _cost(text: str) -> float:
    """Parse a workload: a finite number, 0 or more."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError("must be a finite number, 0 or more")
    return number
