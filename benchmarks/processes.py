"""The processes of a benchmark: starting and stopping them, ports, and the event loop that they run on.

Owns no command line: those are in subjects.py and system.py.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
import psutil

ROOT = Path(__file__).parent.parent
# Seconds that a process may take to print its port, and to end after SIGTERM.
START_LIMIT_S = 60.0
STOP_LIMIT_S = 10.0


class ProcessFailed(Exception):
    """A process of the benchmark failed; the benchmark can't go on."""


def run_fast(main: Callable[[], Awaitable[None]]) -> None:
    """Run `main` on uvloop, or on asyncio's own loop where uvloop isn't installed; Ctrl-C ends it quietly."""
    uses_uvloop = importlib.util.find_spec("uvloop") is not None
    try:
        anyio.run(main, backend_options={"use_uvloop": uses_uvloop})
    except KeyboardInterrupt:
        sys.exit(130)


def python(module: str, *args: str) -> list[str]:
    """The command line of a module of this package."""
    return [sys.executable, "-m", f"benchmarks.{module}", *args]


@dataclass(frozen=True)
class ChildProcess:
    """A process with pipes for its input and output, whose errors go to the file `errors`."""

    process: Process
    errors: Path

    def send_line(self, line: str) -> None:
        """Write a line to its input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    async def read_line(self, limit_s: float = START_LIMIT_S) -> bytes:
        """The next line of its output. Raises `ProcessFailed` if it ends or takes longer."""
        assert self.process.stdout is not None
        with anyio.move_on_after(limit_s):
            if line := await self.process.stdout.readline():
                return line
            raise await self.failure("ended")
        raise await self.failure(f"printed nothing for {limit_s:g} s")

    async def failure(self, what: str) -> ProcessFailed:
        """An exception that says what happened to the process, with the end of its errors."""
        errors = await anyio.Path(self.errors).read_text(errors="replace")
        return ProcessFailed(
            f"process {self.process.pid} ({self.errors.parent.name}) has {what}:\n{errors[-2000:]}"
        )


@asynccontextmanager
async def running(
    command: Sequence[str], folder: Path, env: Mapping[str, str] | None = None
) -> AsyncGenerator[ChildProcess, None]:
    """Run `command` in `folder`, which exists. Terminate it at the end of the block; kill it after 10 s."""
    errors = folder / "errors.log"
    with errors.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            stdin=PIPE,
            stdout=PIPE,
            stderr=file,
        )
    try:
        yield ChildProcess(process, errors)
    finally:
        with anyio.CancelScope(shield=True):
            await _stop(process)


async def _stop(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
    with anyio.move_on_after(STOP_LIMIT_S):
        await process.wait()
        return
    process.kill()
    await process.wait()


@contextmanager
def kept_apart(pid: int) -> Generator[None, None, None]:
    """Keep process `pid` on a processor of its own, and all others of the benchmarks off it, in the block.

    Does nothing with a single processor, and on systems that don't let processes be bound.
    """
    processors = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
    children = psutil.Process().children(recursive=True)
    if len(processors) < 2:
        yield
        return
    for child in children:
        _bind(child, processors[:1] if child.pid == pid else processors[1:])
    try:
        yield
    finally:
        for child in children:
            _bind(child, processors)


def _bind(process: psutil.Process, processors: Sequence[int]) -> None:
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        for thread in process.threads():
            os.sched_setaffinity(thread.id, processors)


def free_ports(count: int) -> list[int]:
    """Ports on the loopback address that are free at the moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
