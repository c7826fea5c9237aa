"""The load test on a command line: its arguments, its life from start to Ctrl-C, and its exit status."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from lib.client import target_from_args
from lib.runtime.clock import Clock
from lib.runtime.file_limit import raise_file_limit
from lib.tools.command import EXIT_FAILED, EXIT_INTERRUPTED
from lib.tools.load_plot import CannotPlot, check_plot, save_plot
from lib.tools.load_report import document, lines
from lib.tools.load_screen import watch
from lib.tools.load_test import LoadTest, Plan, payload_maker

DEFAULT_COUNT = 1
DEFAULT_RPS = 1.0


@dataclass(frozen=True)
class Output:
    """What is told at the end besides the summary, or in its place."""

    as_json: bool = False
    plot: Path | None = None


_SUMMARY = Output()
# What sets our arguments apart from those that authors add.
_DEST = "load_test_"


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` what `run_load_test` reads.

    `-n` and `-rps` are always there; the others yield to an author's own of the same name.
    """
    parser.add_argument(
        "-n", type=_count, help="requests in all (default 1; with -c: N; with --duration: no limit)"
    )
    parser.add_argument(
        "-rps", type=_positive, help="requests a second, however slow answers are (default 1)"
    )
    _offer(
        parser,
        *("-c", "--concurrency"),
        type=_count,
        metavar="N",
        help="in place of -rps: N requests at once, each followed by the next",
    )
    _offer(parser, "--duration", type=_positive, metavar="SECONDS", help="for so long, or until -n are sent")
    _offer(parser, "--json", action="store_true", help="print the summary as JSON")
    _offer(parser, "--plot", type=Path, metavar="FILE", help="draw it: .png, .svg or .pdf (extra plot)")


def run_load_test(parser: argparse.ArgumentParser, args: argparse.Namespace, route: str, payload: Any) -> int:
    """Run what the arguments ask for on the worker's `route`; gives the exit status.

    `payload` is what `payload_maker` takes. The status is 0 if every request succeeded. Arguments that
    can't work are told by `parser`, with status 2, before anything is sent.
    """
    plan, output = plan_of(parser, args, route), output_of(parser, args)
    return run_and_print(plan, payload, output)


def plan_of(parser: argparse.ArgumentParser, args: argparse.Namespace, route: str) -> Plan:
    """The plan that the arguments ask for."""
    concurrency, duration_s = _own(args, "concurrency"), _own(args, "duration")
    if concurrency is not None and args.rps is not None:
        parser.error("argument -c: not allowed with argument -rps")
    return Plan(
        target_from_args(parser, args),
        route,
        args.n if args.n is not None or duration_s is not None else concurrency or DEFAULT_COUNT,
        DEFAULT_RPS if args.rps is None and concurrency is None else args.rps,
        concurrency=concurrency,
        duration_s=duration_s,
    )


def output_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Output:
    """How the arguments want it told; where a picture can't be made, `parser` says so."""
    plot: Path | None = _own(args, "plot")
    if plot is not None:
        try:
            check_plot(plot)
        except CannotPlot as e:
            parser.error(f"argument --plot: {e}")
    return Output(bool(_own(args, "json")), plot)


def run_and_print(plan: Plan, payload: Any, output: Output = _SUMMARY, *, clock: Clock | None = None) -> int:
    """Run the plan and print what it has shown, also when it is interrupted; gives the exit status."""
    raise_file_limit()
    test = LoadTest(plan, payload_maker(payload), clock=clock)
    interrupted = asyncio.run(_run(test))
    if output.as_json:
        print(json.dumps(document(test, interrupted=interrupted), indent=2))
    else:
        print("\n".join(lines(test, interrupted=interrupted)))
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
    """Whether Ctrl-C ended it; requests in flight are given up then."""
    ended = False
    async with anyio.create_task_group() as group:
        with _on_ctrl_c(group.cancel_scope.cancel):
            group.start_soon(watch, test, sys.stderr)
            await test.run()
            ended = True
            group.cancel_scope.cancel()
    return not ended


@contextmanager
def _on_ctrl_c(stop: Callable[[], object]) -> Generator[None, None, None]:
    """Call `stop`, in place of an exception in whatever happens to run. Only a main thread hears of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _offer(parser: argparse.ArgumentParser, *names: str, **options: Any) -> None:
    """Add an argument under as many of its names as are free; `_own` reads it."""
    dest = _DEST + names[-1].removeprefix("--")
    for wanted in (names, names[-1:]):
        with suppress(argparse.ArgumentError):
            parser.add_argument(*wanted, dest=dest, **options)
            return


def _own(args: argparse.Namespace, name: str) -> Any:
    """What was given for an argument of ours; None where an author's has its name."""
    return getattr(args, _DEST + name, None)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError("must be a finite number above 0")
    return number
