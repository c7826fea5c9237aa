"""Shares bind only when the budget is used up, and then the address that holds most gives way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from lib.http.shares import Shares


@dataclass(eq=False)
class Client:
    group: str
    is_known: bool = False
    evictions: int = 0

    def evict(self) -> None:
        self.evictions += 1


def test_one_address_may_hold_everything() -> None:
    shares, clients = Shares(100), [Client("a") for _ in range(10)]
    assert all(shares.add(client, 10) for client in clients)
    assert not any(client.evictions for client in clients)


def test_the_address_that_holds_most_gives_way_to_others() -> None:
    shares, greedy, honest = Shares(100), [Client("a") for _ in range(9)], Client("b")
    for client in greedy:
        shares.add(client, 11)
    assert shares.add(honest, 20)
    assert [client.evictions for client in greedy] == [1, 1] + [0] * 7  # the oldest, and only as many
    assert shares.held_bytes == 97


def test_the_one_that_takes_too_much_is_told() -> None:
    shares, small, large = Shares(100), Client("a"), Client("b")
    shares.add(small, 30)
    assert shares.add(large, 60)
    assert not shares.add(large, 20)
    assert (small.evictions, large.evictions, shares.held_bytes) == (0, 1, 30)
    shares.add(large, -80)  # what it gives back afterwards isn't counted again
    assert shares.held_bytes == 30


def test_what_is_idle_gives_way_first() -> None:
    shares, active, idle = Shares(100), Client("a"), Client("a")
    for size_bytes in (10, 60, -60, 60):  # active, idle, and active again
        shares.add(active, size_bytes)
    shares.add(idle, 10)
    shares.add(Client("b"), 30)
    assert (active.evictions, idle.evictions) == (0, 1)


def test_one_that_is_idle_again_counts_as_idle() -> None:
    shares, first, second = Shares(90), Client("a"), Client("a")
    for client in (first, second):
        shares.add(client, 10)
        shares.add(client, 30)
    shares.add(second, -30)
    shares.add(Client("b"), 45)
    assert (first.evictions, second.evictions) == (0, 1)


def test_known_clients_give_way_last() -> None:
    shares, known, stranger, taker = Shares(100), Client("a", is_known=True), Client("b"), Client("c")
    shares.add(known, 70)
    shares.add(stranger, 20)
    assert shares.add(taker, 15)
    assert (known.evictions, stranger.evictions) == (0, 1)
    assert not shares.add(taker, 30)
    assert (known.evictions, taker.evictions) == (0, 1)
    assert not shares.add(known, 40)


def test_what_is_reserved_never_gives_way() -> None:
    shares, stranger = Shares(100), Client("a")
    shares.add(stranger, 60)
    assert shares.reserve(90)
    assert stranger.evictions == 1
    assert not shares.reserve(11)
    assert not shares.add(stranger, 11)
    shares.add(stranger, 10)
    assert not shares.reserve(11)  # nobody gives way in vain
    assert (stranger.evictions, shares.held_bytes) == (2, 100)
    shares.release(stranger)
    shares.free(90)
    assert shares.held_bytes == 0


def test_one_can_be_evicted_for_another_reason() -> None:
    shares, client = Shares(100), Client("a")
    assert not shares.evict_one()
    shares.add(client, 1)
    assert shares.evict_one()
    assert client.evictions == 1


LIMIT_BYTES = 100
CLIENTS = 8
Step = Callable[["Budget", int, int], None]


class Budget:
    """Shares, and by whom they are held; checks who gives way by the rule, written down plainly."""

    def __init__(self) -> None:
        self.shares = Shares(LIMIT_BYTES)
        self.clients = [RuledClient(self, str(number % 2), number > 5) for number in range(CLIENTS)]
        self.reserved_bytes = 0
        self.steps = 0
        self.evicted = 0
        self.is_wanted = False  # one is to give way although there is room

    @property
    def held_bytes(self) -> int:
        return self.reserved_bytes + sum(client.held_bytes for client in self.clients)

    def add(self, number: int, size_bytes: int) -> None:
        client = self.clients[number]
        evictions = client.evictions
        client.hold(size_bytes)
        assert self.shares.add(client, size_bytes) == (client.evictions == evictions)

    def reserve(self, _: int, size_bytes: int) -> None:
        has_room = self.reserved_bytes + size_bytes <= LIMIT_BYTES
        self.reserved_bytes += size_bytes if has_room else 0
        assert self.shares.reserve(size_bytes) == has_room

    def free(self, _: int, size_bytes: int) -> None:
        size_bytes = min(size_bytes, self.reserved_bytes)
        self.reserved_bytes -= size_bytes
        self.shares.free(size_bytes)

    def release(self, number: int, _: int) -> None:
        self.clients[number].held_bytes = 0
        self.shares.release(self.clients[number])

    def evict_one(self, _: int, __: int) -> None:
        has_stranger = any(client.held_bytes and not client.is_known for client in self.clients)
        self.is_wanted = has_stranger
        assert self.shares.evict_one() == has_stranger
        assert not self.is_wanted

    def last_in_line(self) -> list[RuledClient]:
        """Those of whom one must be the next to give way."""
        holding = [client for client in self.clients if client.held_bytes]
        holding = [client for client in holding if not client.is_known] or holding
        groups = [[c for c in holding if c.group == group] for group in {c.group for c in holding}]
        sums = [sum(client.held_bytes for client in group) for group in groups]
        most = [group for group, held_bytes in zip(groups, sums, strict=True) if held_bytes == max(sums)]
        idle_first = [[client for client in group if client.is_idle] or group for group in most]
        return [min(group, key=lambda client: client.since) for group in idle_first]


class RuledClient(Client):
    """A client of `budget`. `since` is the step at which it became idle or active."""

    def __init__(self, budget: Budget, group: str, is_known: bool) -> None:
        super().__init__(group, is_known)
        self.budget = budget
        self.held_bytes = self.first_bytes = self.since = 0

    @property
    def is_idle(self) -> bool:
        return self.held_bytes <= self.first_bytes

    def hold(self, size_bytes: int) -> None:
        self.budget.steps += 1
        if not self.held_bytes:
            self.first_bytes, self.since = size_bytes, self.budget.steps
        was_idle = self.is_idle
        self.held_bytes = max(0, self.held_bytes + size_bytes)
        if self.is_idle != was_idle:
            self.since = self.budget.steps

    def evict(self) -> None:
        assert self in self.budget.last_in_line()
        assert self.budget.held_bytes > LIMIT_BYTES or self.budget.is_wanted
        self.budget.is_wanted = False
        self.budget.evicted += 1
        self.evictions += 1
        self.held_bytes = 0


SIZES = st.sampled_from([-20, -10, -10, -5, 0, 5, 10, 10, 20])
LARGE = st.sampled_from([LIMIT_BYTES // 2, LIMIT_BYTES - 1, LIMIT_BYTES, LIMIT_BYTES + 1])
ADDED = st.tuples(st.just(Budget.add), st.integers(0, CLIENTS - 1), SIZES)
ANY_STEP = st.tuples(
    st.sampled_from([Budget.add, Budget.reserve, Budget.free, Budget.release, Budget.evict_one]),
    st.integers(0, CLIENTS - 1),
    SIZES.map(abs) | LARGE,
)


@given(st.lists(ADDED | ADDED | ADDED | ADDED | ANY_STEP, min_size=30, max_size=60))
def test_whoever_gives_way_is_the_last_in_line(steps: list[tuple[Step, int, int]]) -> None:
    budget = Budget()
    for step, number, size_bytes in steps:
        step(budget, number, size_bytes)
        assert budget.shares.held_bytes == budget.held_bytes <= LIMIT_BYTES
        assert budget.shares.evicted == budget.evicted
    for client in budget.clients:
        budget.shares.release(client)
    assert budget.shares.held_bytes == budget.reserved_bytes
