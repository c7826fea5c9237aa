"""Bodies on disk: each is in its file, which is deleted with its request (docs/protocol.md, "Bodies")."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from anyio.to_thread import current_default_thread_limiter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.access.spool import PIECE_BYTES, PREFIX, SpoolRoom, StrangersFile, spooled, sweep
from lib.errors import BodyTooLarge, Unavailable
from tests.fakes.incoming_request import Client
from tests.guard import GUARD_S

# Two and a half pieces to write.
PARTS = [bytes([number]) * (PIECE_BYTES // 2) for number in range(5)]
ROOM = SpoolRoom(2**30)
# Turns of the event loop: more than a whole body takes to be written and deleted.
TURNS = range(60)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Path, None, None]:
    """The folder for bodies; checks after the test that no file is left, and none is open."""
    folder = tmp_path / "bodies"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert_nothing_left(folder)


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def assert_nothing_left(folder: Path) -> None:
    assert files_in(folder) == []
    assert open_files(folder) == []


def open_files(folder: Path) -> list[str]:
    """This process's open files in `folder`, deleted ones included, as paths by which they can be opened."""
    paths: list[str] = []
    for descriptor in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{descriptor}"
        with suppress(FileNotFoundError):  # the one that lists them
            if os.readlink(path).startswith(str(folder)):
                paths.append(path)
    return paths


async def arriving(parts: Sequence[bytes]) -> AsyncGenerator[bytes, None]:
    for part in parts:
        await asyncio.sleep(0)
        yield part


async def test_the_file_exists_inside_the_block(folder: Path) -> None:
    async with spooled(arriving(PARTS), ROOM) as (path, size_bytes):
        assert files_in(folder) == [path]
        assert path.name.startswith(PREFIX)  # so that the next start deletes it if this process is killed
        assert path.read_bytes() == b"".join(PARTS)
        assert size_bytes == path.stat().st_size
        assert path.stat().st_mode & 0o077 == 0  # nobody else's business
    assert not path.exists()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.binary(max_size=40) | st.integers(0, 2 * PIECE_BYTES).map(bytes), max_size=6))
def test_any_parts_are_written_unchanged(folder: Path, parts: Sequence[bytes]) -> None:
    async def example() -> None:
        async with spooled(arriving(parts), ROOM) as (path, size_bytes):
            assert path.read_bytes() == b"".join(parts)
            assert size_bytes == sum(map(len, parts))

    asyncio.run(example())
    assert_nothing_left(folder)


async def test_uploads_share_a_limit_with_each_other_and_before_strangers(folder: Path) -> None:
    room, stranger = SpoolRoom(10), Client()
    file = StrangersFile(room, stranger)
    await file.append(b"x" * 8)
    async with spooled(arriving([b"a" * 4, b"b" * 4]), room):
        assert stranger.evictions == 1
        with pytest.raises(Unavailable) as refused:
            async with spooled(arriving([b"c" * 3]), room):
                pytest.fail("there is no room")
        assert refused.value.body()["state"] == "no room"
        assert "MAX_SPOOL_BYTES" in refused.value.message
        assert refused.value.headers() == {"Retry-After": "30"}
        with pytest.raises(Unavailable):
            await file.append(b"x" * 8)
    await file.close()
    assert room.shares.held_bytes == 0


async def test_what_a_stranger_sends_is_read_back_and_has_no_name(folder: Path) -> None:
    file = StrangersFile(ROOM, Client())
    for part in PARTS:
        await file.append(part)
    assert files_in(folder) == []
    assert await file.read() == b"".join(PARTS)
    await file.close()


async def test_a_strangers_file_that_cannot_be_made_is_a_503(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "missing"))
    file = StrangersFile(ROOM, Client())
    with pytest.raises(Unavailable, match="can't be written to disk: No such file"):
        await file.append(b"x")
    await file.close()


async def test_a_strangers_file_that_cannot_be_read_is_a_503(folder: Path) -> None:
    file = StrangersFile(ROOM, Client())
    await file.append(b"abc")
    (path,) = open_files(folder)
    os.truncate(path, 2)
    with pytest.raises(Unavailable, match="can't be read from disk: the file is shorter"):
        await file.read()
    await file.close()


async def test_a_strangers_file_gives_its_room_back_once(folder: Path) -> None:
    room, stranger = SpoolRoom(100), Client()
    one, other = StrangersFile(room, stranger), StrangersFile(room, stranger)
    await one.append(b"x" * 8)
    await other.append(b"x" * 4)
    for _ in range(2):
        await one.close()
        assert (one.size_bytes, room.shares.held_bytes) == (0, 4)
    await other.close()


@pytest.mark.parametrize("are_strangers_slow", [False, True])
async def test_the_files_of_strangers_have_threads_of_their_own(
    folder: Path, are_strangers_slow: bool
) -> None:
    room = SpoolRoom(100)
    file = StrangersFile(room, Client())
    busy = room.strangers_threads if are_strangers_slow else current_default_thread_limiter()
    borrowers = [object() for _ in range(int(busy.total_tokens))]
    for borrower in borrowers:
        busy.acquire_on_behalf_of_nowait(borrower)
    with anyio.fail_after(GUARD_S):
        if are_strangers_slow:
            async with spooled(arriving([b"abc"]), room) as (path, _):
                assert path.read_bytes() == b"abc"
        else:
            await file.append(b"abc")
            assert await file.read() == b"abc"
            await file.close()
    for borrower in borrowers:
        busy.release_on_behalf_of(borrower)


async def test_a_start_deletes_what_a_killed_worker_has_left(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    left, other, target = folder / f"{PREFIX}a", folder / "pyworker.txt", tmp_path / "target"
    for path in (left, other, target):
        path.write_bytes(b"x")
    (folder / f"{PREFIX}link").symlink_to(target)
    async with spooled(arriving([b"a"]), ROOM) as (in_use, _):
        assert [sweep(), sweep()] == [1, 0]
        assert caplog.messages == ["deleted 1 uploads that a killed worker had left"]
        assert not left.exists()
        assert in_use.exists()
    assert other.exists()
    assert target.exists()
    for path in files_in(folder):
        path.unlink()


async def test_two_bodies_have_different_files(folder: Path) -> None:
    async with spooled(arriving([b"a"]), ROOM) as (one, _), spooled(arriving([b"b"]), ROOM) as (other, _):
        assert (one.read_bytes(), other.read_bytes()) == (b"a", b"b")


async def test_an_author_may_move_the_file_away(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with spooled(arriving([b"a"]), ROOM) as (path, _):
        path.rename(tmp_path / "kept")
    assert (tmp_path / "kept").read_bytes() == b"a"
    assert caplog.messages == []


async def test_a_refused_body_leaves_no_file(folder: Path) -> None:
    async def too_much() -> AsyncGenerator[bytes, None]:
        for part in PARTS:
            yield part
        raise BodyTooLarge("too much")

    with pytest.raises(BodyTooLarge):
        async with spooled(too_much(), ROOM):
            pytest.fail("it was never whole")


async def test_an_error_in_the_block_leaves_no_file(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="bug"):
        async with spooled(arriving(PARTS), ROOM):
            raise RuntimeError("bug")


async def test_a_file_that_cannot_be_created_is_a_503(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "missing"))
    with pytest.raises(Unavailable) as refused:
        async with spooled(arriving(PARTS), ROOM):
            pytest.fail("there is no file")
    assert refused.value.body() == {
        "error": "the body can't be written to disk: No such file or directory",
        "state": "no room",
    }


# Cancelled at any point: while the file is made, written, closed, used or deleted


async def kept_for_ever() -> None:
    async with spooled(arriving(PARTS), ROOM):
        await asyncio.Event().wait()


async def kept_for_a_moment() -> None:
    async with spooled(arriving(PARTS), ROOM):
        pass


@pytest.mark.parametrize("again", [False, True], ids=["once", "again and again"])
async def test_a_cancelled_body_leaves_no_file(folder: Path, again: bool) -> None:
    for body in (kept_for_ever, kept_for_a_moment):
        for turns in TURNS:
            task = asyncio.create_task(body())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            while again and not task.done():
                await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait({task})
            assert task.cancelled() or body is kept_for_a_moment
            assert_nothing_left(folder)


async def test_a_body_with_a_cancelled_scope_leaves_no_file(folder: Path) -> None:
    for turns in TURNS:
        async with anyio.create_task_group() as group:
            group.start_soon(kept_for_ever)
            for _ in range(turns):
                await asyncio.sleep(0)
            group.cancel_scope.cancel()
        assert_nothing_left(folder)


@pytest.mark.parametrize("arrived", range(len(PARTS) + 1))
async def test_a_body_cancelled_between_parts_leaves_no_file(folder: Path, arrived: int) -> None:
    waits, closed = asyncio.Event(), asyncio.Event()

    async def stalling() -> AsyncGenerator[bytes, None]:
        try:
            for part in PARTS[:arrived]:
                yield part
            waits.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def keep() -> None:
        async with spooled(stalling(), ROOM):
            pytest.fail("it was never whole")

    task = asyncio.create_task(keep())
    await waits.wait()
    (path,) = files_in(folder)
    assert path.stat().st_size == arrived // 2 * PIECE_BYTES  # whole pieces don't wait for the end
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert closed.is_set()
