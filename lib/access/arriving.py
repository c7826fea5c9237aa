"""The body of an envelope while it arrives, whose signature is verified as soon as its `auth_data` is there.

Owns where such a body is kept: a stranger's beyond a part of it on disk, all of a verified one in memory. It
does not verify signatures: that is signed.py.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from lib.access.body import BodyReader, MemoryShare
from lib.access.envelope import PARSED_WHOLE_BYTES
from lib.access.scanner import SLICE_BYTES, EnvelopeScanner
from lib.access.spool import SpoolRoom, StrangersFile
from lib.access.turns import Turns
from lib.request.incoming import DirectRequest, IncomingRequest

# What is kept in memory of a body that is not verified: the rest goes to disk.
KEPT_BYTES = 64 * 1024
# Memory of a whole request that waits for its turn, besides its body: its head and its task.
WAITING_BYTES = 16 * 1024


class Arrivals:
    """Receives envelopes by `bodies`. What strangers send beyond `KEPT_BYTES` each takes of `room`.

    `turns` are those of strangers.
    """

    def __init__(self, bodies: BodyReader, room: SpoolRoom) -> None:
        self.bodies = bodies
        self.room = room
        self.turns = Turns()
        self._verified_turns = Turns(1)

    async def turn_of(self, request: IncomingRequest) -> None:
        """Return once it is the turn of `request`, which is a stranger's. Raises `Unavailable` (503)."""
        if self.turns.is_free:
            await self.turns.wait()
            return
        share = MemoryShare(self.bodies.memory, request)
        try:
            # aiohttp's own objects were counted with the connection.
            own_bytes = WAITING_BYTES if isinstance(request, DirectRequest) else 0
            share.take(min(request.content_length or 0, PARSED_WHOLE_BYTES) + own_bytes)
            await self.turns.wait()
        finally:
            share.give_back()

    async def scan(self, scanner: EnvelopeScanner, data: bytes, is_verified: bool) -> None:
        """Follow `data` by `scanner` in slices, between which other work has its turn.

        Raises what `EnvelopeScanner.feed` raises.
        """
        turns = self._verified_turns if is_verified else self.turns
        for start in range(0, len(data), SLICE_BYTES):
            await turns.wait()
            scanner.feed(data[start : start + SLICE_BYTES])

    def of(self, request: IncomingRequest, arrived: bytes | None) -> ArrivingEnvelope:
        """The envelope in the body of `request`. `arrived` is what `BodyReader.arrived` gave."""
        return ArrivingEnvelope(self, request, arrived)


class ArrivingEnvelope:
    """One envelope, as an async context manager, inside which it is received.

    Call `find_auth_data`, verify it, call `note_verified`, and then `whole`; or only `unverified`.
    """

    def __init__(self, arrivals: Arrivals, request: IncomingRequest, arrived: bytes | None) -> None:
        self._arrivals = arrivals
        self._request = request
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
        self._kept = bytearray()  # an error may hold this envelope by its traceback
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
            self._share.take(len(part))
            if self._is_large:
                held_bytes = self._scanner.held_bytes
                await self._arrivals.scan(self._scanner, unscanned, is_verified=False)
                self._share.take(self._scanner.held_bytes - held_bytes)
            await self._keep(part)
            part = unscanned = b""  # they may be large, and the wait for the next part long
            if self._scanner.auth_text is not None:
                return self._scanner.auth_text
        if self._is_large:
            raise self._scanner.missing()
        return None

    async def note_verified(self) -> None:
        """Note that the signature in `auth_data` holds: the rest is received without a stranger's limits.

        The body counts among those of verified requests from now on. Raises `NoMemory` (503) if those are too
        large together.
        """
        self._is_verified = True
        self._keep_verified(max(self._file.size_bytes + len(self._kept), self._request.content_length or 0))
        if self._file.size_bytes:
            received = await self._file.read()
            await self._file.close()
            received += self._kept
            self._kept = received
        self._share.give_back()

    async def unverified(self) -> bytearray:
        """Receive the whole body, which nothing in it verifies; return it.

        Raises `Unavailable` (503) if strangers hold too much, what `note_verified` raises, and what
        `BodyReader.parts` raises.
        """
        async for part in self._parts:
            self._share.take(len(part))
            await self._keep(part)
            part = b""  # it may be large, and the wait for the next part long
        await self.note_verified()
        return self._kept

    async def whole(self) -> bytearray:
        """Receive the rest; return the whole body. Raises `NoMemory` (503), as `note_verified`."""
        async for part in self._parts:
            self._kept += part
            self._keep_verified(len(self._kept))
            await self._arrivals.scan(self._scanner, part, is_verified=True)
        self._keep_verified(len(self._kept))
        return self._kept

    def _keep_verified(self, size_bytes: int) -> None:
        self._arrivals.bodies.verified.keep(self._request, size_bytes, self._scanner.values)

    async def _keep(self, part: bytes) -> None:
        if len(self._kept) + len(part) <= KEPT_BYTES:
            self._kept += part
            return
        kept, self._kept = self._kept, bytearray()
        for data in (kept, part):
            if data:
                await self._file.append(data)
        self._share.give_back()
        self._share.take(self._scanner.held_bytes)


async def _one(part: bytes) -> AsyncGenerator[bytes, None]:
    yield part
