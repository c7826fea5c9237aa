"""What an answer of a model must have to be passed on to a client.

Owns the `ModelAnswer` protocol. `aiohttp.ClientResponse` has all of it, and so has the answer of a Python
function; `pass_on` (relay.py) takes any other.
"""

from __future__ import annotations

from typing import Any, Protocol


class Chunks(Protocol):
    """The body of an answer, in chunks as they come."""

    async def readany(self) -> bytes:
        """Return the next chunk as soon as there is one; b"" at the end.

        May raise `aiohttp.ClientError`, `TimeoutError` or `ConnectionError` where the answer breaks off.
        """
        ...


class ModelAnswer(Protocol):
    """An answer: its head, which has come, and its body, which may still be on its way."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def reason(self) -> str | None:
        """The HTTP reason phrase; None for the usual one."""
        ...

    @property
    def headers(self) -> Any:
        """All header fields, hop-by-hop ones too: a `multidict.CIMultiDictProxy[str]`.

        Not declared as one, since aiohttp's own is a descriptor, which type checkers take for something else.
        """
        ...

    @property
    def content_type(self) -> str:
        """The media type in lower case, without parameters."""
        ...

    @property
    def content_length(self) -> int | None:
        """The length of the body in bytes, as it is sent; None where that is not known."""
        ...

    @property
    def content(self) -> Chunks:
        """The body."""
        ...
