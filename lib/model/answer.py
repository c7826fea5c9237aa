"""ModelAnswer: the part of an answer's interface that `pass_on` needs.

Owns this protocol. `aiohttp.ClientResponse` has all of it, and so has the answer of a Python function
(lib/declare/functions.py). `pass_on` (relay.py) accepts any other class that has it.
"""

from __future__ import annotations

from typing import Any, Protocol


class Chunks(Protocol):
    """The body of an answer, in chunks as they arrive."""

    async def readany(self) -> bytes:
        """Return the next chunk as soon as there is one; b"" at the end.

        May raise `aiohttp.ClientError`, `TimeoutError` or `ConnectionError` if the answer breaks off.
        """
        ...


class ModelAnswer(Protocol):
    """An answer whose status and headers have arrived; its body may still be arriving."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def reason(self) -> str | None:
        """The HTTP reason phrase; None for the standard one."""
        ...

    @property
    def headers(self) -> Any:
        """All headers, hop-by-hop ones too: a `multidict.CIMultiDictProxy[str]`.

        Declared as `Any`: aiohttp's is a descriptor, which type checkers don't accept as a property.
        """
        ...

    @property
    def content_type(self) -> str:
        """The media type in lower case, without parameters."""
        ...

    @property
    def content_length(self) -> int | None:
        """The length of the body in bytes before decompression; None if it is not known."""
        ...

    @property
    def content(self) -> Chunks:
        """The body."""
        ...
