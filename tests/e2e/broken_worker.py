"""Workers whose lifecycle fails or prints its progress; the variable `TEST_LIFE` selects one."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel

from lib.backend import Backend
from lib.server import start_server


def note(text: str) -> None:
    Path("left").write_text(text)


@asynccontextmanager
async def life(kind: str) -> AsyncGenerator[None, None]:
    if kind == "raises":
        raise RuntimeError("no licence for this model")
    try:
        if kind == "hangs":
            await anyio.sleep_forever()
        yield
    finally:
        await anyio.lowlevel.checkpoint()  # the author's clean-up may await
        note("whole")


if __name__ == "__main__":
    kind = os.environ["TEST_LIFE"]
    url = os.environ["TEST_MODEL_URL"]
    start_server(Backend(url, lifecycle=life(kind)), [], host="127.0.0.1")
