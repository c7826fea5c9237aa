"""Entering and leaving an author's contexts: on `leave`, on cancellation, and after errors. No HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from lib.life.author_context import AuthorContext, context_of_handlers
from tests.fakes.plain_handler import PlainHandler


class Recorder:
    """A context that notes its steps in `events`, and waits for `may_enter` and `may_leave`."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.may_enter, self.may_leave = asyncio.Event(), asyncio.Event()
        self.may_enter.set()
        self.may_leave.set()
        self.author_context = AuthorContext("lifecycle", self.context, self.on_entered)

    @asynccontextmanager
    async def context(self) -> AsyncGenerator[None, None]:
        self.events.append("entering")
        await self.may_enter.wait()
        try:
            yield
        finally:
            self.events.append("leaving")
            await self.may_leave.wait()
            self.events.append("left")

    def on_entered(self) -> None:
        self.events.append("entered")

    async def keep(self) -> asyncio.Task[None]:
        """A task that keeps the context, once it waits."""
        task = asyncio.create_task(self.author_context.keep())
        await anyio.wait_all_tasks_blocked()
        return task


ALL_STEPS = ["entering", "entered", "leaving", "left"]


async def test_a_context_is_entered_and_stays_so() -> None:
    recorder = Recorder()
    task = await recorder.keep()
    assert (recorder.events, task.done()) == (["entering", "entered"], False)
    await recorder.author_context.leave()


async def test_leave_returns_once_the_context_is_left() -> None:
    recorder = Recorder()
    recorder.may_leave.clear()
    task = await recorder.keep()
    leaving = asyncio.create_task(recorder.author_context.leave())
    await anyio.wait_all_tasks_blocked()
    assert (recorder.events, leaving.done(), task.done()) == (ALL_STEPS[:3], False, False)
    recorder.may_leave.set()
    await leaving
    await task
    assert recorder.events == ALL_STEPS


async def test_leave_returns_immediately_before_the_context_is_entered() -> None:
    recorder = Recorder()
    recorder.may_enter.clear()
    await recorder.author_context.leave()
    task = await recorder.keep()
    await recorder.author_context.leave()
    assert recorder.events == ["entering"]
    recorder.may_enter.set()
    await task
    assert recorder.events == ALL_STEPS


async def test_a_cancelled_task_leaves_the_context() -> None:
    recorder = Recorder()
    task = await recorder.keep()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert recorder.events == ALL_STEPS


async def test_leaving_is_not_cancelled() -> None:
    """An anyio scope, which cancels again and again, does not end `keep` before the context is left."""
    recorder = Recorder()
    recorder.may_leave.clear()

    async def keep() -> None:
        try:
            await recorder.author_context.keep()
        finally:
            recorder.events.append("keep ended")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keep)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.wait_all_tasks_blocked()
            assert recorder.events == ALL_STEPS[:3]
            recorder.may_leave.set()
    assert recorder.events == [*ALL_STEPS, "keep ended"]


async def test_entering_is_cancelled() -> None:
    recorder = Recorder()
    recorder.may_enter.clear()
    task = await recorder.keep()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert recorder.events == ["entering"]


@pytest.mark.parametrize("is_cancelled", [True, False])
async def test_an_abandoned_context_is_cancelled_while_it_is_left(is_cancelled: bool) -> None:
    recorder = Recorder()
    recorder.may_leave.clear()
    task = await recorder.keep()
    if is_cancelled:
        task.cancel()
        await anyio.wait_all_tasks_blocked()
    recorder.author_context.abandon()
    if not is_cancelled:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert recorder.events == ALL_STEPS[:3]


async def test_an_abandoned_context_that_swallows_its_cancellation_is_left_behind(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.life.author_context.ABANDON_LIMIT_S", 0.01)
    may_end = asyncio.Event()

    @asynccontextmanager
    async def context() -> AsyncGenerator[None, None]:
        yield
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                continue

    author_context = AuthorContext("lifecycle", context, lambda: None)
    task = asyncio.create_task(author_context.keep())
    await anyio.wait_all_tasks_blocked()
    author_context.abandon()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "lifecycle does not end" in caplog.text
    may_end.set()
    await anyio.wait_all_tasks_blocked()


@pytest.mark.parametrize("step", ["entering", "leaving"])
async def test_an_error_of_the_context_is_raised(step: str) -> None:
    @asynccontextmanager
    async def context() -> AsyncGenerator[None, None]:
        if step == "entering":
            raise LookupError(step)
        yield
        raise LookupError(step)

    author_context = AuthorContext("lifecycle", context, lambda: None)
    task = asyncio.create_task(author_context.keep())
    await anyio.wait_all_tasks_blocked()
    await author_context.leave()
    with pytest.raises(LookupError, match=step):
        await task


async def test_an_error_while_leaving_after_a_cancellation_is_raised() -> None:
    @asynccontextmanager
    async def context() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            raise LookupError("clean-up")

    task = asyncio.create_task(AuthorContext("lifecycle", context, lambda: None).keep())
    await anyio.wait_all_tasks_blocked()
    task.cancel()
    with pytest.raises(LookupError, match="clean-up"):
        await task


async def test_a_context_may_be_given_without_a_function() -> None:
    recorder = Recorder()
    author_context = AuthorContext("lifecycle", recorder.context(), recorder.on_entered)
    task = asyncio.create_task(author_context.keep())
    await anyio.wait_all_tasks_blocked()
    await author_context.leave()
    await task
    assert recorder.events == ALL_STEPS


# The contexts of handlers


@dataclass
class RunningHandler(PlainHandler):
    name: str = ""
    events: list[str] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        assert self.events is not None
        self.events.append(f"{self.name} entered")
        yield
        self.events.append(f"{self.name} left")


def test_handlers_without_a_context_of_their_own_have_none() -> None:
    assert context_of_handlers([]) is None
    assert context_of_handlers([PlainHandler()]) is None


async def test_the_contexts_of_handlers_are_left_in_reverse_order() -> None:
    events: list[str] = []
    handlers = [
        RunningHandler(name="a", events=events),
        PlainHandler(),
        RunningHandler(name="b", events=events),
    ]
    context = context_of_handlers(handlers)
    assert context is not None
    author_context = AuthorContext("lifecycle", context, lambda: events.append("all entered"))
    task = asyncio.create_task(author_context.keep())
    await anyio.wait_all_tasks_blocked()
    await author_context.leave()
    await task
    assert events == ["a entered", "b entered", "all entered", "b left", "a left"]


@dataclass
class FailingHandler(PlainHandler):
    """Its `running` raises or returns `gives`, which can't be entered."""

    gives: object = None

    def running(self) -> Any:
        if isinstance(self.gives, Exception):
            raise self.gives
        return self.gives


@pytest.mark.parametrize(
    ("gives", "error"),
    [
        (LookupError("no pool"), "LookupError: no pool"),
        (None, "TypeError: None is not an async context manager: is @asynccontextmanager missing?"),
        (nullcontext, "is not an async context manager"),
    ],
)
async def test_a_context_that_cant_be_entered_is_named(
    gives: object, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[str] = []
    context = context_of_handlers([RunningHandler(name="a", events=events), FailingHandler(gives=gives)])
    assert context is not None
    author_context = AuthorContext("handlers", context, lambda: events.append("all entered"))
    with pytest.raises((LookupError, TypeError)) as raised:
        await author_context.keep()
    assert error in f"{raised.typename}: {raised.value}"
    assert caplog.messages == ["running() of FailingHandler failed"]
    assert events == ["a entered"]
