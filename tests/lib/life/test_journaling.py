"""The journal of a running worker: what the next one takes over. No HTTP: nobody calls."""

from __future__ import annotations

import logging
import stat
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lib.access.arriving import Arrivals
from lib.access.authenticator import Authenticator
from lib.access.body import BodyReader
from lib.access.open import OpenAccess
from lib.access.signatures import Signatures
from lib.access.signed import SignedRequests
from lib.access.spool import SpoolRoom
from lib.backend import Backend
from lib.errors import Unauthorized
from lib.life.journaling import journaled
from lib.life.running_worker import RunningWorker
from lib.local.signer import Signer
from lib.metrics import Ledger, Outcome
from lib.request.sessions import Session, Sessions
from lib.runtime.settings import Settings
from tests.fakes.plain_handler import PlainHandler
from tests.keys import new_key
from tests.lib.test_metrics import accepted
from tests.manual_clock import ManualClock
from tests.system import engine_key

URL = "http://127.0.0.1:3000"
SIGNER = Signer(engine_key())
OPEN = OpenAccess(Arrivals(BodyReader(1000, 1.0), SpoolRoom(1000)), Sessions(None, ManualClock()))
NAME = "pyworker-journal-1-3000"


@dataclass
class Opened:
    """A worker with a journal. `spawned` has the calls that it has begun."""

    running: RunningWorker
    ledger: Ledger
    spawned: list[Callable[[], Awaitable[None]]]

    @property
    def signatures(self) -> Signatures:
        assert isinstance(self.running.authenticator, SignedRequests)
        assert self.running.authenticator.signatures is not None
        return self.running.authenticator.signatures

    async def open_session(self, terms: dict[str, Any]) -> Session:
        async def read_payload() -> dict[str, Any]:
            return terms

        return await self.running.session_life.open({"n": 1}, 7, lambda: 5.0, read_payload, lambda: None)


@asynccontextmanager
async def worker(
    folder: Path, authenticator: Authenticator | None = None, **settings: Any
) -> AsyncGenerator[Opened, None]:
    """A worker with its journal in `folder`. It reports nothing, so that its end is that of a killed one."""
    backend, spawned = (
        Backend(None, clock=ManualClock(), authenticator=authenticator),
        list[Callable[[], Awaitable[None]]](),
    )
    backend.create_handler(PlainHandler())
    own = replace(Settings(container_id=1, public_url=URL, workspace_dir=folder), **settings)
    async with (
        backend.run_with(own, folder, spawn=spawned.append) as running,
        journaled(running, backend.metrics, backend.clock),
    ):
        yield Opened(running, backend.metrics, spawned)


def journals(folder: Path) -> set[Path]:
    return set(folder.glob("*journal*"))


def signed(reqnum: int) -> dict[str, Any]:
    raw = {"cost": 1.0, "endpoint": "e", "reqnum": reqnum, "url": URL}
    return {**raw, "signature": SIGNER.sign(raw, "full")}


@pytest.mark.parametrize("settings", [{}, {"unsecured": True}, {"authenticator": OPEN}])
async def test_the_next_worker_reports_what_was_not_reported(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    async with worker(tmp_path, **settings) as first:
        accepted(first.ledger, 3.0, 1).set_outcome(Outcome.SERVED)
        accepted(first.ledger, 4.0, 2)
    async with worker(tmp_path, **settings) as second:
        report = second.ledger.snapshot()
        assert (report.new_load, report.cur_perf, report.working) == (7.0, 3.0, 0)
        assert [(f.request_idx, f.status) for f in second.ledger.finished()[0]] == [
            (1, "Success"),
            (2, "Error"),
        ]
        second.ledger.acknowledge(report)
        second.ledger.acknowledge_finished(2)
    async with worker(tmp_path, **settings) as third:
        assert (third.ledger.snapshot().new_load, third.ledger.finished()[0]) == (0.0, ())


@pytest.mark.parametrize("other", [{"container_id": 2}, {"worker_port": 3001}])
async def test_the_journal_is_one_worker_s(tmp_path: Path, other: dict[str, Any]) -> None:
    async with worker(tmp_path) as first:
        accepted(first.ledger, 3.0)
    file = tmp_path / NAME
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    async with worker(tmp_path, **other) as second:
        assert second.ledger.snapshot().new_load == 0.0
    (another,) = journals(tmp_path) - {file}
    # A file of another worker's, for instance of an image that was copied, is ignored.
    file.rename(another)
    async with worker(tmp_path, **other) as third:
        assert third.ledger.snapshot().new_load == 0.0


async def test_without_an_engine_there_is_no_journal(tmp_path: Path) -> None:
    async with worker(tmp_path, engine="none") as opened:
        accepted(opened.ledger, 3.0)
    assert journals(tmp_path) == set()


async def test_without_its_folder_there_is_none_and_one_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "missing"
    with caplog.at_level(logging.INFO):
        async with worker(folder) as opened:
            accepted(opened.ledger, 3.0)
    assert not folder.exists()
    (line,) = [r.getMessage() for r in caplog.records if "journal" in r.getMessage()]
    assert f"no folder {folder} (WORKSPACE_DIR)" in line


async def test_a_file_that_cannot_be_read_is_told_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / NAME).symlink_to(tmp_path / "elsewhere")
    async with worker(tmp_path) as first:
        accepted(first.ledger, 3.0)
    assert f"the journal {tmp_path / NAME} can't be read: Too many levels" in caplog.text
    async with worker(tmp_path) as second:
        assert second.ledger.snapshot().new_load == 3.0


async def test_a_used_signature_stays_used(tmp_path: Path) -> None:
    async with worker(tmp_path) as first:
        first.signatures.use_key(SIGNER.public_key)
        for reqnum in (1, 2):
            first.signatures.check(signed(reqnum), reqnum)
    # The second one takes them over, and passes them on with its own.
    for reqnum in (3, 4):
        async with worker(tmp_path) as opened:
            opened.signatures.use_key(SIGNER.public_key)
            for used in range(1, reqnum):
                with pytest.raises(Unauthorized, match="replay"):
                    opened.signatures.check(signed(used), used)
            opened.signatures.check(signed(reqnum), reqnum)


async def test_the_end_of_an_open_session_is_due_once(tmp_path: Path) -> None:
    async with worker(tmp_path) as first:
        session = await first.open_session({"on_close_route": "/bye"})
        ended = await first.open_session({})
        first.running.sessions.end(ended)
        assert "recalled sessions" not in first.running.tasks()
    async with worker(tmp_path) as second:
        life = second.running.session_life
        assert [end.session_id for end in life.recalled] == [session.id]
        assert "recalled sessions" in second.running.tasks()
        assert second.running.sessions.remembers({"n": 1})
        life.end_recalled()
        (call,) = second.spawned
        await call()  # there is no model server: that is only logged
        assert life.recalled == []
    async with worker(tmp_path) as third:
        assert third.running.session_life.recalled == []


async def test_changes_after_its_end_are_not_written(tmp_path: Path) -> None:
    """Connections are open a little longer, and timers of sessions may fire."""
    async with worker(tmp_path) as opened:
        opened.signatures.use_key(SIGNER.public_key)
        entry = accepted(opened.ledger, 3.0, 1)
        session = await opened.open_session({})
        running, ledger, signatures = opened.running, opened.ledger, opened.signatures
    written = (tmp_path / NAME).read_bytes()
    running.sessions.end(session)
    entry.set_outcome(Outcome.SERVED)
    ledger.acknowledge(ledger.snapshot())
    signatures.check(signed(1), 1)
    signatures.use_key(Signer(new_key()).public_key)
    assert (tmp_path / NAME).read_bytes() == written
