"""Compares this worker with the model server itself, nginx and the official worker, in one run.

usage: python -m benchmarks [--only SUBJECT,…] [--loads LOAD,…] [--rounds N] [--quick]
                            [--json FILE] [--plot FILE] [--write]
       python -m benchmarks --profile LOAD
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio
from rich.console import Console

from benchmarks import loads
from benchmarks.frames import print_profile, profile
from benchmarks.jobs import WrongAnswers
from benchmarks.loads import chosen
from benchmarks.plot import draw
from benchmarks.processes import ProcessFailed
from benchmarks.report import RESULTS_FILE, markdown, print_report
from benchmarks.results import Results
from benchmarks.rounds import Plan, run
from benchmarks.subjects import SUBJECTS, Subject
from benchmarks.targets import targets
from lib.runtime.file_limit import raise_file_limit

DEFAULT_ROUNDS = 5
# Wide enough for the tables where the output is no terminal.
PIPE_WIDTH = 250


def main() -> None:
    args = _parser().parse_args()
    # Like Ctrl-C, so that no process is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = _run(args)
    except (ProcessFailed, WrongAnswers) as e:
        sys.exit(f"the benchmark can't go on: {e}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Compare this worker with the model server itself, nginx and the official worker.",
    )
    add = parser.add_argument
    names = ", ".join(subject.name for subject in SUBJECTS)
    known = ", ".join(dict.fromkeys(load.group for load in loads.FULL))
    each = ", ".join(load.name for load in loads.FULL)
    add("--only", type=_names, metavar="SUBJECT,…", help=f"measure these subjects only: {names}")
    add(
        "--loads",
        type=_names,
        metavar="LOAD,…",
        help=f"these loads only, by group ({known}) or name ({each})",
    )
    add(
        "--rounds", type=_positive, metavar="N", help=f"number of rounds (default {DEFAULT_ROUNDS}; quick: 1)"
    )
    add(
        "--quick",
        action="store_true",
        help="small loads: whether the benchmark works, not how fast anything is",
    )
    add("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    add("--plot", type=Path, metavar="FILE", help="also measure latency at concurrency 1 to 64, and draw it")
    add("--write", action="store_true", help=f"write {RESULTS_FILE.name} beside the benchmarks")
    add("--profile", metavar="LOAD", help="profile this worker under one load instead of measuring")
    return parser


def _run(args: argparse.Namespace) -> int:
    """Run what `args` ask for; return the exit status."""
    raise_file_limit()
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    try:
        subjects = _chosen_subjects(args.only)
        every_load = loads.QUICK if args.quick else loads.FULL
        some = chosen(every_load, args.loads) if args.loads else list(every_load)
        to_profile = chosen(every_load, [args.profile])[:1] if args.profile else []
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2
    if args.plot and not importlib.util.find_spec("matplotlib"):
        print("--plot needs matplotlib: install the extra `plot`", file=sys.stderr)
        return 2
    if args.write and (args.quick or args.only or args.loads):
        print("--write needs a run of all loads on all subjects, and no --quick", file=sys.stderr)
        return 2
    if to_profile:
        print_profile(anyio.run(profile, to_profile[0]), console)
        return 0
    some += loads.curve(args.quick) if args.plot else ()
    plan = Plan(subjects, some, args.rounds or (1 if args.quick else DEFAULT_ROUNDS), args.quick)
    results = anyio.run(run, plan, partial(print, file=sys.stderr, flush=True))
    print_report(results, console)
    _write(results, args)
    return 1 if results.failed else 0


def _write(results: Results, args: argparse.Namespace) -> None:
    if args.json:
        figures = {**results.as_json(), "targets": [target.as_json() for target in targets(results)]}
        args.json.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    if args.plot:
        draw(results, args.plot)
    if args.write:
        RESULTS_FILE.write_text(markdown(results))


def _chosen_subjects(names: Sequence[str] | None) -> list[Subject]:
    """The subjects of these names, or all. Raises `ValueError` for another name."""
    known = [subject.name for subject in SUBJECTS]
    if unknown := sorted(set(names or ()) - set(known)):
        raise ValueError(f"no subject is called {', '.join(unknown)}; there are {', '.join(known)}")
    return [subject for subject in SUBJECTS if names is None or subject.name in names]


def _names(text: str) -> list[str]:
    return [name for part in text.split(",") if (name := part.strip())]


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


if __name__ == "__main__":
    main()
