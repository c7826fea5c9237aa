"""The parts that all subjects share: a folder, a serverless engine, the model server, the load generator.

The engine is the local one and runs in the benchmark's own process; it has little to do but take reports.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from Crypto.PublicKey import RSA

from benchmarks.jobs import LoadProcess
from benchmarks.processes import python, running
from benchmarks.subjects import Surroundings
from lib.local.engine import LocalEngine
from lib.local.serving import serve_engine

KEY_BITS = 2048


@dataclass(frozen=True)
class System:
    """The processes around the subjects. `key_file` has the engine's private key as PEM text."""

    around: Surroundings
    generator: LoadProcess
    key_file: Path


@asynccontextmanager
async def running_system() -> AsyncGenerator[System, None]:
    """Run engine, model server and load generator for the block."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmarks-")))
        key = RSA.generate(KEY_BITS)
        key_file, log = folder / "key.pem", folder / "model.log"
        _fill(folder, key_file, key.export_key())
        engine_url = await stack.enter_async_context(serve_engine(LocalEngine(key=key, report_limit=10)))
        model = await stack.enter_async_context(running(python("fast_model", str(log)), folder / "model"))
        around = Surroundings(folder, int(await model.read_line()), log, engine_url)
        command = python("generator", str(key_file))
        generator = await stack.enter_async_context(running(command, folder / "generator"))
        yield System(around, LoadProcess(generator), key_file)


def _fill(folder: Path, key_file: Path, key: bytes) -> None:
    """Make the folders of the two processes and the key's file."""
    folder.chmod(0o711)  # nginx's worker process may run as another user, and has files below it
    for name in ("model", "generator"):
        (folder / name).mkdir()
    key_file.touch(0o600)
    key_file.write_bytes(key)
