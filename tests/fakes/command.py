"""Runs `pyworker`, `python`, bash or curl as a process: its output as it is printed, its exit status."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import psutil

from tests.fakes.process import EndedProcess, RunningProcess
from tests.guard import GUARD_S

ROOT = Path(__file__).parents[2]
# Variables of a real instance must not reach the tested process.
_INSTANCE = ("CONTAINER_ID", "PUBLIC_IPADDR", "VAST_", "WORKER_", "REPORT_ADDR", "MODEL_", "BACKEND")


class RunningCommand(RunningProcess):
    """A running command; `children` are its processes when it had last printed what a test waited for."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        super().__init__(process)
        self.children: list[psutil.Process] = []

    async def until(self, text: str) -> None:
        """Return once it has printed `text`."""
        await super().until(text)
        self.children = psutil.Process(self.process.pid).children(recursive=True)

    async def end(self) -> EndedProcess:
        """Wait for its end; return its result. Fails if one of its children still runs."""
        done = await super().end()
        assert not [child for child in self.children if child.is_running()]
        return done


@asynccontextmanager
async def command(
    *words: str, cwd: Path, env: Mapping[str, str] | None = None, errors_in_output: bool = False
) -> AsyncGenerator[RunningCommand, None]:
    """Run `pyworker words` (or `python …`, `curl …`, `bash …`) in `cwd`, with `env` added to the environment.

    With `errors_in_output`, standard error is read as part of the output.
    """
    program = {
        "python": (sys.executable, *words[1:]),
        "curl": words,
        "bash": words,
    }.get(words[0], (sys.executable, "-m", "lib.tools.cli", *words))
    process = await asyncio.create_subprocess_exec(
        *program,
        cwd=cwd,
        env={**_plain(), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(env or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT if errors_in_output else asyncio.subprocess.PIPE,
    )
    try:
        yield RunningCommand(process)
    finally:
        if process.returncode is None:
            process.terminate()
            with anyio.move_on_after(GUARD_S):
                await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()


async def done(*words: str, cwd: Path, env: Mapping[str, str] | None = None) -> EndedProcess:
    """Run `pyworker words` (or `python …`, `curl …`, `bash …`) to its end."""
    async with command(*words, cwd=cwd, env=env) as running:
        return await running.end()


def _plain() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(_INSTANCE)}
