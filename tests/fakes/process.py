"""A process whose output is read as it is printed."""

from __future__ import annotations

import asyncio
import codecs
from dataclasses import dataclass

import anyio

from tests.guard import GUARD_S


@dataclass(frozen=True)
class EndedProcess:
    """A process that has ended; `errors` is its standard error, if that is a pipe of its own."""

    status: int
    output: str
    errors: str


class RunningProcess:
    """A running process with a pipe for its standard output; `output` is what was read of it so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.output = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    async def until(self, text: str) -> None:
        """Return once it has printed `text`. Fails with what it has printed otherwise."""
        assert self.process.stdout is not None
        with anyio.move_on_after(GUARD_S):
            while text not in self.output:
                part = await self.process.stdout.read(65536)
                assert part, f"it ended without {text!r}:\n{self.output}"
                self.output += self._decoder.decode(part)
        assert text in self.output, f"it did not print {text!r}:\n{self.output}"

    async def end(self) -> EndedProcess:
        """Wait for its end; return its result. `output` is complete then."""
        with anyio.fail_after(GUARD_S):
            rest, errors = await self.process.communicate()
        self.output += self._decoder.decode(rest, final=True)
        assert self.process.returncode is not None
        return EndedProcess(self.process.returncode, self.output, (errors or b"").decode())
