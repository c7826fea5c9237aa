"""A budget that clients hold together, shared fairly between their addresses.

Owns who holds how much of it, and who gives way when it is used up. Nobody is limited before
(docs/protocol.md, "Strangers").
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol

# The most that strangers hold together: clients of whom no request was verified yet. The process grows by
# twice as much (tests/endurance/strangers.py): the allocator keeps a part of what was freed.
STRANGERS_BYTES = 24 * 1024 * 1024


class Holder(Hashable, Protocol):
    """A client that holds a part of a budget, usually by its connection.

    `group` is its address (`lib.runtime.addresses.group_of`). `is_known` says that it gives way last.
    """

    group: str
    is_known: bool

    def evict(self) -> None:
        """Let go of what is held: the budget is used up, and counts it no more."""
        ...


@dataclass(eq=False)
class _Account:
    """The holders of one address. `idle` hold only what they held first, `active` more."""

    held_bytes: int = 0
    idle: dict[Holder, None] = field(default_factory=dict["Holder", None])
    active: dict[Holder, None] = field(default_factory=dict["Holder", None])


@dataclass(eq=False)
class _Entry:
    accounts: dict[str, _Account]
    group: str
    first_bytes: int
    size_bytes: int = 0


class Shares:
    """A budget of `limit_bytes`. `held_bytes` is what is held of it.

    When it is used up, what the address holds that holds most is let go of, until it is enough: what is idle
    first, and of that what is oldest. Holders that are known come last.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.held_bytes = 0
        self.evicted = 0
        self.limit_bytes = limit_bytes
        self._reserved_bytes = 0
        self._entries: dict[Holder, _Entry] = {}
        self._strangers: dict[str, _Account] = {}
        self._known: dict[str, _Account] = {}

    def add(self, holder: Holder, size_bytes: int) -> bool:
        """Count `size_bytes` more for `holder`, or less; return whether it keeps what it holds.

        What one that holds nothing gives back is ignored: it was evicted.
        """
        entry = self._entries.get(holder)
        if entry is None:
            if size_bytes <= 0:
                return True
            accounts = self._known if holder.is_known else self._strangers
            entry = self._entries[holder] = _Entry(accounts, holder.group, size_bytes)
            account = accounts.setdefault(holder.group, _Account())
            account.idle[holder] = None
        else:
            account = entry.accounts[entry.group]
        entry.size_bytes += size_bytes
        account.held_bytes += size_bytes
        self.held_bytes += size_bytes
        if entry.size_bytes <= 0:
            self.release(holder)
        elif entry.size_bytes > entry.first_bytes:
            if holder not in account.active:
                account.idle.pop(holder, None)
                account.active[holder] = None
        elif holder in account.active:
            del account.active[holder]
            account.idle[holder] = None
        return self._make_room(holder)

    def release(self, holder: Holder) -> None:
        """Count nothing for `holder` any more."""
        entry = self._entries.pop(holder, None)
        if entry is None:
            return
        account = entry.accounts[entry.group]
        account.idle.pop(holder, None)
        account.active.pop(holder, None)
        account.held_bytes -= entry.size_bytes
        self.held_bytes -= entry.size_bytes
        if not account.idle and not account.active:
            del entry.accounts[entry.group]

    def reserve(self, size_bytes: int) -> bool:
        """Count `size_bytes` for somebody who never gives way; return False, and don't, without room."""
        if self._reserved_bytes + size_bytes > self.limit_bytes:
            return False
        self._reserved_bytes += size_bytes
        self.held_bytes += size_bytes
        return self._make_room(None)

    def free(self, size_bytes: int) -> None:
        """Count `size_bytes` of what was reserved no more."""
        self._reserved_bytes -= size_bytes
        self.held_bytes -= size_bytes

    def evict_one(self) -> bool:
        """Let go of what one stranger holds; return whether there was one."""
        if self._strangers:
            self._evict()
            return True
        return False

    def _make_room(self, holder: Holder | None) -> bool:
        """Evict holders until the budget is kept; return False if `holder` is one of them."""
        is_kept = True
        while self.held_bytes > self.limit_bytes:
            is_kept = self._evict() is not holder and is_kept
        return is_kept

    def _evict(self) -> Holder:
        account = max((self._strangers or self._known).values(), key=_held_bytes)
        holder = next(iter(account.idle or account.active))
        self.evicted += 1
        self.release(holder)
        holder.evict()
        return holder


class Reservation:
    """The part of `shares` that one request has reserved: `size_bytes`. `free` must be called."""

    __slots__ = ("_shares", "size_bytes")

    def __init__(self, shares: Shares) -> None:
        self.size_bytes = 0
        self._shares = shares

    def take(self, size_bytes: int) -> bool:
        """Reserve `size_bytes` more; return False, and don't, without room."""
        if not self._shares.reserve(size_bytes):
            return False
        self.size_bytes += size_bytes
        return True

    def free(self) -> None:
        """Give back what is reserved; a second call does nothing."""
        self._shares.free(self.size_bytes)
        self.size_bytes = 0


def _held_bytes(account: _Account) -> int:
    return account.held_bytes
