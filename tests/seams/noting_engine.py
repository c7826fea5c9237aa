"""A custom engine: it records the load at each change, and takes the finished requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from lib.backend import Delivery
from lib.metrics import FinishedRequest, Ledger


class NotingEngine:
    """Records what a report would contain; `finish` takes the finished requests."""

    public_url = "http://worker.example"

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        ledger.listeners.append(self._changed)
        self.loads: list[float] = []
        self.errors: list[str] = []
        self.finished: list[FinishedRequest] = []
        self.deliveries: Sequence[Delivery] = ()
        self.attempts: Mapping[str, tuple[int, int]] = {}

    def tasks(self, use_key: Callable[[str], None] | None) -> Mapping[str, Callable[[], Awaitable[None]]]:
        return {}

    async def refetch_key(self) -> None: ...

    def state_changed(self, error_msg: str, at_once: bool = True) -> None:
        self.errors.append(error_msg)

    async def finish(self, limit_s: float) -> bool:
        entries, mark = self._ledger.finished()
        self.finished += entries
        self._ledger.acknowledge_finished(mark)
        return True

    def _changed(self) -> None:
        self.loads.append(self._ledger.snapshot().cur_load)
