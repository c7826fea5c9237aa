"""Child processes: free ports, start, logs, and a stop that is certain.

Owns the life of a child process. Does not own the programs (hello_world.py, autoscale.py,
lib/tools/run_local.py, lib/testing.py).
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anyio

T = TypeVar("T")

# Lines from the end of a log that are shown when its process fails.
TAIL_LINES = 15
# Seconds between SIGTERM and SIGKILL for a child that doesn't end.
END_LIMIT_S = 5.0
# After a failure, seconds to wait for a child to exit: its exit is often the cause of the failure.
GRACE_S = 1.0


class ChildFailed(Exception):
    """A failure of a child process; its text includes the last lines of the child's log."""

    def __init__(self, problem: str, child: Child) -> None:
        lines = child.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        tail = "\n".join(f"  | {line}" for line in lines) or "  (it is empty)"
        super().__init__(f"{problem}\nThe end of the {child.name}'s log:\n{tail}")


class Interrupted(Exception):
    """The work was stopped by a signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by signal {signum}")
        self.signum = signum


@dataclass(frozen=True)
class Child:
    """A child process; `log` receives its standard output and standard error."""

    name: str
    process: asyncio.subprocess.Process
    log: Path


@contextmanager
def free_port(wanted: int = 0) -> Generator[int, None, None]:
    """Reserve a port for a server: `wanted`, or a free one if that is 0, in use or forbidden.

    Where the system allows it, as Linux does, the port stays bound here without listening, so that it is
    assigned to nobody else until the context is left: servers set SO_REUSEADDR and can bind it as well.
    """
    with ExitStack() as stack:
        holder = stack.enter_context(_bound(wanted))
        port: int = holder.getsockname()[1]
        if not _can_be_bound_twice(port):
            stack.close()
        yield port


def _bound(port: int) -> socket.socket:
    """A socket that is bound to `port`, or to a free one if that is 0, in use or forbidden."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind(("", port))
    except OSError as e:
        if e.errno not in (errno.EADDRINUSE, errno.EACCES):
            holder.close()
            raise
        holder.bind(("", 0))
    return holder


def _can_be_bound_twice(port: int) -> bool:
    """Whether another socket can be bound to `port`, which one is bound to already."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", port))
        except OSError:
            return False
    return True


@asynccontextmanager
async def python_module(
    name: str,
    module: str,
    *args: str,
    environ: Mapping[str, str],
    log: Path,
    end_limit_s: float = END_LIMIT_S,
) -> AsyncGenerator[Child, None]:
    """Run `python -m module args` in the log's directory; leaving the context stops it.

    It gets its own session, so that Ctrl-C in a terminal reaches only the parent, which stops its children in
    order.
    """
    process = await _start([sys.executable, "-m", module, *args], environ, log)
    try:
        yield Child(name, process, log)
    finally:
        await _end(process, end_limit_s)


@asynccontextmanager
async def attached(
    command: Sequence[str], environ: Mapping[str, str]
) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    """Run `command` with this process's output; leaving the context stops it.

    It gets its own session, and so no signals from the terminal.
    """
    process = await asyncio.create_subprocess_exec(
        *command, env=environ, stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield process
    finally:
        await _end(process, END_LIMIT_S)


def on_stop_signal(stop: Callable[[int], object]) -> None:
    """Call `stop` with the signal number on each SIGINT, SIGTERM and SIGHUP."""
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, stop, signum)


async def while_running(
    work: Coroutine[Any, Any, T], children: Sequence[Child], stop: asyncio.Future[int]
) -> T:
    """Return the result of `work`; cancel it if a child exits first or `stop` is set to a signal number.

    Raises `ChildFailed` if a child has exited, and `Interrupted` if `stop` is set.
    """
    task = asyncio.ensure_future(work)
    ends = [asyncio.ensure_future(child.process.wait()) for child in children]
    try:
        await asyncio.wait({task, stop, *ends}, return_when=asyncio.FIRST_COMPLETED)
        if stop.done():
            raise Interrupted(stop.result())
        if task.done() and task.exception() is None:
            return task.result()
        await asyncio.wait(ends, timeout=GRACE_S, return_when=asyncio.FIRST_COMPLETED)
        for child in children:
            if child.process.returncode is not None:
                raise ChildFailed(f"the {child.name} {_exit_text(child.process.returncode)}", child)
        return task.result()
    finally:
        for pending in (task, *ends):
            pending.cancel()
        await asyncio.gather(task, *ends, return_exceptions=True)


async def _start(command: Sequence[str], environ: Mapping[str, str], log: Path) -> asyncio.subprocess.Process:
    with log.open("wb") as output:
        return await asyncio.create_subprocess_exec(
            *command,
            cwd=log.parent,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


async def _end(process: asyncio.subprocess.Process, limit_s: float) -> None:
    if process.returncode is None:
        process.terminate()
        with anyio.move_on_after(limit_s):
            await process.wait()
    if process.returncode is None:
        # It leads a session, and so a group: what it has started there, as a model server, must not stay.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _exit_text(status: int) -> str:
    return f"was ended by signal {-status}" if status < 0 else f"ended with exit status {status}"
