"""`pyworker engine`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lib.tools.command import EXIT_SIGNAL, EXIT_USAGE, Command, not_empty, port

if TYPE_CHECKING:
    from lib.local.engine import LocalEngine

# Each is a process or two.
MAX_WORKERS = 64


def configure(parser: argparse.ArgumentParser) -> None:
    from lib.local.engine import DEFAULT_ENDPOINT
    from lib.local.serving import DEFAULT_PORT

    parser.add_argument("--port", type=port, default=DEFAULT_PORT, help="where to listen; 0: any free port")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument(
        "--scheme", choices=("full", "url"), default="full", help="the form of the signatures it gives"
    )
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        type=not_empty,
        default=argparse.SUPPRESS,
        help="the only API key to let in; without it, any is",
    )
    parser.add_argument(
        "--endpoint",
        metavar="NAME",
        type=_endpoint_name,
        default=DEFAULT_ENDPOINT,
        help="the endpoint that workers join",
    )
    parser.add_argument(
        "--autoscale",
        metavar="N",
        type=_workers,
        default=argparse.SUPPRESS,
        help="start and stop up to N workers on this machine, by the load",
    )
    parser.add_argument(
        "--worker",
        metavar="WORKER",
        type=not_empty,
        default=argparse.SUPPRESS,
        help="with --autoscale: which worker, as for `pyworker run`; its model server is the one that the "
        "environment names. Without it, hello_world, each with a model server of its own",
    )


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from lib.local.serving import CannotListen
    from lib.runtime.logs import configure_logging
    from lib.tools.worker_file import NoSuchWorker

    if "worker" in args and "autoscale" not in args:
        parser.error("argument --worker: goes with --autoscale")
    configure_logging("INFO", "text")
    try:
        return asyncio.run(_run(args))
    except NoSuchWorker as e:
        print(f"pyworker engine: {e}", file=sys.stderr)
        return EXIT_USAGE
    except CannotListen as e:
        print(f"pyworker engine: {e}", file=sys.stderr)
        return e.exit_status


async def _run(args: argparse.Namespace) -> int:
    """Serve until a signal asks for the end; gives what a shell makes of it."""
    import anyio

    from lib.local.processes import on_stop_signal
    from lib.local.serving import run_engine

    signals: list[int] = []
    with anyio.CancelScope() as scope, _autoscaled(args) as while_serving:

        def stop(signum: int) -> None:
            signals.append(signum)
            scope.cancel()

        on_stop_signal(stop)
        await run_engine(
            args.host,
            args.port,
            scheme=args.scheme,
            api_key=getattr(args, "api_key", None),
            endpoint=args.endpoint,
            while_serving=while_serving,
        )
    return EXIT_SIGNAL + signals[0]


@contextmanager
def _autoscaled(
    args: argparse.Namespace,
) -> Generator[Callable[[LocalEngine, str], Awaitable[None]] | None, None, None]:
    """What starts and stops workers beside the engine, if that is asked for. Raises `NoSuchWorker`."""
    if "autoscale" not in args:
        yield None
        return
    from lib.local.autoscale import Autoscaler, hello_world_launcher, worker_file_launcher
    from lib.local.serving import print_line
    from lib.tools.worker_file import find

    environ = os.environ  # noqa: TID251 - not read here, but handed on to the processes started
    target = find(args.worker, Path.cwd(), "").path if "worker" in args else None
    with tempfile.TemporaryDirectory(prefix="pyworker-engine-") as folder:

        async def autoscale(engine: LocalEngine, url: str) -> None:
            directory = Path(folder)
            launch = (
                hello_world_launcher(url, environ, directory)
                if target is None
                else worker_file_launcher(str(target), url, environ, directory)
            )
            await Autoscaler(engine, args.endpoint, args.autoscale, launch, print_line).run()

        yield autoscale


def _workers(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_WORKERS):
        raise argparse.ArgumentTypeError(f"must be 1 to {MAX_WORKERS}")
    return int(text)


def _endpoint_name(text: str) -> str:
    from lib.local.messages import wrong_endpoint_name

    if what := wrong_endpoint_name(text):
        raise argparse.ArgumentTypeError(what)
    return text


COMMAND = Command(
    "a stand-in for the serverless engine, for development",
    "Runs the local engine until Ctrl-C: it signs requests, takes workers' reports and picks the worker "
    "for a request. A worker joins it when it is started with the engine's address as REPORT_ADDR; "
    "http://HOST:PORT/e/NAME joins the endpoint NAME. With --autoscale it starts workers itself, as many as "
    "the load wants. OpenAI's clients reach the workers of NAME with http://HOST:PORT/openai/NAME/v1 as "
    "their base URL. It is not a scheduler for production.",
    configure,
    run,
)
