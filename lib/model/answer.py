"""ModelAnswer: the part of an answer's interface that `pass_on` needs; AnswerScanner: what judges an answer.

Owns both protocols, and the check of an answer's head. `aiohttp.ClientResponse` is a `ModelAnswer`, and so is
the answer of a Python function (lib/declare/functions.py). `pass_on` (relay.py) accepts any other class that
is one.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

from multidict import CIMultiDict, CIMultiDictProxy

# Control characters but the tab. RFC 9110, section 5.5: they have no place in a field's value.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


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


class AnswerScanner(Protocol):
    """Judges an answer by its content while it is passed on (`EndpointHandler.scan_answer`)."""

    def add(self, chunk: bytes) -> None:
        """Read the next part of a streamed body; the parts may end anywhere."""
        ...

    def outcome(self, status: int) -> str | None:
        """Return "served" or "errored" for the whole answer, or None for what follows from `status`."""
        ...


def answer_fault(reason: str | None, headers: CIMultiDict[str] | CIMultiDictProxy[str]) -> str | None:
    """The reason why no client may be sent an answer with this head, or None.

    It may have no control characters, and no transfer coding but chunked: another one would have to be
    undone. The text has none of the model server's bytes.
    """
    if _CONTROL.search(reason or ""):
        return "its reason phrase has a control character"
    for name, value in headers.items():
        if _CONTROL.search(value) or _CONTROL.search(name):
            return "a header has a control character"
    codings = ",".join(headers.getall("Transfer-Encoding", ()))
    if codings and codings.strip().lower() != "chunked":
        return "its transfer coding is not just chunked"
    return None
