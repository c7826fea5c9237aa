"""The engine's public key: fetched at start, and again when signatures stop holding (protocol.md §2)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import aiohttp

from lib.runtime.backoff import Backoff
from lib.runtime.clock import Clock, sleep, time_limit

log = logging.getLogger(__name__)

FETCH_TIMEOUT_S = 10.0
FIRST_RETRY_S = 0.5
LAST_RETRY_S = 10.0
# A rotated key is looked for at most this often, however many signatures fail.
REFETCH_INTERVAL_S = 60.0
# How long a request whose signature fails may wait for the rotated key.
REFETCH_LIMIT_S = 5.0
MAX_KEY_BYTES = 64 * 1024


class EngineKey:
    """Fetches `GET {addr}/pubkey/` from each of `addrs` in turn, at the start and when it is asked to.

    The PEM text goes to the `use` of a method's caller, which raises `ValueError` for a text without a key;
    the next address is tried then.
    """

    def __init__(self, http: aiohttp.ClientSession, addrs: Sequence[str], clock: Clock) -> None:
        self._http = http
        self._addrs = addrs
        self._clock = clock
        self._last_look_s: float | None = None
        self._asked = asyncio.Event()
        self._looked = asyncio.Event()

    async def follow(self, use: Callable[[str], None]) -> None:
        """Fetch the key, and then a rotated one whenever `refetch` asks for it."""
        await self.fetch(use)
        await self.look_when_asked(use)

    async def fetch(self, use: Callable[[str], None]) -> None:
        """Return once there is a key, however long that takes."""
        backoff = Backoff(FIRST_RETRY_S, LAST_RETRY_S)
        while not await self._fetch_once(use):
            await sleep(self._clock, backoff.next_s())

    async def look_when_asked(self, use: Callable[[str], None]) -> None:
        """Look for a rotated key whenever `refetch` asks, for as long as the worker runs.

        In a task of its own, so that a client that leaves can't call the look off for the others.
        """
        while True:
            await self._asked.wait()
            self._last_look_s = self._clock.monotonic()
            await self._fetch_once(use)
            self._asked = asyncio.Event()
            looked, self._looked = self._looked, asyncio.Event()
            looked.set()

    async def refetch(self) -> None:
        """Have a rotated key looked for, unless that was done in the last minute; takes 5 s at most.

        Several callers at once share one look.
        """
        if not self._asked.is_set():
            last_s = self._last_look_s
            if last_s is not None and self._clock.monotonic() - last_s < REFETCH_INTERVAL_S:
                return
            self._asked.set()
        with time_limit(self._clock, REFETCH_LIMIT_S):
            await self._looked.wait()

    async def _fetch_once(self, use: Callable[[str], None]) -> bool:
        for addr in self._addrs:
            try:
                async with self._http.get(
                    f"{addr}/pubkey/", timeout=aiohttp.ClientTimeout(total=FETCH_TIMEOUT_S)
                ) as answer:
                    answer.raise_for_status()
                    use((await _body(answer)).decode())
                return True
            except (aiohttp.ClientError, TimeoutError, asyncio.TimeoutError, ValueError) as e:
                log.warning("no public key from %s: %s", addr, str(e) or type(e).__name__)
        return False


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    """The whole body, in however many pieces it comes. Raises `ValueError` when it is too long."""
    body = b""
    async for piece in answer.content.iter_any():
        body += piece
        if len(body) > MAX_KEY_BYTES:
            raise ValueError(f"more than {MAX_KEY_BYTES} bytes")
    return body
