"""Work that continues, or not, when its caller is cancelled. No HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest

from lib.request.detached import Spawn, run_detached


class Work:
    """Work that waits for `may_end`, and notes whether it finished or was cancelled."""

    def __init__(self) -> None:
        self.has_started = False
        self.may_end = asyncio.Event()
        self.result = ""

    async def run(self) -> str:
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.result = "cancelled"
            raise
        self.result = "finished"
        return self.result


@asynccontextmanager
async def task_group() -> AsyncGenerator[Spawn, None]:
    """A function that starts calls in a task group, whose end cancels what still runs."""
    async with anyio.create_task_group() as tasks:
        yield tasks.start_soon
        tasks.cancel_scope.cancel()


async def calling(spawn: Spawn, work: Work) -> asyncio.Task[str]:
    """The task of a caller, once the work waits."""
    caller = asyncio.create_task(run_detached(spawn, work.run, lambda: work.has_started))
    await anyio.wait_all_tasks_blocked()
    return caller


async def test_the_result_is_returned() -> None:
    async with task_group() as spawn:
        work = Work()
        caller = await calling(spawn, work)
        assert not caller.done()
        work.may_end.set()
        assert await caller == "finished"


async def fail() -> str:
    raise LookupError("of the work")


async def test_an_exception_is_the_caller_s_and_leaves_the_task_group_alone() -> None:
    async with task_group() as spawn:
        with pytest.raises(LookupError, match="of the work"):
            await run_detached(spawn, fail, lambda: True)
        work = Work()
        caller = await calling(spawn, work)
        work.may_end.set()
        assert await caller == "finished"


async def test_an_exception_without_a_caller_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    may_fail = asyncio.Event()

    async def fail_late() -> str:
        await may_fail.wait()
        return await fail()

    async with task_group() as spawn:
        caller = asyncio.create_task(run_detached(spawn, fail_late, lambda: True))
        await anyio.wait_all_tasks_blocked()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        may_fail.set()
        await anyio.wait_all_tasks_blocked()
    assert "of the work" in caplog.text


async def test_work_that_cancels_itself_cancels_its_caller() -> None:
    async def cancel_itself() -> str:
        raise asyncio.CancelledError

    tasks: list[asyncio.Task[None]] = []
    with pytest.raises(asyncio.CancelledError):
        await run_detached(
            lambda call: tasks.append(asyncio.create_task(call())), cancel_itself, lambda: True
        )
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]


async def test_started_work_continues_without_its_caller() -> None:
    async with task_group() as spawn:
        work = Work()
        caller = await calling(spawn, work)
        work.has_started = True
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await anyio.wait_all_tasks_blocked()
        assert work.result == ""
        work.may_end.set()
        await anyio.wait_all_tasks_blocked()
        assert work.result == "finished"


async def test_work_that_has_not_started_is_cancelled_with_its_caller() -> None:
    async with task_group() as spawn:
        work = Work()
        caller = await calling(spawn, work)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await anyio.wait_all_tasks_blocked()
        assert work.result == "cancelled"


async def test_a_cancelled_task_group_cancels_the_caller_too() -> None:
    work = Work()
    work.has_started = True
    async with task_group() as spawn:
        caller = await calling(spawn, work)
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert work.result == "cancelled"
