"""The body of an envelope while it arrives, whose signature is verified as soon as its `auth_data` is there.

Owns where such a body is kept: a stranger's beyond a part of it on disk, all of a verified one in memory. It
does not verify signatures: that is signed.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from lib.access.body import BodyReader, MemoryShare
from lib.access.envelope import PARSED_WHOLE_BYTES
from lib.access.scanner import SLICE_BYTES, EnvelopeScanner
from lib.access.spool import SpoolRoom, StrangersFile
from lib.request.incoming import IncomingRequest

# What is kept in memory of a body that is not verified: the rest goes to disk.
KEPT_BYTES = 256 * 1024


class ScanTurns:
    """Lets one body at a time be scanned, for one slice in each turn of the event loop.

    Other work has its turn between two slices, however many bodies arrive at once.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def scan(self, scanner: EnvelopeScanner, data: bytes) -> None:
        """Follow `data`. Raises what `EnvelopeScanner.feed` raises."""
        for start in range(0, len(data), SLICE_BYTES):
            async with self._lock:
                scanner.feed(data[start : start + SLICE_BYTES])
                await asyncio.sleep(0)


class Arrivals:
    """Receives envelopes by `bodies`. What strangers send beyond `KEPT_BYTES` each takes of `room`."""

    def __init__(self, bodies: BodyReader, room: SpoolRoom) -> None:
        self.bodies = bodies
        self.room = room
        self.turns = ScanTurns()
        self.verified_turns = ScanTurns()

    def of(self, request: IncomingRequest, arrived: bytes | None) -> ArrivingEnvelope:
        """The envelope in the body of `request`. `arrived` is what `BodyReader.arrived` gave."""
        return ArrivingEnvelope(self, request, arrived)


class ArrivingEnvelope:
    """One envelope, as an async context manager, inside which it is received.

    Call `find_auth_data`, verify it, call `note_verified`, and then `whole`.
    """

    def __init__(self, arrivals: Arrivals, request: IncomingRequest, arrived: bytes | None) -> None:
        self._arrivals = arrivals
        self._share = MemoryShare(arrivals.bodies.memory, request)
        self._file = StrangersFile(arrivals.room, self._share.holder)
        self._scanner = EnvelopeScanner()
        self._kept = bytearray()
        self._is_verified = False
        self._is_large = (request.content_length or 0) > PARSED_WHOLE_BYTES
        parts = _one(arrived) if arrived else arrivals.bodies.parts(request, lambda: self._is_verified)
        self._parts = parts

    async def __aenter__(self) -> ArrivingEnvelope:
        """Return the envelope."""
        return self

    async def __aexit__(self, *raised: object) -> None:
        """Receive no more, and forget what was received."""
        self._share.give_back()
        await self._file.close()
        await self._parts.aclose()

    async def find_auth_data(self) -> bytes | None:
        """Receive until the text of `auth_data` is there, and return it.

        None if the whole body has arrived and is small: then nothing was looked for. Raises `Invalid` (422)
        if there is none, `Unavailable` (503) if strangers hold too much, and what `BodyReader.parts` and
        `EnvelopeScanner.feed` raise.
        """
        async for part in self._parts:
            unscanned = part if self._is_large else b"%s%s" % (self._kept, part)
            self._is_large = self._is_large or len(unscanned) > PARSED_WHOLE_BYTES
            await self._keep(part)
            if not self._is_large:
                continue
            await self._scan(unscanned)
            if self._scanner.auth_text is not None:
                return self._scanner.auth_text
        if self._is_large:
            raise self._scanner.missing()
        return None

    async def note_verified(self) -> None:
        """Note that the signature in `auth_data` holds: the rest is received without a stranger's limits."""
        self._is_verified = True
        if self._file.size_bytes:
            received = await self._file.read()
            await self._file.close()
            received += self._kept
            self._kept = received
        self._share.give_back()

    async def whole(self) -> bytearray:
        """Receive the rest; return the whole body."""
        async for part in self._parts:
            self._kept += part
            await self._scan(part)
        return self._kept

    async def _keep(self, part: bytes) -> None:
        self._share.take(len(part))
        self._kept += part
        if len(self._kept) > KEPT_BYTES:
            kept, self._kept = bytes(self._kept), bytearray()
            await self._file.append(kept)
            self._share.give_back()

    async def _scan(self, data: bytes) -> None:
        turns = self._arrivals.verified_turns if self._is_verified else self._arrivals.turns
        await turns.scan(self._scanner, data)


async def _one(part: bytes) -> AsyncGenerator[bytes, None]:
    yield part
