"""Runs `pyworker`, `python` or curl as a process: its output as it is printed, its exit status."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import psutil

from tests.guard import GUARD_S

ROOT = Path(__file__).parents[2]
# Variables of a real instance must not reach the tested process.
_INSTANCE = ("CONTAINER_ID", "PUBLIC_IPADDR", "VAST_", "WORKER_", "REPORT_ADDR", "MODEL_", "BACKEND")


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    output: str
    errors: str


class Command:
    """A running command; `output` is what was read so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.output = ""
        self._children: list[psutil.Process] = []

    async def until(self, text: str) -> None:
        """Return once it has printed `text`."""
        assert self.process.stdout is not None
        with anyio.fail_after(GUARD_S):
            while text not in self.output:
                part = await self.process.stdout.read(65536)
                assert part, f"it ended without {text!r}:\n{self.output}"
                self.output += part.decode()
        self._children = psutil.Process(self.process.pid).children(recursive=True)

    async def end(self) -> Done:
        """Wait for its end; return its result. Fails if one of its children still runs."""
        with anyio.fail_after(GUARD_S):
            output, errors = await self.process.communicate()
        assert not [child for child in self._children if child.is_running()]
        assert self.process.returncode is not None
        return Done(self.process.returncode, self.output + output.decode(), (errors or b"").decode())


@asynccontextmanager
async def command(
    *words: str, cwd: Path, env: Mapping[str, str] | None = None, errors_in_output: bool = False
) -> AsyncGenerator[Command, None]:
    """Run `pyworker words` (or `python …`, `curl …`) in `cwd`, with `env` added to the environment.

    With `errors_in_output`, standard error is read as part of the output.
    """
    program = {
        "python": (sys.executable, *words[1:]),
        "curl": words,
    }.get(words[0], (sys.executable, "-m", "lib.tools.cli", *words))
    process = await asyncio.create_subprocess_exec(
        *program,
        cwd=cwd,
        env={**_plain(), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(env or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT if errors_in_output else asyncio.subprocess.PIPE,
    )
    try:
        yield Command(process)
    finally:
        if process.returncode is None:
            process.terminate()
            with anyio.move_on_after(GUARD_S):
                await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()


async def done(*words: str, cwd: Path, env: Mapping[str, str] | None = None) -> Done:
    """Run `pyworker words` (or `python …`, `curl …`) to its end."""
    async with command(*words, cwd=cwd, env=env) as running:
        return await running.end()


def _plain() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(_INSTANCE)}
