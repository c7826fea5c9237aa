"""Processes of our own: their ports, their start, their logs, and their end, whatever happens.

Owns children as such. Which programs they run is demo.py's, beside.py's and trial.py's.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anyio

T = TypeVar("T")

# As much of a log says why its process failed, in lines.
TAIL_LINES = 15
# A child that was asked to end has so long, in seconds, and is killed then.
END_LIMIT_S = 5.0
# Work often fails because a child is ending: so long, in seconds, it has to show that.
GRACE_S = 1.0


class ChildFailed(Exception):
    """What went wrong, and the last lines of the log of the child that it went wrong with."""

    def __init__(self, what: str, child: Child) -> None:
        lines = child.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        tail = "\n".join(f"  | {line}" for line in lines) or "  (it is empty)"
        super().__init__(f"{what}\nThe end of the {child.name}'s log:\n{tail}")


class Interrupted(Exception):
    """A signal ended the work."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by signal {signum}")
        self.signum = signum


@dataclass(frozen=True)
class Child:
    """A process; `log` has all that it writes to its standard output and error."""

    name: str
    process: asyncio.subprocess.Process
    log: Path


@contextmanager
def free_port(wanted: int = 0) -> Generator[int, None, None]:
    """A port for a server that will bind it: `wanted`, or where that is 0 or not to be had any other.

    It is bound here and never listened on, so that the system gives it to nobody else inside the block;
    servers set SO_REUSEADDR, and so may bind it as well.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind(("", wanted))
        except OSError as e:
            if e.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            holder.bind(("", 0))
        yield holder.getsockname()[1]


@asynccontextmanager
async def python_module(
    name: str,
    module: str,
    *args: str,
    environ: Mapping[str, str],
    log: Path,
    end_limit_s: float = END_LIMIT_S,
) -> AsyncGenerator[Child, None]:
    """`python -m module args` in the log's directory; it has ended when the block has.

    It is in a session of its own: a terminal's Ctrl-C is for us, and children are ended in order.
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
    """`command`, its output ours; it has ended when the block has, and gets no signal from a terminal."""
    process = await asyncio.create_subprocess_exec(
        *command, env=environ, stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield process
    finally:
        await _end(process, END_LIMIT_S)


def signals_asked(stop: Callable[[int], object]) -> None:
    """Have `stop` called with the number of each signal that asks for an end."""
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, stop, signum)


async def while_running(
    work: Coroutine[Any, Any, T], children: Sequence[Child], stop: asyncio.Future[int]
) -> T:
    """What `work` gives; it is cancelled when a child ends before it, or `stop` is given a signal's number.

    Raises `ChildFailed` and `Interrupted` then.
    """
    story = asyncio.ensure_future(work)
    ends = [asyncio.ensure_future(child.process.wait()) for child in children]
    try:
        await asyncio.wait({story, stop, *ends}, return_when=asyncio.FIRST_COMPLETED)
        if stop.done():
            raise Interrupted(stop.result())
        if story.done() and story.exception() is None:
            return story.result()
        await asyncio.wait(ends, timeout=GRACE_S, return_when=asyncio.FIRST_COMPLETED)
        for child in children:
            if child.process.returncode is not None:
                raise ChildFailed(f"the {child.name} {_how(child.process.returncode)}", child)
        return story.result()
    finally:
        for task in (story, *ends):
            task.cancel()
        await asyncio.gather(story, *ends, return_exceptions=True)


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
        process.kill()
        await process.wait()


def _how(status: int) -> str:
    return f"was ended by signal {-status}" if status < 0 else f"ended with exit status {status}"
