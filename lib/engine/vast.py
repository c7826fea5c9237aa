"""The serverless engine of Vast.ai: a public key to fetch, and reports to deliver.

Owns the choice of addresses and identity. It does not send requests itself: that is reports.py and key.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import aiohttp

from lib.engine.engine import Capacity, Delivery
from lib.engine.key import EngineKey
from lib.engine.reports import Reporter, WorkerIdentity
from lib.metrics import Ledger
from lib.runtime.clock import Clock
from lib.runtime.settings import Settings


class VastEngine:
    """The `Engine` at the report addresses of `settings`. `capacity` returns the worker's capacity now."""

    def __init__(
        self,
        settings: Settings,
        http: aiohttp.ClientSession,
        ledger: Ledger,
        capacity: Callable[[], Capacity],
        clock: Clock,
    ) -> None:
        self.public_url = settings.public_url
        self._reporter = Reporter(
            http,
            settings.report_addrs,
            settings.key_addrs,
            WorkerIdentity(
                settings.container_id, settings.master_token, settings.public_url, settings.loopback_url
            ),
            ledger,
            capacity,
            clock,
            settings.max_report_pause_s,
        )
        self._key = EngineKey(http, settings.key_addrs, clock)
        self.refetch_key = self._key.refetch
        self.state_changed = self._reporter.state_changed
        self.finish = self._reporter.finish

    def tasks(self, use_key: Callable[[str], None] | None) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """The tasks for status reports, for completions and, if `use_key` is not None, for the public key."""
        tasks: dict[str, Callable[[], Awaitable[None]]] = {
            "status reports": self._reporter.report_status,
            "completions": self._reporter.report_completions,
        }
        if use_key is not None:
            tasks["public key"] = partial(self._key.follow, use_key)
        return tasks

    @property
    def deliveries(self) -> Sequence[Delivery]:
        """The last attempts to deliver a message, oldest first."""
        return self._reporter.deliveries

    @property
    def attempts(self) -> Mapping[str, tuple[int, int]]:
        """By path, the numbers of deliveries that succeeded and that failed."""
        return self._reporter.attempts
