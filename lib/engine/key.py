"""The engine's public key: fetched at the start, and again after an invalid signature.

Owns the requests for the key (docs/protocol.md, "Public key"). It does not verify signatures: that is
lib/access/signatures.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import aiohttp

from lib.runtime.backoff import Backoff
from lib.runtime.clock import Clock, Timer, sleep, time_limit

log = logging.getLogger(__name__)

FETCH_TIMEOUT_S = 10.0
FIRST_RETRY_S = 0.5
LAST_RETRY_S = 10.0
# Shortest time between two fetches of a rotated key, however many signatures are invalid.
REFETCH_INTERVAL_S = 60.0
# Time after a fetch until the next one, if signatures were refused that could not have a fetch of their own.
LOOK_AGAIN_S = 10.0
# Limit of the time that a request with an invalid signature waits for the rotated key.
REFETCH_LIMIT_S = 5.0
MAX_KEY_BYTES = 64 * 1024


class EngineKey:
    """Fetches the public key by `GET {addr}/pubkey/` from each of `addrs` in turn, until one has it.

    The PEM text is passed to a callback `use`. If it raises `ValueError`, because the text holds no key, the
    next address is tried.
    """

    def __init__(self, http: aiohttp.ClientSession, addrs: Sequence[str], clock: Clock) -> None:
        self._http = http
        self._addrs = addrs
        self._clock = clock
        self._last_refetch_s: float | None = None
        self._timer: Timer | None = None  # of the next fetch that is due by time
        self._requested = asyncio.Event()
        self._refetched = asyncio.Event()

    async def follow(self, use: Callable[[str], None]) -> None:
        """Fetch the key, and then a rotated key for each call of `refetch`. Never returns."""
        await self.fetch(use)
        await self.refetch_on_request(use)

    async def fetch(self, use: Callable[[str], None]) -> None:
        """Fetch the key, with retries until it succeeds."""
        backoff = Backoff(FIRST_RETRY_S, LAST_RETRY_S)
        while not await self._fetch_once(use):
            await sleep(self._clock, backoff.next_s())

    async def refetch_on_request(self, use: Callable[[str], None]) -> None:
        """Fetch a rotated key for each call of `refetch`. Never returns.

        Runs in a task of its own, so that a client that leaves can't cancel the fetch for the others.
        """
        while True:
            await self._requested.wait()
            self._last_refetch_s = self._clock.monotonic()
            await self._fetch_once(use)
            self._requested = asyncio.Event()
            refetched, self._refetched = self._refetched, asyncio.Event()
            refetched.set()

    async def refetch(self) -> None:
        """Have a rotated key fetched, unless the last fetch was less than a minute ago; wait at most 5 s.

        Concurrent callers share one fetch. Callers that come too early don't wait, but one fetch follows for
        all of them, `LOOK_AGAIN_S` after the last: a stranger's bad signature may have caused that.
        """
        if not self._requested.is_set():
            last_s = self._last_refetch_s
            if last_s is not None and self._clock.monotonic() - last_s < REFETCH_INTERVAL_S:
                self._look_again(last_s + LOOK_AGAIN_S)
                return
            self._requested.set()
        with time_limit(self._clock, REFETCH_LIMIT_S):
            await self._refetched.wait()

    def _look_again(self, at_s: float) -> None:
        """Have the key fetched at the time `at_s`, or at once if that is past."""
        if self._timer is None:
            self._timer = self._clock.call_later(max(0.0, at_s - self._clock.monotonic()), self._look)

    def _look(self) -> None:
        self._timer = None
        self._requested.set()

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
    """Read the whole body. Raises `ValueError` if it is longer than `MAX_KEY_BYTES`."""
    body = b""
    async for piece in answer.content.iter_any():
        body += piece
        if len(body) > MAX_KEY_BYTES:
            raise ValueError(f"more than {MAX_KEY_BYTES} bytes")
    return body
