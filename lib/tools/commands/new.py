"""`pyworker new`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lib.tools.command import EXIT_USAGE, Command


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.HelpFormatter
    parser.add_argument("name", metavar="NAME", help="the worker's name, and the folder's")


def run(_: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from lib.local.screen import Screen
    from lib.tools.scaffold import CannotMake, make_worker

    try:
        made = make_worker(args.name, Path.cwd())
    except CannotMake as e:
        print(f"pyworker new: {e}", file=sys.stderr)
        return EXIT_USAGE
    screen, name = Screen(), args.name
    screen.title(f"{name}/ is a worker: {', '.join(path.name for path in made)}")
    screen.line("Run its model server and the worker, one terminal each:")
    screen.line()
    screen.command(f"python {name}/model_server.py")
    screen.command(f"pyworker run {name}/worker.py --local")
    screen.line()
    screen.line("Send a request, and see what the worker makes of it, in a third:")
    screen.line()
    screen.command("""pyworker request /generate_stream '{"prompt": "Once upon a time"}' -l""")
    screen.command("pyworker status")
    screen.line()
    screen.line(f"Then make it yours: {name}/README.md tells how, and `pytest {name}` that it works.")
    return 0


COMMAND = Command(
    "a new worker that passes its own test",
    "Makes a folder with a worker, its test, a small model server to begin with, and a README.md that tells "
    "the next steps.",
    configure,
    run,
)
