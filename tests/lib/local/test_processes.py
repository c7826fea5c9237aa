"""Child processes: their end, interruptions, and free ports."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from lib.local.processes import Interrupted, free_port, python_module, while_running
from tests.guard import GUARD_S

# Ignores SIGTERM, and so ends only with SIGKILL; a FIFO tells when the signal is ignored.
STUBBORN = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open("ignoring", "w").close()  # a FIFO: returns once it is read
while True:
    signal.pause()
"""

# Starts another process, and then doesn't end on SIGTERM.
STUBBORN_PARENT = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
started = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
with open("started", "w") as fifo:
    fifo.write(str(started.pid))
while True:
    signal.pause()
"""


def environ(tmp_path: Path) -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


async def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    ignoring = tmp_path / "ignoring"
    os.mkfifo(ignoring)
    async with python_module(
        "stubborn process", "stubborn", environ=environ(tmp_path), log=tmp_path / "log", end_limit_s=0.05
    ) as child:
        await asyncio.to_thread(ignoring.read_bytes)
    assert child.process.returncode == -signal.SIGKILL


async def test_what_a_killed_child_has_started_is_killed_too(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(STUBBORN_PARENT)
    started = tmp_path / "started"
    os.mkfifo(started)
    async with python_module(
        "stubborn parent", "parent", environ=environ(tmp_path), log=tmp_path / "log", end_limit_s=0.05
    ):
        process = os.pidfd_open(int(await asyncio.to_thread(started.read_text)))
    try:
        ended, _, _ = await asyncio.to_thread(select.select, [process], [], [], GUARD_S)
        assert ended
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        os.close(process)


async def test_work_is_cancelled_when_interrupted() -> None:
    stop: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    cancelled = False

    async def work() -> None:
        nonlocal cancelled
        stop.set_result(15)
        try:
            await anyio.sleep_forever()
        finally:
            cancelled = True

    with pytest.raises(Interrupted) as raised:
        await while_running(work(), [], stop)
    assert raised.value.signum == 15
    assert cancelled


async def test_an_error_of_the_work_is_raised_unchanged(tmp_path: Path) -> None:
    stop: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    (tmp_path / "quiet.py").write_text("import signal\nsignal.pause()\n")

    async def work() -> None:
        raise LookupError("nothing there")

    async with python_module(
        "quiet process", "quiet", environ=environ(tmp_path), log=tmp_path / "log"
    ) as child:
        with pytest.raises(LookupError, match="nothing there"):
            await while_running(work(), [child], stop)


def test_a_free_port_is_reserved_for_a_server() -> None:
    with free_port() as port, free_port() as other, socket.socket() as server:
        assert port != other
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("0.0.0.0", port))
        server.listen()
