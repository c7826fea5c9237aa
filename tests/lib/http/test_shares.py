"""Shares bind only when the budget is used up, and then the address that holds most gives way."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from lib.http.shares import Shares


@dataclass(eq=False)
class Client:
    group: str
    is_known: bool = False
    evictions: int = 0
    held: int = field(default=0, compare=False)

    def evict(self) -> None:
        self.evictions += 1
        self.held = 0


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
    shares.add(active, 10)
    shares.add(active, 60)
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
    shares.free(90)
    assert shares.held_bytes == 0


def test_one_can_be_evicted_for_another_reason() -> None:
    shares, client = Shares(100), Client("a")
    assert not shares.evict_one()
    shares.add(client, 1)
    assert shares.evict_one()
    assert client.evictions == 1


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(-40, 60)), max_size=60))
def test_the_sum_is_what_is_held_and_never_above_the_limit(steps: list[tuple[int, int]]) -> None:
    shares, clients = Shares(100), [Client(str(n % 3), n > 5) for n in range(8)]
    for number, size in steps:
        client = clients[number]
        size = max(size, -client.held)
        client.held += size
        kept = shares.add(client, size)
        assert kept or client.held == 0
        assert shares.held_bytes == sum(c.held for c in clients) <= 100
    for client in clients:
        shares.release(client)
    assert shares.held_bytes == 0
