"""The contexts that `pyworker check` enters: their order, and the ones that fail or hang. Virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

from lib.backend import Backend
from lib.data_types import EndpointHandler
from lib.tools.context_check import contexts_entered
from lib.tools.findings import Findings
from tests.manual_clock import ManualClock
from tests.virtual_time import VirtualClock, in_virtual_time


@dataclass
class Letters(EndpointHandler[Any]):
    hangs_at: str = ""

    @property
    def endpoint(self) -> str:
        return "/letters"

    @classmethod
    def payload_cls(cls) -> type[Any]:
        return dict

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        if self.hangs_at == "entering":
            await anyio.sleep_forever()
        yield
        if self.hangs_at == "leaving":
            await anyio.sleep_forever()


@dataclass
class NotingLetters(Letters):
    notes: list[str] = field(default_factory=list[str])

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        self.notes.append("handler entered")
        yield
        self.notes.append("handler left")


def entered_and_problems(backend: Backend) -> tuple[bool, list[str]]:
    found = Findings("worker.py")

    async def enter_and_leave(clock: VirtualClock) -> bool:
        async with contexts_entered(backend.config(), clock, found) as entered:
            return entered

    return in_virtual_time(enter_and_leave), found.lines()[:-1]


def test_a_worker_without_contexts_is_ready_at_once() -> None:
    assert entered_and_problems(Backend("")) == (True, [])


def test_a_handler_that_hangs_before_its_yield_is_named() -> None:
    backend = Backend("", benchmark_handler=Letters(hangs_at="entering"))
    assert entered_and_problems(backend) == (
        False,
        ["problem  handlers      running() of Letters did not finish entering in 60 s"],
    )


def test_a_handler_that_hangs_after_its_yield_is_named() -> None:
    backend = Backend("", benchmark_handler=Letters(hangs_at="leaving"))
    assert entered_and_problems(backend) == (
        True,
        ["problem  handlers      running() of Letters did not finish leaving in 60 s"],
    )


def test_contexts_are_left_in_reverse_order_and_the_lifecycle_is_named() -> None:
    notes: list[str] = []

    @asynccontextmanager
    async def lifecycle() -> AsyncGenerator[None, None]:
        notes.append("lifecycle entered")
        yield
        notes.append("lifecycle left")
        raise ValueError("no clean-up")

    backend = Backend("", benchmark_handler=NotingLetters(notes=notes), lifecycle=lifecycle)
    assert entered_and_problems(backend) == (
        True,
        ["problem  lifecycle     the lifecycle raised ValueError('no clean-up')"],
    )
    assert notes == ["lifecycle entered", "handler entered", "handler left", "lifecycle left"]


async def test_an_interrupted_check_stops_to_enter() -> None:
    backend, found = Backend("", benchmark_handler=Letters(hangs_at="entering")), Findings("worker.py")

    async def enter() -> None:
        async with contexts_entered(backend.config(), ManualClock(), found):
            pass

    check = asyncio.create_task(enter())
    await anyio.wait_all_tasks_blocked()
    check.cancel()
    with pytest.raises(asyncio.CancelledError):
        await check
    assert found.lines() == ["worker.py: no problems, no warnings"]
