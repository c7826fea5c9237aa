"""The replay window: each signed message in once, and none that is far behind (protocol.md §2)."""

from __future__ import annotations

# A reqnum further behind the highest one accepted is refused: the memory of what was seen ends there.
WINDOW = 100


class ReplayWindow:
    """Remembers the signed messages of the last `WINDOW` reqnums."""

    def __init__(self) -> None:
        self._highest: int | None = None
        self._seen: dict[int, set[bytes]] = {}

    def accept(self, reqnum: int, message: bytes) -> bool:
        """Whether `message` is new and not too far behind; if so it is remembered."""
        if self._highest is None or reqnum > self._highest:
            self._highest = reqnum
            self._forget_before(reqnum - WINDOW)
        elif reqnum < self._highest - WINDOW:
            return False
        seen = self._seen.setdefault(reqnum, set())
        if message in seen:
            return False
        seen.add(message)
        return True

    def __len__(self) -> int:
        return len(self._seen)

    def _forget_before(self, floor: int) -> None:
        # Sorted by arrival, not by number: at most WINDOW + 1 entries are ever there to look at.
        for reqnum in [n for n in self._seen if n < floor]:
            del self._seen[reqnum]
