"""The absence of an engine: for a worker that clients call directly (`ENGINE=none`, docs/kubernetes.md).

Owns the worker's URL only: there is no public key to fetch and no report to send.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from lib.engine.engine import Delivery


class NoEngine:
    """The `Engine` of a worker without one. `public_url` is the address at which the worker listens."""

    def __init__(self, public_url: str) -> None:
        self.public_url = public_url
        self.deliveries: Sequence[Delivery] = ()
        self.attempts: Mapping[str, tuple[int, int]] = {}

    def tasks(self, use_key: Callable[[str], None] | None) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """Return no task. Raises `ValueError` if a public key is needed, as there is no source of one."""
        if use_key is not None:
            raise ValueError(
                "no engine provides a public key: use an authenticator that needs none, or another engine"
            )
        return {}

    async def refetch_key(self) -> None:
        """Do nothing: there is no key."""

    def state_changed(self, error_msg: str, at_once: bool = True) -> None:
        """Do nothing: the state is visible in `/readyz`, `/status` and `/metrics`."""

    async def finish(self, limit_s: float) -> bool:
        """Return True: nothing is left to deliver."""
        return True
