"""The load test's command line: arguments, progress display, interruption, output and exit status.

It is used by `pyworker load-test` and by lib/test_utils.py. The load test itself is in
lib/tools/load_test.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import anyio

from lib.client import target_from_args
from lib.runtime.clock import Clock
from lib.runtime.exit_status import EXIT_FAILED
from lib.runtime.file_limit import raise_file_limit
from lib.tools.command import EXIT_INTERRUPTED, positive
from lib.tools.interrupts import on_ctrl_c
from lib.tools.joined import NobodyJoined, check_joined
from lib.tools.load_plot import CannotPlot, check_plot, save_plot
from lib.tools.load_report import summary_json, summary_lines
from lib.tools.load_screen import show_progress
from lib.tools.load_test import DEFAULT_TIMEOUT_S, LoadPlan, LoadTest, payload_maker
from lib.tools.request_style import PLAIN, RequestStyle

DEFAULT_COUNT = 1
DEFAULT_RPS = 1.0


@dataclass(frozen=True)
class OutputOptions:
    """The form of the summary, text or JSON, and the file for a plot, if one is wanted."""

    as_json: bool = False
    plot: Path | None = None


_TEXT_ONLY = OutputOptions()
# Begins the names under which argparse stores our arguments, so that an author's arguments can't collide.
_DEST = "load_test_"


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `run_load_test` reads to `parser`.

    `-n` and `-rps` are always added. Any other is left out if the author has added an argument of that name.
    """
    parser.add_argument(
        "-n", type=_count, help="number of requests (default 1; with -c: N; with --duration: no limit)"
    )
    parser.add_argument(
        "-rps",
        type=positive,
        help="requests per second, sent on time however slow the answers are (default 1)",
    )
    _add_if_free(
        parser,
        *("-c", "--concurrency"),
        type=_count,
        metavar="N",
        help="in place of -rps: keep N requests in flight",
    )
    _add_if_free(
        parser,
        "--duration",
        type=positive,
        metavar="SECONDS",
        help="stop sending after this time, or after -n requests if that is sooner",
    )
    _add_if_free(
        parser,
        "--timeout",
        type=positive,
        metavar="SECONDS",
        help="count a request without a complete answer after this time as timed out, and wait so long for "
        f"a worker to join the endpoint (default: {DEFAULT_TIMEOUT_S:g} s, without waiting for one to join)",
    )
    _add_if_free(parser, "--json", action="store_true", help="print the summary as JSON")
    _add_if_free(
        parser,
        "--plot",
        type=Path,
        metavar="FILE",
        help="save a plot as .png, .svg or .pdf (needs the extra plot)",
    )


def run_load_test(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    route: str,
    payload: Any,
    style: RequestStyle = PLAIN,
    on_end: Callable[[LoadTest], object] | None = None,
) -> int:
    """Run the load test that `args` describe on the worker's `route`; return the exit status.

    `payload` is one payload, or a class with `for_test` (see `payload_maker`); `style` is how each is sent.
    `on_end` is called with the test after its summary was printed.
    The status is 0 if every request succeeded, 1 if one failed, no worker has joined the endpoint or the plot
    could not be written, 130 after Ctrl-C. For wrong arguments, `parser` prints an error and exits with
    status 2 before any request is sent.
    """
    plan, output = plan_from_args(parser, args, route, style), output_from_args(parser, args)
    return run_and_print(plan, payload, output, on_end=on_end)


def plan_from_args(
    parser: argparse.ArgumentParser, args: argparse.Namespace, route: str, style: RequestStyle = PLAIN
) -> LoadPlan:
    """Return the plan that `args` describe; for wrong arguments, exit with status 2."""
    concurrency, duration_s = _own(args, "concurrency"), _own(args, "duration")
    timeout_s = _own(args, "timeout")
    if concurrency is not None and args.rps is not None:
        parser.error("argument -c: not allowed with argument -rps")
    return LoadPlan(
        target_from_args(parser, args),
        route,
        args.n if args.n is not None or duration_s is not None else concurrency or DEFAULT_COUNT,
        DEFAULT_RPS if args.rps is None and concurrency is None else args.rps,
        DEFAULT_TIMEOUT_S if timeout_s is None else timeout_s,
        concurrency=concurrency,
        duration_s=duration_s,
        style=style,
        waits_for_join=timeout_s is not None,
    )


def output_from_args(parser: argparse.ArgumentParser, args: argparse.Namespace) -> OutputOptions:
    """Return the output options in `args`; if no plot can be made, exit with status 2."""
    plot: Path | None = _own(args, "plot")
    if plot is not None:
        try:
            check_plot(plot)
        except CannotPlot as e:
            parser.error(f"argument --plot: {e}")
    return OutputOptions(bool(_own(args, "json")), plot)


def run_and_print(
    plan: LoadPlan,
    payload: Any,
    output: OutputOptions = _TEXT_ONLY,
    *,
    clock: Clock | None = None,
    on_end: Callable[[LoadTest], object] | None = None,
) -> int:
    """Run the plan, print the summary, also after Ctrl-C, and call `on_end`; return the exit status.

    Where no worker has joined the endpoint, only this is printed, to standard error.
    """
    raise_file_limit()
    test = LoadTest(plan, payload_maker(payload), clock=clock)
    try:
        interrupted = asyncio.run(_run(test))
    except NobodyJoined as e:
        print(e, file=sys.stderr)
        return EXIT_FAILED
    if output.as_json:
        print(json.dumps(summary_json(test, interrupted=interrupted), indent=2))
    else:
        print("\n".join(summary_lines(test, interrupted=interrupted)))
    if on_end is not None:
        on_end(test)
    if output.plot is not None:
        try:
            save_plot(test, output.plot, interrupted=interrupted)
        except CannotPlot as e:
            print(f"--plot: {e}", file=sys.stderr)
            return EXIT_FAILED
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if test.tally.failed else 0


async def _run(test: LoadTest) -> bool:
    """Run `test` with its progress display; return whether Ctrl-C interrupted it.

    Ctrl-C cancels the requests in flight. Raises `NobodyJoined`.
    """
    ended = False
    if not test.plan.waits_for_join:
        async with aiohttp.ClientSession() as http:
            await check_joined(http, test.plan.target)
    async with anyio.create_task_group() as group:
        with on_ctrl_c(group.cancel_scope.cancel):
            group.start_soon(show_progress, test, sys.stderr)
            await test.run()
            ended = True
            group.cancel_scope.cancel()
    return not ended


def _add_if_free(parser: argparse.ArgumentParser, *names: str, **options: Any) -> None:
    """Add an argument under those of its names that the author has not taken; `_own` reads it."""
    dest = _DEST + names[-1].removeprefix("--")
    for wanted in (names, names[-1:]):
        with suppress(argparse.ArgumentError):
            parser.add_argument(*wanted, dest=dest, **options)
            return


def _own(args: argparse.Namespace, name: str) -> Any:
    """The value of an argument of ours; None if an author's argument has its name."""
    return getattr(args, _DEST + name, None)


def _count(text: str) -> int:
    """Parse an integer, 1 or more."""
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise argparse.ArgumentTypeError("must be an integer, 1 or more")
    return int(text)
