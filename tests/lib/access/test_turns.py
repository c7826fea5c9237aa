"""Turns: a few callers go on in each turn of the event loop, in their order, and other work between them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import anyio
from hypothesis import given
from hypothesis import strategies as st

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
        assert begun(turns.wait()) is None
        assert not turns.is_free
        await run_event_loop_turns()


def begun(wait: Coroutine[asyncio.Future[None], None, None]) -> asyncio.Future[None] | None:
    """The future that `wait` waits for; None if it returned at once."""
    try:
        return wait.send(None)
    except StopIteration:
        return None


@given(st.integers(1, 4), st.lists(st.integers(0, 9), min_size=2, max_size=3), st.sets(st.integers(0, 9)))
def test_as_many_go_on_in_each_turn_as_may(at_once: int, rounds: list[int], cancelled: set[int]) -> None:
    async def example() -> None:
        turns = Turns(at_once)
        for callers in rounds:
            await check_round(turns, at_once, callers, cancelled)

    asyncio.run(example())


async def check_round(turns: Turns, at_once: int, callers: int, cancelled: set[int]) -> None:
    """Check the turns of `callers` that come at once; those whose number is `cancelled` wait no more."""
    waits = [turns.wait() for _ in range(callers)]
    futures = [begun(wait) for wait in waits]
    assert [future is None for future in futures] == [n < at_once for n in range(callers)]
    assert turns.is_free == (callers < at_once)
    waiting = list[asyncio.Future[None]]()
    for number, future in enumerate(futures):
        if future is not None and not (number in cancelled and future.cancel()):
            waiting.append(future)
    while waiting:
        await run_event_loop_turns(1)
        assert [future.done() for future in waiting] == [n < at_once for n in range(len(waiting))]
        assert turns.is_free == (len(waiting) < at_once)
        waiting = waiting[at_once:]
    await run_event_loop_turns(1)
    for wait in waits:
        wait.close()
