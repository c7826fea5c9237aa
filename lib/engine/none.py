"""No engine: for a worker on a cluster of one's own (`ENGINE=none`).

Owns nothing but the worker's URL: nobody sends clients here, and nobody is told.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from lib.engine.engine import Delivery


class NoEngine:
    """The `Engine` of a worker that has none. `public_url` is where it listens."""

    def __init__(self, public_url: str) -> None:
        self.public_url = public_url
        self.deliveries: Sequence[Delivery] = ()
        self.attempts: Mapping[str, tuple[int, int]] = {}

    def tasks(self, use_key: Callable[[str], None] | None) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """No task. Raises `ValueError` where a public key is needed: nobody gives one."""
        if use_key is not None:
            raise ValueError(
                "there is no engine to give a public key: requests can't be authenticated by one"
            )
        return {}

    async def refetch_key(self) -> None:
        """Do nothing: there is no key."""

    def state_changed(self, error_msg: str, at_once: bool = True) -> None:
        """Do nothing: nobody is told. The state shows in `/readyz`, `/status` and `/metrics`."""

    async def finish(self, limit_s: float) -> bool:
        """Return True: nothing is left to deliver."""
        return True
