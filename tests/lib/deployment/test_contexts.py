"""The contexts of a deployment of the real SDK: all are entered at once, and left whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from lib.deployment.contexts import contexts_entered
from tests.guard import GUARD_S
from tests.lib.deployment.registered import SDK


class Context:
    """A context that notes what happens to it in `events`, and fails or waits where it is asked to.

    It sets `announces` once it is entered.
    """

    def __init__(
        self,
        events: list[str],
        waits_for: asyncio.Event | None = None,
        announces: asyncio.Event | None = None,
        fails: str = "",
    ) -> None:
        self.events = events
        self.waits_for = waits_for
        self.announces = announces
        self.fails = fails
        self.task: asyncio.Task[Any] | None = None

    async def __aenter__(self) -> str:
        self.task = asyncio.current_task()
        self.events.append("entering")
        if self.waits_for is not None:
            await self.waits_for.wait()
        if self.fails == "entering":
            raise RuntimeError("no weights")
        if self.announces is not None:
            self.announces.set()
        return f"value of {type(self).__name__}"

    async def __aexit__(self, *exception: object) -> None:
        assert self.task is asyncio.current_task()
        await asyncio.sleep(0)  # clean-up may wait
        self.events.append("left")
        if self.fails == "leaving":
            raise RuntimeError("can't leave")


class One(Context):
    pass


class Two(Context):
    pass


def deployment_of(*contexts: tuple[type[Context], dict[str, Any]]) -> tuple[Any, Sequence[list[str]]]:
    """A deployment with these contexts, and what happens to each."""
    deployment = SDK.deployment_class()
    events: list[list[str]] = []
    for kind, options in contexts:
        events.append([])
        deployment.context(events[-1], **options)(kind)
    return deployment, events


async def test_all_are_entered_at_once_and_left() -> None:
    released, entered = asyncio.Event(), asyncio.Event()
    release, inside = asyncio.Event(), asyncio.Event()
    deployment, (one, two) = deployment_of((One, {"waits_for": released}), (Two, {"announces": entered}))
    with anyio.fail_after(GUARD_S):
        with pytest.raises(KeyError):
            deployment.get_context(Two)
        entering = asyncio.create_task(enter(deployment, release, inside))
        await entered.wait()
        assert one == ["entering"]
        assert not inside.is_set()
        released.set()
        await inside.wait()
        assert deployment.get_context(One) == "value of One"
        assert deployment.get_context(Two) == "value of Two"
        release.set()
        await entering
    assert [one, two] == [["entering", "left"]] * 2
    with pytest.raises(KeyError):
        deployment.get_context(One)


async def enter(deployment: Any, release: asyncio.Event, inside: asyncio.Event) -> None:
    async with contexts_entered(deployment):
        inside.set()
        await release.wait()


async def test_without_contexts_there_is_nothing_to_wait_for() -> None:
    with anyio.fail_after(GUARD_S):
        async with contexts_entered(deployment_of()[0]):
            pass


@pytest.mark.parametrize("order", [1, -1])
async def test_the_others_are_left_if_one_cannot_be_entered(order: int) -> None:
    contexts: list[tuple[type[Context], dict[str, Any]]] = [(One, {}), (Two, {"fails": "entering"})]
    deployment, events = deployment_of(*contexts[::order])
    with anyio.fail_after(GUARD_S), pytest.raises(RuntimeError, match="no weights"):
        async with contexts_entered(deployment):
            raise AssertionError("not all are entered")
    one, two = events[::order]
    assert two == ["entering"]
    assert one == ["entering", "left"]
    assert deployment.contexts == {}


async def test_entering_is_cancelled_and_the_others_are_left_if_the_worker_stops_meanwhile() -> None:
    entered = asyncio.Event()
    deployment, (one, two) = deployment_of(
        (One, {"announces": entered}), (Two, {"waits_for": asyncio.Event()})
    )
    with anyio.fail_after(GUARD_S):
        entering = asyncio.create_task(enter(deployment, asyncio.Event(), asyncio.Event()))
        await entered.wait()
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
    assert (one, two) == (["entering", "left"], ["entering"])


async def test_the_others_are_left_if_one_fails_to_leave() -> None:
    deployment, events = deployment_of((One, {"fails": "leaving"}), (Two, {}))
    with anyio.fail_after(GUARD_S), pytest.raises(RuntimeError, match="can't leave"):
        async with contexts_entered(deployment):
            pass
    assert [*events] == [["entering", "left"]] * 2
