"""A model server in a process of its own, to be killed: POST is answered after 20 ms, `/health` at once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from tests.guard import GUARD_S

ROOT = Path(__file__).parents[2]
WORK_S = 0.02


class MortalModel:
    """The process, at `port` whenever it runs."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; return once it listens."""
        command = (sys.executable, "-m", __name__, str(self.port))
        self._process = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
        with anyio.fail_after(GUARD_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.01)
                else:
                    writer.close()
                    return

    async def kill(self) -> None:
        """Kill it with SIGKILL."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def mortal_model(port: int) -> AsyncGenerator[MortalModel, None]:
    """Run it at `port` until the block ends."""
    model = MortalModel(port)
    try:
        await model.start()
        yield model
    finally:
        await model.kill()


async def _serve(port: int) -> None:
    server = await asyncio.start_server(_connected, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


async def _connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length or 0))
            if head.startswith(b"post"):
                await asyncio.sleep(WORK_S)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
