"""Turns: a few callers go on in each turn of the event loop, in their order, and other work between them."""

from __future__ import annotations

import asyncio

import anyio

from lib.access.turns import Turns
from tests.event_loop import run_event_loop_turns
from tests.guard import GUARD_S


async def test_a_few_go_on_at_once_and_the_others_in_their_order() -> None:
    turns, order = Turns(at_once=2), list[object]()
    end = asyncio.Event()

    async def caller(number: int) -> None:
        await turns.wait()
        order.append(number)
        if number == 9:
            end.set()

    async def other_work() -> None:
        while not end.is_set():
            order.append("other")
            await asyncio.sleep(0)

    with anyio.fail_after(GUARD_S):
        await asyncio.gather(*(caller(number) for number in range(10)), other_work())
    assert [one for one in order if one != "other"] == list(range(10))
    assert max(len(run) for run in "".join("x" if one != "other" else " " for one in order).split()) <= 2


async def test_one_that_is_cancelled_takes_no_turn() -> None:
    turns, order = Turns(at_once=1), list[int]()

    async def caller(number: int) -> None:
        await turns.wait()
        order.append(number)

    tasks = [asyncio.create_task(caller(number)) for number in range(4)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [0, 2, 3]


async def test_without_others_nobody_waits() -> None:
    turns = Turns(at_once=1)
    for _ in range(3):
        assert turns.is_free
        await turns.wait()
        assert not turns.is_free
        await run_event_loop_turns()
