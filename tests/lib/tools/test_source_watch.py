from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lib.tools.source_watch import INTERVAL_S, QUICK_CHANGES, QUICK_S, SourceWatch
from tests.guard import GUARD_S
from tests.manual_clock import ManualClock

FILES = ("worker.py", "helpers/deep/more.py")
UNWATCHED = (
    "words.txt",
    ".git/hook.py",
    "env/pyvenv.cfg",
    "env/lib/package.py",
    "__pycache__/a.py",
    "node_modules/b.py",
    "lib/site-packages/c.py",
    "build/lib/d.py",
    ".venv/e.py",
    "torch_compile_cache/f.py",
)


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write("#\n")


async def looks(clock: ManualClock, count: int) -> None:
    """Let `count` intervals pass."""
    for _ in range(count):
        await clock.wait_for_timers()
        clock.advance(INTERVAL_S)


def change_one(folder: Path) -> None:
    write(folder, FILES[0])


def change_all(folder: Path) -> None:
    write(folder, *FILES, *UNWATCHED)


def add(folder: Path) -> None:
    write(folder, "new.py")


def remove(folder: Path) -> None:
    (folder / FILES[1]).unlink()


def touch(folder: Path) -> None:
    os.utime(folder / FILES[0], ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "paths"),
    [
        (change_one, [FILES[0]]),
        (change_all, sorted(FILES)),
        (add, ["new.py"]),
        (remove, [FILES[1]]),
        (touch, [FILES[0]]),
    ],
)
async def test_changes_of_python_files_are_noticed(
    change: Callable[[Path], None], paths: list[str], tmp_path: Path
) -> None:
    write(tmp_path, *FILES, *UNWATCHED)
    clock = ManualClock()
    watch = SourceWatch(tmp_path, clock)
    waiting = asyncio.ensure_future(watch.changed())
    await looks(clock, 2)
    await clock.wait_for_timers()  # the second look is over
    change(tmp_path)
    await looks(clock, 2)
    assert await asyncio.wait_for(waiting, GUARD_S) == paths


async def test_files_that_are_saved_one_after_the_other_are_one_change(tmp_path: Path) -> None:
    write(tmp_path, *FILES)
    clock = ManualClock()
    watch = SourceWatch(tmp_path, clock)
    waiting = asyncio.ensure_future(watch.changed())
    write(tmp_path, FILES[0])
    await looks(clock, 1)
    await clock.wait_for_timers()
    write(tmp_path, FILES[1])
    await looks(clock, 2)
    assert await asyncio.wait_for(waiting, GUARD_S) == sorted(FILES)


async def test_a_change_between_two_calls_is_noticed_by_the_second(tmp_path: Path) -> None:
    write(tmp_path, *FILES)
    clock = ManualClock()
    watch = SourceWatch(tmp_path, clock)
    write(tmp_path, FILES[0])
    waiting = asyncio.ensure_future(watch.changed())
    await looks(clock, 2)
    assert await asyncio.wait_for(waiting, GUARD_S) == [FILES[0]]


async def test_a_change_that_a_cancelled_call_has_seen_is_noticed_by_the_next(tmp_path: Path) -> None:
    write(tmp_path, *FILES)
    clock = ManualClock()
    watch = SourceWatch(tmp_path, clock)
    cancelled = asyncio.ensure_future(watch.changed())
    write(tmp_path, FILES[0])
    await looks(clock, 1)
    await clock.wait_for_timers()  # the change is seen, and may not be over
    cancelled.cancel()
    await asyncio.wait([cancelled])
    waiting = asyncio.ensure_future(watch.changed())
    await looks(clock, 2)
    assert await asyncio.wait_for(waiting, GUARD_S) == [FILES[0]]


async def noticed(watch: SourceWatch, clock: ManualClock, folder: Path, *names: str) -> list[str]:
    """Change files; return what the watch notices."""
    waiting = asyncio.ensure_future(watch.changed())
    write(folder, *names)
    await looks(clock, 2)
    return await asyncio.wait_for(waiting, GUARD_S)


async def test_files_that_change_soon_after_each_start_are_ignored(tmp_path: Path) -> None:
    write(tmp_path, *FILES)
    clock = ManualClock()
    watch = SourceWatch(tmp_path, clock)
    for _ in range(QUICK_CHANGES - 1):
        watch.worker_started()
        assert not watch.ignores(await noticed(watch, clock, tmp_path, "written.py"))
    watch.worker_started()
    assert watch.ignores(await noticed(watch, clock, tmp_path, "written.py"))
    assert await noticed(watch, clock, tmp_path, "written.py", FILES[0]) == [FILES[0]]


async def test_a_change_long_after_the_start_ends_the_row(tmp_path: Path) -> None:
    write(tmp_path, *FILES)
    clock = ManualClock()
    watch = SourceWatch(tmp_path, clock)
    for number in range(2 * QUICK_CHANGES):
        watch.worker_started()
        clock.advance(QUICK_S if number % QUICK_CHANGES == QUICK_CHANGES - 1 else 0)
        assert not watch.ignores(await noticed(watch, clock, tmp_path, FILES[0]))


async def test_other_files_are_not_watched(tmp_path: Path) -> None:
    write(tmp_path, *FILES, *UNWATCHED)
    clock = ManualClock()
    waiting = asyncio.ensure_future(SourceWatch(tmp_path, clock).changed())
    write(tmp_path, *UNWATCHED)
    await looks(clock, 3)
    await clock.wait_for_timers()
    assert not waiting.done()
    waiting.cancel()
