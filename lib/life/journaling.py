"""The journal of a running worker: what it takes over from the one before, and what it writes down.

Owns where the file is and who is told what it says. Its records are in lib/engine/journal.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import msgspec
from anyio.to_thread import run_sync as in_thread

from lib.access.signed import SignedRequests
from lib.engine.journal import Journal, JournalFile
from lib.engine.journal_records import FORMAT, Remembered, recall
from lib.life.running_worker import RunningWorker
from lib.metrics import Ledger
from lib.runtime.clock import Clock
from lib.runtime.settings import Settings

log = logging.getLogger(__name__)


@asynccontextmanager
async def journaled(running: RunningWorker, ledger: Ledger, clock: Clock) -> AsyncGenerator[None, None]:
    """Take over what the journal says, and keep it inside the block; without a folder for it, do nothing.

    Enter it once the worker's port is bound: the file is then no other worker's.
    """
    file = await in_thread(partial(_file, running.settings))
    if file is None:
        yield
        return
    signed = running.authenticator if isinstance(running.authenticator, SignedRequests) else None
    signatures, sessions = signed and signed.signatures, running.session_life
    try:
        remembered = await in_thread(lambda: recall(file.read(), clock.wall()))
    except OSError as e:
        log.warning("the journal %s can't be read: %s", file.path, e.strerror or e)
        remembered = Remembered(Ledger())
    ledger.inherit(remembered.ledger)
    sessions.recall(remembered.due_ends.values())
    if signatures is not None:
        signatures.recall(remembered.fingerprint, remembered.used)
    at_turn_end = asyncio.get_running_loop().call_soon
    journal = Journal(file, ledger, signatures, sessions, clock, at_turn_end)
    journal.begin()
    ledger.journal = sessions.journal = journal
    running.direct.outbox.before = journal.write
    if signatures is not None:
        signatures.journal = journal
    try:
        yield
    finally:
        ledger.journal = sessions.journal = None
        if signatures is not None:
            signatures.journal = None
        journal.close()


def _file(settings: Settings) -> JournalFile | None:
    """The journal's file; None if it isn't kept."""
    folder = settings.workspace_dir
    if settings.engine == "none":
        return None
    try:
        is_there = folder.is_dir()
    except OSError:  # a folder above it may not be searched
        is_there = False
    if not is_there:
        log.info(
            "no journal, as there is no folder %s (WORKSPACE_DIR): if the worker is killed, reports are lost",
            folder,
        )
        return None
    identity = (FORMAT, settings.container_id, settings.worker_port)
    name = f"pyworker-journal-{settings.container_id}-{settings.worker_port}"
    return JournalFile(folder / name, msgspec.msgpack.encode(identity))
