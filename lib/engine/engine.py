"""The seam to whoever sends clients to the worker and hears of its load.

Owns the `Engine` protocol. The serverless engine of Vast.ai is vast.py's, a worker without one is none.py's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Capacity:
    """What a status report says besides the ledger: seconds to ready (0.0 before), and workload/s."""

    loadtime_s: float
    max_perf: float


@dataclass(frozen=True)
class Delivery:
    """One attempt to deliver a message: Unix time, and the engine's status or what went wrong.

    `message` is without the token, and has the number of finished requests instead of their entries.
    """

    at: float
    path: str
    addr: str
    message: dict[str, Any]
    answer: str
    delivered: bool


class Engine(Protocol):
    """Sends clients to the worker, and is told of its load.

    An engine of one's own is a class with these members, given to `Backend(engine=…)`. It finds the worker's
    numbers in the ledger (`Ledger.snapshot`, `Ledger.finished`), adds to `Ledger.listeners` what has to hear
    of changes, and acknowledges what it has delivered.
    """

    @property
    def public_url(self) -> str:
        """The URL by which clients reach this worker."""
        ...

    def tasks(self, use_key: Callable[[str], None] | None) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """The tasks that have to run as long as the worker does, by name.

        One of them gives the public key of signed requests to `use_key`, and again when it is rotated; it
        skips a key for which that raises `ValueError`. None: nobody needs the key.
        """
        ...

    async def refetch_key(self) -> None:
        """Look for a rotated key, in bounded time and not too often: a signature does not hold."""
        ...

    def state_changed(self, error_msg: str, at_once: bool = True) -> None:
        """Note that the worker's state has changed, or, not `at_once`, only its `error_msg` ("" for none)."""
        ...

    async def finish(self, limit_s: float) -> bool:
        """Deliver what is left; return whether all of it was taken within `limit_s` seconds."""
        ...

    @property
    def deliveries(self) -> Sequence[Delivery]:
        """The last attempts to deliver a message, oldest first."""
        ...

    @property
    def attempts(self) -> Mapping[str, tuple[int, int]]:
        """By path, the numbers of deliveries that succeeded and that failed."""
        ...
