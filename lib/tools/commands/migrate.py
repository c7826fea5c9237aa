"""`pyworker migrate`: rewrite the imports of a worker that was written for the package `vastai`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lib.runtime.exit_status import EXIT_FAILED
from lib.tools.command import EXIT_USAGE, Command, print_error

if TYPE_CHECKING:
    from lib.tools.migration_files import FileResult


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.HelpFormatter
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="FILE", help="a Python file, or a folder of them"
    )
    parser.add_argument("--write", action="store_true", help="change the files, instead of printing a diff")


def run(_: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from lib.tools.migration_files import migrate_file, python_files

    paths: list[Path] = args.paths
    missing = [path for path in paths if not path.exists()]
    if missing:
        print_error("migrate", f"there is no {', no '.join(map(str, missing))}")
        return EXIT_USAGE
    results = [migrate_file(path) for path in python_files(paths)]
    failed = False
    for result in results:
        name = _shown(result.path)
        if result.changed and not args.write:
            sys.stdout.write(result.diff(name))
        elif result.changed:
            failed |= not _written(result, name)
    sys.stdout.flush()  # before the notes, also where both go to one file
    failed |= _print_notes(results, paths)
    _print_summary(results, args.write)
    return EXIT_FAILED if failed else 0


def _written(result: FileResult, name: str) -> bool:
    try:
        result.write()
    except OSError as e:
        print_error("migrate", f"{name} can't be written: {e.strerror}")
        return False
    print(f"rewritten: {name}")
    return True


def _print_notes(results: Sequence[FileResult], paths: Sequence[Path]) -> bool:
    """Print what needs a hand; return whether some of it keeps the worker from running."""
    from lib.tools.migration_files import install_notes, other_files

    breaks = False
    for result in results:
        name = _shown(result.path)
        if result.failure:
            print(f"{name}: {result.failure}", file=sys.stderr)
        for note in result.notes:
            print(f"{name}:{note.line}: {note.text}", file=sys.stderr)
        breaks |= bool(result.failure) or any(note.breaks for note in result.notes)
    needing = [_shown(result.path) for result in results if result.still_imports]
    why = f"still needed by {', '.join(needing)}" if needing else "PyWorker doesn't need it"
    for path in other_files(paths):
        for note in install_notes(path):
            print(f"{_shown(path)}:{note.line}: change by hand ({why}): {note.text}", file=sys.stderr)
    return breaks


def _print_summary(results: Sequence[FileResult], write: bool) -> None:
    changed = sum(result.changed for result in results)
    if not changed:
        print(f"nothing to rewrite in {len(results)} file{'s' * (len(results) != 1)}", file=sys.stderr)
    elif not write:
        print(f"{changed} of {len(results)} to rewrite: do so with --write", file=sys.stderr)


def _shown(path: Path) -> str:
    """`path` relative to the current folder, or as it is if it is outside."""
    shown = os.path.relpath(path)
    return str(path) if shown.startswith("..") else shown


COMMAND = Command(
    "rewrite the imports of a worker that was written for the package vastai",
    "Rewrites the imports of the package vastai, and of copies of its worker's library, to PyWorker's "
    "modules, in Python files and in folders of them. Prints a diff on standard output. On standard error it "
    "prints what else needs a hand: names and fields that PyWorker lacks, and the lines of requirements and "
    "start scripts that name the package. Comments and formatting stay. The exit status is 1 if a file can't "
    "be parsed, or can't run before it is changed by hand.",
    configure,
    run,
)
