"""`pyworker engine`: the local engine, and with `--autoscale` also workers on this machine."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lib.tools.command import (
    EXIT_SIGNAL,
    EXIT_USAGE,
    Command,
    environment,
    not_empty,
    port_to_listen_on,
    print_error,
    worker_count,
)

if TYPE_CHECKING:
    from lib.local.engine import LocalEngine


def configure(parser: argparse.ArgumentParser) -> None:
    from lib.local.engine import DEFAULT_ENDPOINT
    from lib.local.serving import DEFAULT_PORT

    parser.add_argument(
        "--port",
        type=port_to_listen_on,
        default=DEFAULT_PORT,
        help="the port to listen on; 0 is any free port",
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument(
        "--allow-host",
        metavar="NAME",
        type=_host_name,
        action="append",
        default=argparse.SUPPRESS,
        help="another name by which it may be asked for; may be given several times",
    )
    parser.add_argument(
        "--scheme",
        choices=("full", "url"),
        default="full",
        help="what its signatures cover: all fields, or the URL only",
    )
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        type=not_empty,
        default=argparse.SUPPRESS,
        help="the only API key to accept (default: any key is accepted)",
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
        type=worker_count,
        default=argparse.SUPPRESS,
        help="start and stop up to N workers on this machine, depending on the load",
    )
    parser.add_argument(
        "--worker",
        metavar="WORKER",
        type=not_empty,
        default=argparse.SUPPRESS,
        help="with --autoscale: the worker to start, a file, a folder or a name, as for `pyworker run`; all "
        "use the model server that the environment names (default: hello_world, each worker with a model "
        "server of its own)",
    )


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from lib.local.serving import CannotListen
    from lib.runtime.logs import configure_logging
    from lib.tools.worker_file import NoSuchWorker

    if "worker" in args and "autoscale" not in args:
        parser.error("argument --worker: needs --autoscale N")
    configure_logging("INFO", "text")
    try:
        return asyncio.run(_run(args))
    except NoSuchWorker as e:
        print_error("engine", e)
        return EXIT_USAGE
    except CannotListen as e:
        print_error("engine", e)
        return e.exit_status


async def _run(args: argparse.Namespace) -> int:
    """Serve until a signal asks the process to stop; return the exit status for that signal."""
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
            allowed_hosts=getattr(args, "allow_host", ()),
            while_serving=while_serving,
        )
    return EXIT_SIGNAL + signals[0]


@contextmanager
def _autoscaled(
    args: argparse.Namespace,
) -> Generator[Callable[[LocalEngine, str], Awaitable[None]] | None, None, None]:
    """A function that starts and stops workers beside the engine, or None without `--autoscale`.

    Raises `NoSuchWorker`.
    """
    if "autoscale" not in args:
        yield None
        return
    from lib.local.autoscale import Autoscaler, hello_world_launcher, worker_file_launcher
    from lib.local.serving import print_line
    from lib.tools.worker_file import find

    environ = environment()
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


def _host_name(text: str) -> str:
    """Parse the name of a host, without a port."""
    from lib.runtime.hosts import parse_host_name

    try:
        return parse_host_name(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e


def _endpoint_name(text: str) -> str:
    """Parse the name of an endpoint."""
    from lib.local.messages import wrong_endpoint_name

    if problem := wrong_endpoint_name(text):
        raise argparse.ArgumentTypeError(problem)
    return text


COMMAND = Command(
    "run a stand-in for the serverless engine, for development",
    "Runs the local engine until Ctrl-C: it signs requests, receives workers' reports and chooses a worker "
    "for each request. A worker joins it when it is started with the engine's URL as REPORT_ADDR; "
    "http://HOST:PORT/e/NAME joins the endpoint NAME. With --autoscale it starts and stops workers itself, "
    "depending on the load. An OpenAI client reaches the workers of NAME with "
    "http://HOST:PORT/openai/NAME/v1 as its base URL. It is not a scheduler for production.",
    configure,
    run,
)
