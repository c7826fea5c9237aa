"""Slots: first come, first served, with limits on waiting, under any interleaving. No HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib.errors import TooBusy
from lib.request.lanes import SlotQueue
from tests.event_loop import run_event_loop_turns
from tests.manual_clock import ManualClock
from tests.slots import holding


class QueueClosed(Exception):
    pass


@dataclass
class QueueClient:
    """A client that takes a slot, and keeps it until `leave` is set. Times are of the manual clock."""

    queue: SlotQueue
    clock: ManualClock
    max_wait_s: float | None = None
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    arrived_s: float | None = None
    inside: bool = False
    refused: Exception | None = None
    refused_s: float = 0.0

    async def visit(self) -> None:
        self.arrived_s = self.clock.monotonic()
        try:
            async with holding(self.queue, self.max_wait_s):
                self.inside = True
                try:
                    await self.leave.wait()
                finally:
                    self.inside = False
        except (TooBusy, QueueClosed) as e:
            self.refused, self.refused_s = e, self.clock.monotonic()


class QueueScenario:
    """A queue and all of its clients, in the order of arrival."""

    def __init__(self, limit: int | None, retry_after: Callable[[], float] = lambda: 2.5) -> None:
        self.clock = ManualClock()
        self.queue = SlotQueue(limit, self.clock, retry_after)
        self.clients: list[QueueClient] = []
        self.tasks: list[asyncio.Task[None]] = []

    def arrive(self, max_wait_s: float | None = None) -> QueueClient:
        client = QueueClient(self.queue, self.clock, max_wait_s)
        self.clients.append(client)
        self.tasks.append(asyncio.create_task(client.visit()))
        return client

    async def arrivals(self, count: int, max_wait_s: float | None = None) -> list[QueueClient]:
        clients = [self.arrive(max_wait_s) for _ in range(count)]
        await run_event_loop_turns()
        return clients

    def cancel(self, client: QueueClient) -> None:
        self.tasks[self.clients.index(client)].cancel()

    def waiting(self) -> list[QueueClient]:
        return [
            client
            for client, task in zip(self.clients, self.tasks, strict=True)
            if client.arrived_s is not None and not client.inside and not task.done()
        ]

    def inside(self) -> list[QueueClient]:
        return [client for client in self.clients if client.inside]

    async def close(self) -> None:
        """Cancel all clients, and check that no slot, wait or timer is left."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        assert (self.queue.working, self.queue.waiting, self.clock.pending) == (0, 0, 0)


def test_a_free_slot_is_taken_without_an_event_loop_or_a_timer() -> None:
    clock = ManualClock()
    queue = SlotQueue(1, clock)
    assert queue.try_acquire()
    assert (queue.working, queue.waiting, clock.pending) == (1, 0, 0)
    assert not queue.try_acquire()
    queue.release()
    assert queue.working == 0


@pytest.mark.parametrize("limit", [0, -1])
def test_a_queue_without_slots_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match="at least 1 slot"):
        SlotQueue(limit, ManualClock())


async def test_slots_are_given_in_the_order_of_arrival() -> None:
    scenario = QueueScenario(2)
    clients = await scenario.arrivals(5)
    assert scenario.inside() == clients[:2]
    assert (scenario.queue.working, scenario.queue.waiting) == (2, 3)
    clients[1].leave.set()
    await run_event_loop_turns()
    assert scenario.inside() == [clients[0], clients[2]]
    clients[0].leave.set()
    clients[2].leave.set()
    await run_event_loop_turns()
    assert scenario.inside() == clients[3:]
    await scenario.close()


async def test_by_default_a_refused_client_may_retry_after_a_second() -> None:
    queue = SlotQueue(1, ManualClock())
    assert queue.try_acquire()
    with pytest.raises(TooBusy) as refused:
        await queue.wait(0.0)
    assert refused.value.retry_after_s == 1


async def test_without_a_limit_no_client_waits() -> None:
    scenario = QueueScenario(None)
    assert not scenario.queue.is_full
    await scenario.arrivals(500, max_wait_s=0.0)
    assert (scenario.queue.working, scenario.queue.waiting) == (500, 0)
    await scenario.close()


async def test_an_exception_in_the_block_gives_the_slot_back() -> None:
    queue = SlotQueue(1, ManualClock())
    with pytest.raises(KeyError):
        async with holding(queue):
            raise KeyError("author's")
    assert queue.working == 0


async def test_a_wait_above_the_limit_is_refused_with_retry_after() -> None:
    scenario = QueueScenario(1)
    first, second, third = await scenario.arrivals(1) + await scenario.arrivals(2, max_wait_s=30.0)
    scenario.clock.advance(29.9)
    await run_event_loop_turns()
    assert scenario.waiting() == [second, third]
    first.leave.set()
    await run_event_loop_turns()
    assert scenario.inside() == [second]
    scenario.clock.advance(0.1)
    assert scenario.queue.waiting == 0  # at once, not when its task next runs
    await run_event_loop_turns()
    assert isinstance(third.refused, TooBusy)
    assert third.refused.status == 429
    assert third.refused.message == "no slot came free within 30 s"
    assert third.refused.headers() == {"Retry-After": "3"}
    scenario.clock.advance(60)
    await run_event_loop_turns()
    assert scenario.inside() == [second]
    await scenario.close()


async def test_a_limit_of_0_refuses_immediately() -> None:
    scenario = QueueScenario(1)
    first, second = await scenario.arrivals(2, max_wait_s=0.0)
    assert first.inside
    assert isinstance(second.refused, TooBusy)
    await scenario.close()


async def test_a_retry_after_that_raises_affects_only_its_own_request() -> None:
    scenario = QueueScenario(1, retry_after=lambda: 1 / 0)
    clients = [
        *await scenario.arrivals(1),
        *await scenario.arrivals(1, max_wait_s=1.0),
        *await scenario.arrivals(1),
    ]
    scenario.clock.advance(1.0)
    with pytest.raises(ZeroDivisionError):
        await scenario.tasks[1]
    clients[0].leave.set()
    await run_event_loop_turns()
    assert scenario.inside() == [clients[2]]
    await scenario.close()


async def test_a_cancelled_client_is_skipped() -> None:
    scenario = QueueScenario(1)
    clients = await scenario.arrivals(3)
    scenario.cancel(clients[1])
    clients[0].leave.set()
    await run_event_loop_turns()
    assert scenario.tasks[1].cancelled()
    assert scenario.inside() == [clients[2]]
    await scenario.close()


async def test_a_slot_granted_to_a_client_cancelled_meanwhile_goes_to_the_next() -> None:
    scenario = QueueScenario(1)
    clients = await scenario.arrivals(3)
    clients[0].leave.set()
    await asyncio.sleep(0)
    assert scenario.queue.waiting == 1
    assert not clients[1].inside  # granted, but its task has not run yet
    scenario.cancel(clients[1])
    await run_event_loop_turns()
    assert scenario.inside() == [clients[2]]
    await scenario.close()


async def test_refuse_all_refuses_present_and_later_waits() -> None:
    scenario = QueueScenario(1)
    clients = await scenario.arrivals(1) + await scenario.arrivals(2, max_wait_s=5.0)
    scenario.queue.refuse_all(QueueClosed)
    assert scenario.queue.waiting == 0
    late = scenario.arrive()
    await run_event_loop_turns()
    refused = [client.refused for client in (*clients[1:], late)]
    assert all(isinstance(error, QueueClosed) for error in refused)
    assert len(set(map(id, refused))) == 3
    assert clients[0].inside
    clients[0].leave.set()
    await run_event_loop_turns()
    (after,) = await scenario.arrivals(1)
    assert after.inside
    await scenario.close()


# The rules under any interleaving: batches of operations, each run to its end before the next

Op = tuple[str, float]

OP = st.one_of(
    st.tuples(st.just("arrive"), st.sampled_from([-1.0, -1.0, 0.0, 1.0, 3.0])),
    st.tuples(st.just("arrive"), st.sampled_from([-1.0, 1.0, 3.0])),
    st.tuples(st.sampled_from(["leave", "cancel"]), st.integers(0, 7)),
    st.tuples(st.just("advance"), st.sampled_from([0.5, 1.0, 2.0])),
    st.tuples(st.just("turn"), st.just(1)),
)
BATCH = st.lists(OP, min_size=1, max_size=6)
# Lists without a least size have five batches on average: too few for queues to build up.
BATCHES = st.lists(BATCH, max_size=20) | st.lists(BATCH, min_size=8, max_size=20)


async def apply(scenario: QueueScenario, op: Op) -> None:
    kind, number = op
    if kind == "arrive":
        scenario.arrive(None if number < 0 else number)
    elif kind == "advance":
        scenario.clock.advance(number)
    elif kind == "turn":
        await asyncio.sleep(0)
    elif kind == "leave" and scenario.inside():
        inside = scenario.inside()
        inside[int(number) % len(inside)].leave.set()
    elif kind == "cancel" and scenario.clients:
        scenario.tasks[int(number) % len(scenario.tasks)].cancel()


def check_always(scenario: QueueScenario) -> None:
    limit = scenario.queue.limit
    assert limit is None or max(len(scenario.inside()), scenario.queue.working) <= limit
    assert len(scenario.inside()) <= scenario.queue.working


def check_settled(scenario: QueueScenario, draining: bool) -> None:
    queue, waiting, inside = scenario.queue, scenario.waiting(), scenario.inside()
    now_s = scenario.clock.monotonic()
    assert (queue.waiting, queue.working) == (len(waiting), len(inside))
    if waiting:
        assert queue.limit == len(inside), "a slot is free while somebody waits"
        assert not draining
        numbers = {id(client): number for number, client in enumerate(scenario.clients)}
        assert max(numbers[id(c)] for c in inside) < min(numbers[id(c)] for c in waiting), "out of order"
    for client in waiting:
        assert client.arrived_s is not None
        assert client.max_wait_s is None or now_s < client.arrived_s + client.max_wait_s
    for client in scenario.clients:
        if isinstance(client.refused, TooBusy):
            assert client.arrived_s is not None
            assert client.max_wait_s is not None
            assert client.refused_s >= client.arrived_s + client.max_wait_s
    # One timer for each client that waits with a limit.
    assert scenario.clock.pending == sum(client.max_wait_s is not None for client in waiting)


async def run_scenario(limit: int | None, batches: list[list[Op]], drain_at: int, drain_after: int) -> None:
    scenario = QueueScenario(limit)
    for number, batch in enumerate(batches):
        for position, op in enumerate(batch):
            if number == drain_at and position == drain_after % len(batch):
                scenario.queue.refuse_all(QueueClosed)
            await apply(scenario, op)
            check_always(scenario)
        await run_event_loop_turns()
        check_always(scenario)
        check_settled(scenario, draining=number >= drain_at)
    await scenario.close()


@settings(max_examples=120, deadline=None)
@given(
    limit=st.sampled_from([1, 2, 3, None]),
    batches=BATCHES,
    drain_at=st.integers(0, 15) | st.just(30),
    drain_after=st.integers(0, 5),
)
@example(  # granted and cancelled, cancelled and timed out, in one turn
    limit=1,
    batches=[
        [("arrive", -1), ("arrive", 1.0), ("arrive", 1.0), ("arrive", -1)],
        [("leave", 0), ("turn", 1), ("cancel", 1), ("cancel", 2), ("advance", 1.0)],
    ],
    drain_at=30,
    drain_after=0,
)
@example(  # timed out and cancelled in one turn
    limit=1,
    batches=[[("arrive", -1), ("arrive", 1.0), ("arrive", -1)], [("advance", 1.0), ("cancel", 1)]],
    drain_at=30,
    drain_after=0,
)
@example(  # released and cancelled in one turn
    limit=1,
    batches=[[("arrive", -1), ("arrive", -1)], [("advance", 1.0), ("cancel", 1)]],
    drain_at=1,
    drain_after=0,
)
def test_first_come_first_served_under_any_interleaving(
    limit: int | None, batches: list[list[Op]], drain_at: int, drain_after: int
) -> None:
    asyncio.run(run_scenario(limit, batches, drain_at, drain_after))
