"""The interface of the serverless engine, which sends clients to the worker and receives its reports.

Owns the `Engine` protocol. Its implementations are in vast.py (the engine of Vast.ai) and none.py (a worker
without an engine).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Capacity:
    """The worker's capacity in a status report: seconds until it was ready (0.0 before), and workload/s."""

    loadtime_s: float
    max_perf: float


@dataclass(frozen=True)
class Delivery:
    """One attempt to deliver a message to the engine.

    `at` is in Unix seconds. `answer` is the engine's status line, or the error. `message` has no token, and
    has the number of finished requests instead of their entries.
    """

    at: float
    path: str
    addr: str
    message: dict[str, Any]
    answer: str
    delivered: bool


class Engine(Protocol):
    """Sends clients to the worker, and receives reports of its load.

    To add one, write a class with these members and pass it to `Backend(engine=…)`. It reads the worker's
    numbers from the ledger (`Ledger.snapshot`, `Ledger.finished`), adds a callback to `Ledger.listeners` for
    their changes, and acknowledges what it has delivered.
    """

    @property
    def public_url(self) -> str:
        """The URL at which clients reach this worker."""
        ...

    def tasks(self, use_key: Callable[[str], None] | None) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """The tasks to run as long as the worker runs, by name.

        One of them passes the public key of signed requests to `use_key`, and each rotated key later; a text
        for which `use_key` raises `ValueError` is skipped. `use_key` is None if the key is not needed.
        """
        ...

    async def refetch_key(self) -> None:
        """Fetch a rotated key after an invalid signature. Must limit its duration and its frequency."""
        ...

    def state_changed(self, error_msg: str, at_once: bool = True) -> None:
        """Note that the worker's state has changed; without `at_once`, only its `error_msg` ("" for none)."""
        ...

    async def finish(self, limit_s: float) -> bool:
        """Deliver all that is left; return whether that succeeded within `limit_s` seconds."""
        ...

    @property
    def deliveries(self) -> Sequence[Delivery]:
        """The last attempts to deliver a message, oldest first."""
        ...

    @property
    def attempts(self) -> Mapping[str, tuple[int, int]]:
        """By path, the numbers of deliveries that succeeded and that failed."""
        ...
