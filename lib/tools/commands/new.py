"""`pyworker new`: make the folder of a new worker."""

from __future__ import annotations

import argparse
from pathlib import Path

from lib.tools.command import EXIT_USAGE, Command, print_error


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.HelpFormatter
    parser.add_argument("name", metavar="NAME", help="the name of the worker and of its folder")


def run(_: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from lib.local.screen import Screen
    from lib.tools.scaffold import CannotMake, make_worker

    try:
        made = make_worker(args.name, Path.cwd())
    except CannotMake as e:
        print_error("new", e)
        return EXIT_USAGE
    screen, name = Screen(), args.name
    screen.title(f"{name}/ is a worker: {', '.join(path.name for path in made)}")
    screen.line("Run its model server and the worker, each in a terminal of its own:")
    screen.line()
    screen.command(f"python {name}/model_server.py")
    screen.command(f"pyworker run {name}/worker.py --local")
    screen.line()
    screen.line("In a third terminal, send a request, and see what the worker is doing:")
    screen.line()
    screen.command("""pyworker request /generate_stream '{"prompt": "Once upon a time"}' -l""")
    screen.command("pyworker status")
    screen.line()
    screen.line(f"{name}/README.md lists the next steps; `pytest {name}` tests the worker.")
    return 0


COMMAND = Command(
    "make a new worker that passes its own test",
    "Makes a folder with a worker, its test, a small model server to begin with, and a README.md with the "
    "next steps.",
    configure,
    run,
)
